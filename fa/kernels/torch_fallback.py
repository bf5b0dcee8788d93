"""The passes over a gradient matrix in plain torch: for CUDA and every other device, and as the check of the compiled
ones.

Products are taken in float64, so that no setting of the device (TF32) touches what a rule decides.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_ENTRIES = 1 << 26  # of a chunk of G: 512 MB as float64


def _chunks(G: Tensor) -> Iterator[tuple[int, Tensor]]:
    width = max(1, _ENTRIES // G.shape[0])
    for left in range(0, G.shape[1], width):
        yield left, G[:, left : left + width]


def _not_finite(X: Tensor) -> Tensor:
    return ~torch.isfinite(X).all(dim=1)


def gram(G: Tensor) -> Tensor:
    """K = G G^T, (p, p) float64, of G (p, n)."""
    K = torch.zeros(G.shape[0], G.shape[0], dtype=torch.float64, device=G.device)
    for _, chunk in _chunks(G):
        X = chunk.double()
        K += X @ X.T
    return K


def squared_distances(G: Tensor) -> Tensor:
    """||g_i - g_j||^2, (p, p) float64, from differences taken in float64."""
    total = torch.zeros(G.shape[0], G.shape[0], dtype=torch.float64, device=G.device)
    for _, chunk in _chunks(G):
        X = chunk.double()
        for i in range(G.shape[0]):
            total[i] += (X - X[i]).square().sum(dim=1)
    return total


def combine(G: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted sum of rows, (n,) in G's dtype, and which rows (p,) bool hold NaN or Inf; rows of weight 0 are not
    read.
    """
    rows = torch.nonzero(weights).flatten()
    bad = torch.zeros(G.shape[0], dtype=torch.bool, device=G.device)
    d = torch.empty(G.shape[1], dtype=G.dtype, device=G.device)
    for left, chunk in _chunks(G):
        X = chunk[rows]
        d[left : left + X.shape[1]] = (weights[rows] @ X.double()).to(G.dtype)
        bad[rows] |= _not_finite(X)
    return d, bad


def order_statistic(G: Tensor, R: Tensor, lo: int, hi: int, keep: int) -> tuple[Tensor, Tensor]:
    """As `fa.kernels.order_statistics.order_statistic`, for tensors on one device."""
    rows = torch.nonzero(R.any(dim=1)).flatten()
    bad = torch.zeros(G.shape[0], dtype=torch.bool, device=G.device)
    d = torch.empty(G.shape[1], dtype=G.dtype, device=G.device)
    for left, chunk in _chunks(G):
        X = chunk[rows]
        columns = (R[rows].T @ X.double()).to(torch.promote_types(G.dtype, torch.float32))
        d[left : left + X.shape[1]] = _statistic(columns.sort(dim=0).values, lo, hi, keep).to(G.dtype)
        bad[rows] |= _not_finite(X)
    return d, bad


def _statistic(ordered: Tensor, lo: int, hi: int, keep: int) -> Tensor:
    centre = ordered[lo:hi].mean(dim=0)
    q = ordered.shape[0]
    if keep == 0:
        return centre
    start = (centre - ordered[: q - keep] > ordered[keep:] - centre).sum(dim=0)
    window = start + torch.arange(keep, device=ordered.device)[:, None]
    return ordered.gather(0, window).mean(dim=0)
