"""The passes over the n coordinates of a gradient matrix G (p, n), on whatever device it lies.

On the CPU they are compiled loops (`cpu`), elsewhere plain torch (`torch_fallback`); half precision is taken to
float32 by chunks. What comes back besides a direction is which rows hold NaN or Inf: noticed on the way, not in a pass
of its own.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fa.kernels import torch_fallback

_HALF = (torch.float16, torch.bfloat16)
_WIDTH = 1 << 24  # columns of a piece, between which Ctrl-C is heard
_WIDENED = 1 << 22  # entries of half precision that are taken to float32 at a time

Pass = Callable[[np.ndarray, np.ndarray], np.ndarray]


def symmetric(upper: np.ndarray) -> np.ndarray:
    """The symmetric matrix with this upper triangle."""
    whole: np.ndarray = np.triu(upper) + np.triu(upper, 1).T
    return whole


def gram(G: Tensor, precise: bool = False) -> np.ndarray:
    """K = G G^T, (p, p) float64 and exactly symmetric.

    A row that holds NaN or Inf, or whose squares leave the range of the arithmetic, shows on the diagonal. The quick
    pass multiplies in G's precision (float32 for half) and adds 2,048 products before it goes over to float64;
    `precise` does all of it in float64.
    """
    if G.device.type != "cpu":
        return symmetric(torch_fallback.gram(G).cpu().numpy())
    from fa.kernels import cpu

    K = np.zeros((G.shape[0], G.shape[0]))
    for _, piece in _pieces(G):
        K += cpu.gram(piece, precise)
    return symmetric(K)


def gram_rows(G: Tensor, rows: Sequence[int], others: Sequence[int]) -> np.ndarray:
    """Those rows of K = G G^T in the columns `others`, (rows, others) float64: on the CPU to the bits of the quick
    pass of `gram`.
    """
    if G.device.type != "cpu":
        return torch_fallback.gram(G)[rows][:, others].cpu().numpy()
    from fa.kernels import cpu

    K = np.zeros((G.shape[0], G.shape[0]))
    for _, piece in _pieces(G):
        K += cpu.gram_rows(piece, rows, others)
    return K[np.ix_(rows, others)]


def squared_distances(G: Tensor) -> np.ndarray:
    """||g_i - g_j||^2, (p, p) float64, from differences taken in float64: exact where K would cancel."""
    if G.device.type != "cpu":
        return symmetric(torch_fallback.squared_distances(G).cpu().numpy())
    from fa.kernels import cpu

    total = np.zeros((G.shape[0], G.shape[0]))
    for _, piece in _pieces(G):
        total += cpu.squared_distances(piece)
    return symmetric(total)


def combine(G: Tensor, weights: np.ndarray, out: Tensor | None = None) -> tuple[Tensor, np.ndarray]:
    """sum_i weights_i g_i, (n,) in G's dtype and on its device, and the rows (p,) bool that hold NaN or Inf.

    Rows of weight 0 are not read. The sum is put into `out` if given.
    """
    if G.device.type != "cpu":
        d, bad = torch_fallback.combine(G, torch.from_numpy(weights).to(G.device))
        return _placed(d, out), bad.cpu().numpy()
    from fa.kernels import cpu

    return _by_pieces(G, lambda piece, d: cpu.combine(piece, weights, d), out)


def order_statistic(
    G: Tensor, R: np.ndarray, lo: int, hi: int, keep: int, out: Tensor | None = None
) -> tuple[Tensor, np.ndarray]:
    """A statistic of every coordinate's q sorted values of G^T R, (n,), and the rows (p,) bool of G that hold NaN or
    Inf.

    R is (p, q) float64; rows of G at which R is zero are not read. The centre is the mean of the sorted values lo ..
    hi - 1; with keep = 0 it is the result, else the mean of the `keep` values nearest the centre is (ties take the
    smaller value). The result is put into `out` if given.
    """
    if G.device.type != "cpu":
        d, bad = torch_fallback.order_statistic(G, torch.from_numpy(R).to(G.device), lo, hi, keep)
        return _placed(d, out), bad.cpu().numpy()
    from fa.kernels import order_statistics

    return _by_pieces(G, lambda piece, d: order_statistics.order_statistic(piece, R, lo, hi, keep, d), out)


def _placed(d: Tensor, out: Tensor | None) -> Tensor:
    return d if out is None else out.copy_(d)


def _pieces(G: Tensor) -> Iterator[tuple[slice, np.ndarray]]:
    """G by pieces of its columns, as numpy arrays of float32 or float64: views, or where it is of half precision copies
    that follow one another in the same memory.
    """
    p, n = G.shape
    half = G.dtype in _HALF
    width = max(1, min(n, _WIDENED // p if half else _WIDTH))
    copies = torch.empty(p, width) if half else None
    for left in range(0, n, width):
        columns = slice(left, min(left + width, n))
        piece = G[:, columns]
        yield columns, (piece if copies is None else copies[:, : piece.shape[1]].copy_(piece)).numpy()


def _by_pieces(G: Tensor, one_pass: Pass, out: Tensor | None) -> tuple[Tensor, np.ndarray]:
    d = _empty(G.shape[1], G.dtype) if out is None else out
    bad = np.zeros(G.shape[0], dtype=bool)
    for columns, piece in _pieces(G):
        own = d[columns]
        wide = torch.empty(len(own)) if G.dtype in _HALF else own
        bad |= one_pass(piece, wide.numpy())
        if wide is not own:
            own.copy_(wide)
    return d, bad


def _empty(n: int, dtype: torch.dtype) -> Tensor:
    """A new tensor (n,) in numpy's memory: numpy asks the system for huge pages, of which it takes a five-hundredth of
    the time to hand out as many as of small ones.
    """
    return torch.from_numpy(np.empty(n * dtype.itemsize, dtype=np.uint8)).view(dtype)
