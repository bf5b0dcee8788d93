"""The p x p Gram matrix, in which every rule decides, and what a right multiplication of the gradients does to it.

K_ij = <g_i, g_j> is taken in one quick pass over the coordinates. What that pass cannot give, it can tell: a row that
leaves the arithmetic's range shows on the diagonal, and a K whose smallest eigenvalue (on unit columns) comes near
its own error would make distances out of noise. Then, and only then, a pass in float64 follows, and, where two
gradients differ by less than float64 resolves, one over their differences.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from fa import kernels

Square = Float64[np.ndarray, "p p"]

QUICK_LIMIT = (
    1e-2  # smallest eigenvalue of unit columns that a float32 pass, whose error is about 1e-6, resolves to 1e-4
)
CANCELLED = 1e-10  # squared distance over squared norms below which float64 products do not resolve it
_RANGE = {
    torch.float32: 1e-28,
    torch.float64: 1e-280,
}  # squared norms below may have lost coordinates to underflow


@dataclass(frozen=True)
class Gram:
    """Inner products K (p, p) and squared distances D2 (p, p) of p gradients; both times scale^2 are the true ones.

    D2 is kept beside K since it cannot always be had from it: K_ii + K_jj - 2 K_ij cancels where gradients nearly
    agree.
    """

    K: Square
    D2: Square
    scale: float = 1.0

    @classmethod
    def of(cls, K: Square, scale: float = 1.0) -> "Gram":
        """From inner products alone."""
        squares = np.diag(K)
        D2 = np.maximum(squares[:, None] + squares[None, :] - 2 * K, 0.0)
        np.fill_diagonal(D2, 0.0)
        return cls(K, D2, scale)

    @classmethod
    def unmeasured(cls, p: int) -> "Gram":
        """For a rule that decides without looking: only the number of gradients is known."""
        return cls(np.full((p, p), np.nan), np.full((p, p), np.nan))

    @property
    def p(self) -> int:
        """The number of gradients."""
        return len(self.K)

    @property
    def norms(self) -> Float64[np.ndarray, " p"]:
        """||g_i||, (p,)."""
        return self.scale * np.sqrt(np.diag(self.K))

    def select(self, rows: Int[np.ndarray, " q"]) -> "Gram":
        """Of the named gradients only, in that order."""
        return Gram(self.K[np.ix_(rows, rows)], self.D2[np.ix_(rows, rows)], self.scale)

    def scaled(self, factors: Float64[np.ndarray, " p"]) -> "Gram":
        """Of the gradients factors_i g_i.

        ||a x - b y||^2 = a b ||x - y||^2 + (a - b)(a ||x||^2 - b ||y||^2), in which equal factors cancel nothing.
        """
        squares = np.diag(self.K)
        a, b = factors[:, None], factors[None, :]
        D2 = a * b * self.D2 + (a - b) * (a * squares[:, None] - b * squares[None, :])
        return Gram(a * b * self.K, np.maximum(D2, 0.0), self.scale)

    def averaged(self, R: Float64[np.ndarray, "p q"]) -> "Gram":
        """Of the q averages G^T R, each column of R summing to 1.

        Then -z^T D2 z / 2 is the squared distance of two, z = r_a - r_b: what they share cancels before it is rounded.
        """
        z = R[:, :, None] - R[:, None, :]
        D2 = -0.5 * (z * np.tensordot(self.D2, z, axes=1)).sum(axis=0)
        return Gram(_symmetric(R.T @ self.K @ R), np.maximum(_symmetric(D2), 0.0), self.scale)


def measure(G: Float[Tensor, "p n"]) -> tuple[Gram, Bool[np.ndarray, " p"]]:
    """The Gram matrix of the rows of G, and which of them (p,) are finite; K and D2 are NaN at those that are not."""
    K = kernels.gram(G)
    finite = _finite_rows(G, K)
    if not finite.any():
        return Gram.unmeasured(G.shape[0]), finite
    rows = np.flatnonzero(finite)
    scale = 1.0
    if not _quick_pass_suffices(K[np.ix_(rows, rows)], G.dtype):
        K, scale = _precise(G, finite)
    K[~finite], K[:, ~finite] = np.nan, np.nan
    gram = Gram.of(K, scale)
    if _cancelled(gram.select(rows)):
        gram = Gram(K, kernels.squared_distances(_scaled(G, scale)), scale)
    return gram, finite


def _finite_rows(G: Tensor, K: Square) -> Bool[np.ndarray, " p"]:
    """Only rows whose square is not finite are looked at again: they may have left float32's range, not the
    numbers'.
    """
    finite = np.isfinite(np.diag(K))
    for row in np.flatnonzero(~finite):
        finite[row] = bool(torch.isfinite(G[row]).all())
    return finite


def _quick_pass_suffices(K: Square, dtype: torch.dtype) -> bool:
    squares = np.diag(K)
    smallest = _RANGE.get(dtype, _RANGE[torch.float32])
    if not np.isfinite(K).all() or squares.min() < smallest:
        return False
    if dtype == torch.float64:
        return True
    norms = np.sqrt(squares)
    return bool(np.linalg.eigvalsh(K / np.outer(norms, norms))[0] > QUICK_LIMIT)


def _precise(G: Tensor, finite: Bool[np.ndarray, " p"]) -> tuple[Square, float]:
    """K in float64; of the gradients over a power of two where even their float64 squares leave the range."""
    if G.dtype != torch.float64:
        return kernels.gram(G, precise=True), 1.0
    largest = max(float(G[row].abs().max()) for row in np.flatnonzero(finite))
    scale = 1.0 if 1e-120 < largest < 1e120 or largest == 0 else 2.0 ** np.floor(np.log2(largest))
    return kernels.gram(_scaled(G, scale), precise=True), scale


def _scaled(G: Tensor, scale: float) -> Tensor:
    return G if scale == 1.0 else G / scale


def _cancelled(gram: Gram) -> bool:
    """Whether two gradients that are not equal, bit for bit as far as K tells, are closer than K resolves."""
    squares = np.diag(gram.K)
    sums = squares[:, None] + squares[None, :]
    equal = (gram.K == squares[:, None]) & (gram.K == squares[None, :])
    return bool(((gram.D2 < CANCELLED * sums) & ~equal).any())


def _symmetric(K: Square) -> Square:
    symmetric: Square = np.triu(K) + np.triu(K, 1).T
    return symmetric
