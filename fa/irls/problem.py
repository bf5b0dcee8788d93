"""The terms of eq. 5 in an orthonormal basis of span(G), of p dimensions at the most: what IRLS and the certificates
work with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int

from fa.gradients.gram import Gram
from fa.utils.validation import check

Formulation = Literal["paper", "released"]

FLOOR = 1e-12  # of 1 - v: below it the power is replaced by its tangent there, so that weights stay finite
RANK = 1e-12  # eigenvalues of the cosines below this fraction of the largest are rounding, not directions
_EQUAL = 1e-12  # squared distance over squared norms below which a pair's direction is lost with those eigenvalues


@dataclass(frozen=True)
class Problem:
    """Eq. 5 in an orthonormal basis Q of span(G): r dimensions, N columns, T terms, p workers.

    `basis` (q, r) holds the coefficients of Q in the q unit gradients; `terms` (r, N) the columns of the t_k, `owner`
    (N,) the term that each belongs to, and `factors` (T,) the c_k. The p workers' terms come first. A gradient that is
    zero has a zero column, and c = 0 where it is all that a worker has. `unresolved` is what pairs that differ, but are
    too close for their direction to be known, could add to the objective.
    """

    basis: Float64[np.ndarray, "q r"]
    terms: Float64[np.ndarray, "r N"]
    owner: Int[np.ndarray, " N"]
    factors: Float64[np.ndarray, " T"]
    p: int
    m: int
    a: float
    unresolved: float = 0.0

    def objective(self, residuals: Float64[np.ndarray, " T"]) -> float:
        """Eq. 5 with (1 - v)^(1/a) for the square root, of the residuals 1 - v."""
        return float(self.factors @ residuals ** (1 / self.a))

    def smoothed_objective(self, residuals: Float64[np.ndarray, " T"]) -> float:
        """The objective with the power's tangent at FLOOR below FLOOR: what every step lowers."""
        floored = np.maximum(residuals, FLOOR)
        below = np.minimum(residuals - FLOOR, 0.0) * FLOOR ** (1 / self.a - 1) / self.a
        return float(self.factors @ (floored ** (1 / self.a) + below))

    def objective_error_bound(self, residuals: Float64[np.ndarray, " T"]) -> float:
        """What the objective may be off by: the terms below FLOOR may hide FLOOR^(1/a) each, a close pair all it is."""
        hidden = self.factors[residuals < FLOOR].sum() * FLOOR ** (1 / self.a)
        return float(hidden) + self.unresolved

    def weights(self, residuals: Float64[np.ndarray, " T"]) -> Float64[np.ndarray, " T"]:
        """w_k = (1 - v_k)^(1/a - 1), the tangents' slopes up to the factor 1/a."""
        weights: np.ndarray = np.maximum(residuals, FLOOR) ** (1 / self.a - 1)
        return weights

    def residuals(self, complement: Float64[np.ndarray, "r s"]) -> Float64[np.ndarray, " T"]:
        """1 - v_k of each term under the subspace whose orthogonal complement in span(G) has this basis.

        Lengths in the complement, and not 1 less the length in the subspace, which would cancel.
        """
        lengths = np.square(complement.T @ self.terms).sum(axis=0)
        return np.bincount(self.owner, lengths, minlength=self.factors.size)


def build_problem(
    gram: Gram, m: int, lam: float, a: float, formulation: Formulation = "paper", counts: Sequence[int] | None = None
) -> Problem:
    """Eq. 5 for these gradients, of which worker i has counts_i (None: one), in an orthonormal basis of their span."""
    counts = (1,) * gram.p if counts is None else tuple(counts)
    check("lam", lam, lam == 0 or len(counts) == gram.p, "0 where a worker has several gradients, which form no pairs")
    lengths, vectors = np.linalg.eigh(gram.cosines)
    kept = lengths > RANK * max(lengths[-1], 1.0)
    owner = np.repeat(np.arange(len(counts)), counts)
    of_worker = norm_fractions(gram, owner)
    unit = (vectors[:, kept] * np.sqrt(lengths[kept])).T * (gram.scaled_norms > 0)
    differences, factors = _pairs(gram, lam, formulation)
    return Problem(
        basis=vectors[:, kept] / np.sqrt(lengths[kept]) * (gram.scaled_norms > 0)[:, None],
        terms=np.hstack([unit * of_worker, unit @ differences]),
        owner=np.concatenate([owner, len(counts) + np.arange(factors.size)]),
        factors=np.concatenate([np.bincount(owner, of_worker) > 0, factors]).astype(np.float64),
        p=len(counts),
        m=m,
        a=a,
        unresolved=_unresolved(gram, lam, formulation),
    )


def norm_fractions(gram: Gram, owner: Int[np.ndarray, " q"]) -> Float64[np.ndarray, " q"]:
    """||g_ik|| over the Frobenius norm of all that worker i sent: 1 for an only gradient, 0 for one that is 0."""
    together = np.sqrt(np.bincount(owner, np.square(gram.clipped_norms)))[owner]
    alone = np.bincount(owner)[owner] == 1
    several = np.divide(gram.clipped_norms, together, out=np.zeros(gram.p), where=together > 0)
    return np.where(alone, gram.scaled_norms > 0, several)


def complement(Y: Float64[np.ndarray, "r m"]) -> Float64[np.ndarray, "r s"]:
    """An orthonormal basis of what the orthonormal columns of Y leave."""
    rest: np.ndarray = np.linalg.svd(Y, full_matrices=True)[0][:, Y.shape[1] :]
    return rest


def _apart(gram: Gram) -> Bool[np.ndarray, " pairs"]:
    """Which pairs are far enough from each other for the direction of their difference."""
    i, j = np.triu_indices(gram.p, 1)
    squares = np.square(gram.clipped_norms)
    apart: np.ndarray = gram.D2[i, j] > _EQUAL * (squares[i] + squares[j])
    return apart


def _unresolved(gram: Gram, lam: float, formulation: Formulation) -> float:
    """How much the pairs that differ, but are not far enough apart, could add to the objective."""
    if lam == 0 or gram.p == 1 or formulation == "released":
        return 0.0
    different = gram.D2[np.triu_indices(gram.p, 1)] > 0
    return 2 * lam / (gram.p - 1) * int((different & ~_apart(gram)).sum())


def _pairs(
    gram: Gram, lam: float, formulation: Formulation
) -> tuple[Float64[np.ndarray, "p N"], Float64[np.ndarray, " N"]]:
    """The pairs' terms as coefficients of the unit gradients (p, N), and their factors c (N,); none with lam = 0.

    "paper": (g_i - g_j)/D_ij, each pair twice, over p - 1. "released": x_i - x_j, not divided, in columns that carry
    the factor lam/(p(p - 1)), which is therefore squared in the matrix whose eigenvectors are taken.
    """
    p = gram.p
    if lam == 0 or p == 1:
        return np.zeros((p, 0)), np.zeros(0)
    i, j = np.triu_indices(p, 1)
    columns = np.arange(i.size)
    differences = np.zeros((p, i.size))
    if formulation == "released":
        differences[i, columns], differences[j, columns] = 1.0, -1.0
        return differences, np.full(i.size, 2 * (lam / (p * (p - 1))) ** 2)
    apart = _apart(gram)
    distances = np.where(apart, np.sqrt(gram.D2[i, j]), np.inf)
    norms = gram.clipped_norms
    differences[i, columns], differences[j, columns] = norms[i] / distances, -norms[j] / distances
    return differences, np.where(apart, 2 * lam / (p - 1), 0.0)
