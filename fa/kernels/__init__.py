"""Passes over the n coordinates of a gradient matrix G (p, n), on any device.

On the CPU they are compiled loops (`cpu`), on CUDA Triton's kernels (`triton_passes`), elsewhere plain torch
(`torch_fallback`). On the CPU, half precision is converted to float32 by chunks. A pass that computes a direction also
returns which rows hold NaN or Inf, without a pass of its own.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from subprocess import SubprocessError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fa.kernels import torch_fallback
from fa.utils.devices import with_index
from fa.utils.memory import is_out_of_memory

_HALF = (torch.float16, torch.bfloat16)
_WIDTH = 1 << 24  # Number of columns of a piece; Ctrl-C takes effect between two pieces.
_SMALL = 1 << 18  # Number of coordinates below which numpy does not request huge pages.
_WIDENED = 1 << 22  # Number of entries of half precision that are converted to float32 at a time.

Pass = Callable[[np.ndarray, np.ndarray], np.ndarray]


def symmetric(upper: np.ndarray) -> np.ndarray:
    """Return the symmetric matrix with a given upper triangle.

    Args:
        upper: Square matrix; its entries below the diagonal are ignored.

    Returns:
        A new matrix of the same shape.
    """
    whole, below = upper.copy(), _below_diagonal(len(upper))
    whole[below] = upper.T[below]
    return whole


@lru_cache
def _below_diagonal(p: int) -> np.ndarray:
    return np.tri(p, k=-1, dtype=bool)


def gram(G: Tensor, precise: bool = False) -> np.ndarray:
    """Compute K = G G^T.

    A row that holds NaN or Inf, or whose squares leave the range of the arithmetic, shows on the diagonal.

    Args:
        G: Matrix (p, n) with contiguous rows.
        precise: Use float64 throughout. The quick pass multiplies in G's precision (float32 for halves) and converts to
            float64 after sums of 2,048 products. Other devices than the CPU always use float64.

    Returns:
        K (p, p), float64 and exactly symmetric.
    """
    if G.device.type != "cpu":
        return symmetric(_passes(G).gram(G).cpu().numpy())
    from fa.kernels import cpu

    K = np.zeros((G.shape[0], G.shape[0]))
    for _, piece in _pieces(G):
        K += cpu.gram(piece, precise)
    return symmetric(K)


def gram_rows(G: Tensor, rows: Sequence[int], others: Sequence[int]) -> np.ndarray:
    """Compute some entries of K = G G^T, with the bits of the quick pass of `gram`.

    Args:
        G: Matrix (p, n) with contiguous rows, on the CPU.
        rows: Rows of K.
        others: Columns of K.

    Returns:
        The entries (len(rows), len(others)), float64.
    """
    from fa.kernels import cpu

    K = np.zeros((G.shape[0], G.shape[0]))
    for _, piece in _pieces(G):
        K += cpu.gram_rows(piece, rows, others)
    return K[np.ix_(rows, others)]


def squared_distances(G: Tensor) -> np.ndarray:
    """Compute ||g_i - g_j||^2 from differences in float64, which do not cancel as K does.

    Args:
        G: Matrix (p, n) with contiguous rows.

    Returns:
        Squared distances (p, p), float64.
    """
    if G.device.type != "cpu":
        return symmetric(torch_fallback.squared_distances(G).cpu().numpy())
    from fa.kernels import cpu

    total = np.zeros((G.shape[0], G.shape[0]))
    for _, piece in _pieces(G):
        total += cpu.squared_distances(piece)
    return symmetric(total)


def combine(G: Tensor, weights: np.ndarray, out: Tensor | None = None) -> tuple[Tensor, np.ndarray]:
    """Compute the weighted sum of rows.

    Args:
        G: Matrix (p, n) with contiguous rows.
        weights: Weights (p,) float64; rows of weight 0 are not read.
        out: Tensor (n,) for the result; None to allocate one.

    Returns:
        The sum (n,), in G's dtype and on its device, and which rows that were read hold NaN or Inf, (p,) bool.
    """
    if G.device.type != "cpu":
        d, not_finite = _passes(G).combine(G, torch.from_numpy(weights))
        return _placed(d, out), not_finite.cpu().numpy()
    from fa.kernels import cpu

    return _by_pieces(G, lambda piece, d: cpu.combine(piece, weights, d), out)


def order_statistic(
    G: Tensor, R: np.ndarray, first: int, stop: int, nearest: int, out: Tensor | None = None
) -> tuple[Tensor, np.ndarray]:
    """Compute a statistic of the q sorted values of each coordinate of G^T R.

    The centre is the mean of the sorted values first .. stop - 1.

    Args:
        G: Matrix (p, n) with contiguous rows.
        R: Factors (p, q) float64; rows of G at which R is zero are not read.
        first: First sorted value of the centre.
        stop: Index after the last one.
        nearest: 0 for the centre, else the number of values nearest the centre whose mean is taken; a tie takes the
            smaller value.
        out: Tensor (n,) for the result; None to allocate one.

    Returns:
        The statistic (n,), in G's dtype and on its device, and which rows that were read hold NaN or Inf, (p,) bool.
    """
    if G.device.type != "cpu":
        d, not_finite = _passes(G).order_statistic(G, torch.from_numpy(R), first, stop, nearest)
        return _placed(d, out), not_finite.cpu().numpy()
    from fa.kernels import order_statistics

    return _by_pieces(G, lambda piece, d: order_statistics.order_statistic(piece, R, first, stop, nearest, d), out)


def _passes(G: Tensor) -> Any:
    """Return the module with the passes for a matrix that is not on the CPU."""
    for_triton = G.device.type == "cuda" and G.shape[1] > 0 and G.stride(1) == 1
    if not (for_triton and _triton_works(with_index(G.device))):
        return torch_fallback
    from fa.kernels import triton_passes

    return triton_passes


@lru_cache
def _triton_works(device: torch.device) -> bool:
    """Run a small kernel, which needs Triton, a C compiler and a supported device; warn if it fails."""
    try:
        from triton.errors import TritonError

        from fa.kernels import triton_passes
    except ImportError:
        return False  # torch brings Triton for CUDA on Linux only.
    try:
        triton_passes.gram(torch.ones(1, 1, device=device))
    except (OSError, RuntimeError, SubprocessError, TritonError) as error:
        if is_out_of_memory(error):
            raise  # It says nothing about Triton.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(
            f"Triton's kernels fail here, and slower passes of torch replace them ({reason})",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def _placed(d: Tensor, out: Tensor | None) -> Tensor:
    """Copy the result to `out`, if there is one."""
    return d if out is None else out.copy_(d)


def _pieces(G: Tensor) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield G by pieces of its columns, as float32 or float64 numpy arrays.

    They are views, except for half precision: then each piece is a copy in the same memory as the previous one.
    """
    if _is_one_piece(G):
        yield slice(None), G.numpy()
        return
    p, n = G.shape
    half = G.dtype in _HALF
    width = max(1, min(n, _WIDENED // p if half else _WIDTH))
    copies = torch.empty(p, width, dtype=torch.float32, device="cpu") if half else None
    for left in range(0, n, width):
        columns = slice(left, min(left + width, n))
        piece = G[:, columns]
        yield columns, (piece if copies is None else copies[:, : piece.shape[1]].copy_(piece)).numpy()


def _is_one_piece(G: Tensor) -> bool:
    return 0 < G.shape[1] <= _WIDTH and G.dtype not in _HALF


def _by_pieces(G: Tensor, one_pass: Pass, out: Tensor | None) -> tuple[Tensor, np.ndarray]:
    """Run a pass on each piece of the columns, and collect the rows with NaN or Inf."""
    if out is not None and not out.is_contiguous():  # The loops write to consecutive addresses.
        d, not_finite = _by_pieces(G, one_pass, None)
        return out.copy_(d), not_finite
    d = _empty(G.shape[1], G.dtype) if out is None else out
    if _is_one_piece(G):
        return d, one_pass(G.numpy(), d.numpy())
    not_finite = np.zeros(G.shape[0], dtype=bool)
    for columns, piece in _pieces(G):
        own = d[columns]
        wide = torch.empty(len(own), dtype=torch.float32, device="cpu") if G.dtype in _HALF else own
        not_finite |= one_pass(piece, wide.numpy())
        if wide is not own:
            own.copy_(wide)
    return d, not_finite


def _empty(n: int, dtype: torch.dtype) -> Tensor:
    """Allocate a tensor (n,); large ones with numpy, whose huge pages the system provides 500 times faster."""
    if n < _SMALL:
        return torch.empty(n, dtype=dtype, device="cpu")
    return torch.from_numpy(np.empty(n * dtype.itemsize, dtype=np.uint8)).view(dtype)
