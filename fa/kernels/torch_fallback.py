"""Passes over a gradient matrix in plain torch, for every device; tests compare the compiled loops and Triton's kernels
with them.

Products are float64, so that a device setting such as TF32 does not change the decision of a rule.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fa.kernels.sorting_network import sorting_network

_ENTRIES = 1 << 26  # Number of entries in a chunk of G: 512 MB as float64.
_SLICE = 1 << 13  # Number of columns that one product sums; products of many slices occupy a whole GPU.


def _chunks(G: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield chunks of the columns of G, each with its first column."""
    width = max(1, _ENTRIES // G.shape[0])
    for left in range(0, G.shape[1], width):
        yield left, G[:, left : left + width]


def _not_finite(X: Tensor) -> Tensor:
    """Return which rows hold NaN or Inf."""
    return ~torch.isfinite(X).all(dim=1)


def gram(G: Tensor) -> Tensor:
    """Compute K = G G^T.

    Args:
        G: Matrix (p, n).

    Returns:
        K (p, p), float64.
    """
    K = torch.zeros(G.shape[0], G.shape[0], dtype=torch.float64, device=G.device)
    for _, chunk in _chunks(G):
        X = chunk.double()
        whole = X.shape[1] // _SLICE * _SLICE
        slices = X[:, :whole].unflatten(1, (-1, _SLICE)).transpose(0, 1)
        K += (slices @ slices.mT).sum(dim=0)
        K += X[:, whole:] @ X[:, whole:].T
    return K


def squared_distances(G: Tensor) -> Tensor:
    """Compute ||g_i - g_j||^2 from differences in float64.

    Args:
        G: Matrix (p, n).

    Returns:
        Squared distances (p, p), float64.
    """
    total = torch.zeros(G.shape[0], G.shape[0], dtype=torch.float64, device=G.device)
    for _, chunk in _chunks(G):
        X = chunk.double()
        for i in range(G.shape[0]):
            total[i] += (X - X[i]).square().sum(dim=1)
    return total


def combine(G: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the weighted sum of rows.

    Args:
        G: Matrix (p, n).
        weights: Weights (p,) float64, on the CPU; rows of weight 0 are not read.

    Returns:
        The sum (n,), in G's dtype, and which rows that were read hold NaN or Inf, (p,) bool.
    """
    factors = weights.tolist()
    not_finite = torch.zeros(G.shape[0], dtype=torch.bool, device=G.device)
    d = torch.empty(G.shape[1], dtype=G.dtype, device=G.device)
    for left, chunk in _chunks(G):
        total = torch.zeros(chunk.shape[1], dtype=torch.float64, device=G.device)
        for row, factor in zip(chunk, factors, strict=True):
            if factor != 0:
                total.add_(row, alpha=factor)
        d[left : left + len(total)] = total.to(G.dtype)
        if not torch.isfinite(total).all():  # NaN and Inf of a row remain in the sum.
            not_finite |= _not_finite(chunk) & (weights != 0).to(G.device)
    return d, not_finite


def order_statistic(G: Tensor, R: Tensor, first: int, stop: int, nearest: int) -> tuple[Tensor, Tensor]:
    """Compute a statistic of each coordinate, as `fa.kernels.order_statistic` does.

    Args:
        G: Matrix (p, n).
        R: Factors (p, q) float64, on the CPU.
        first: First sorted value of the centre.
        stop: Index after the last one.
        nearest: 0 for the centre, else the number of values nearest the centre.

    Returns:
        The statistic (n,), in G's dtype, and which rows that were read hold NaN or Inf, (p,) bool.
    """
    rows = torch.nonzero(R.any(dim=1)).flatten()
    factors, rows = R[rows].T.to(G.device), rows.to(G.device)
    not_finite = torch.zeros(G.shape[0], dtype=torch.bool, device=G.device)
    d = torch.empty(G.shape[1], dtype=G.dtype, device=G.device)
    selects, selection = is_selection(R), R.argmax(dim=0).to(G.device)
    wide = torch.promote_types(G.dtype, torch.float32)
    for left, chunk in _chunks(G):
        X = chunk[rows]
        columns = chunk[selection].to(wide) if selects else (factors @ X.double()).to(wide)
        d[left : left + X.shape[1]] = _statistic(_sorted(columns), first, stop, nearest).to(G.dtype)
        not_finite[rows] |= _not_finite(X)
    return d, not_finite


def is_selection(R: Tensor) -> bool:
    """Return whether every column of G^T R is a row of G.

    Args:
        R: Factors (p, q).
    """
    return bool(((R == 0) | (R == 1)).all() & (R.sum(dim=0) == 1).all())


def _sorted(columns: Tensor) -> Tensor:
    """Sort each column of (q, n), in place. Rows with NaN spoil the columns that they are in."""
    for i, j in sorting_network(len(columns)).tolist():
        smaller = torch.minimum(columns[i], columns[j])
        torch.maximum(columns[i], columns[j], out=columns[j])
        columns[i] = smaller
    return columns


def _statistic(ordered: Tensor, first: int, stop: int, nearest: int) -> Tensor:
    """Compute the statistic of sorted values (q, n)."""
    centre = ordered[first:stop].mean(dim=0)
    q = ordered.shape[0]
    if nearest == 0:
        return centre
    start = (centre - ordered[: q - nearest] > ordered[nearest:] - centre).sum(dim=0)
    window = start + torch.arange(nearest, device=ordered.device)[:, None]
    return ordered.gather(0, window).mean(dim=0)
