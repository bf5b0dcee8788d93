"""The terms of eq. 5 in an orthonormal basis of span(G), which has at most p dimensions.

IRLS, nested subspaces and certificates work with these terms only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int

from fa.gradients.gram import Gram
from fa.irls.worker_weights import read_weights
from fa.utils.validation import check

Formulation = Literal["paper", "released"]

GroupTerm = Literal["fraction", "chordal"]
"""Term of a worker with several gradients G_i:

- "fraction": 1 - ||Y^T G_i||^2/||G_i||^2, with Frobenius norms: the paper's. A longer gradient counts more.
- "chordal": min(m, k_i) - ||Y^T Q_i||^2 with an orthonormal basis Q_i of the span of G_i, which has k_i dimensions:
  the squared chordal distance of the Flag Median. A worker with more gradients has a larger term.

Where all workers have k <= m gradients, orthogonal and of equal norms, the second is k times the first.
"""

FLOOR = 1e-12
"""Value of 1 - v below which the power is replaced by its tangent, so that weights stay finite."""

RANK = 1e-12
"""Fraction of the largest eigenvalue below which an eigenvalue is rounding error."""

# Below this ratio of squared distance to squared norms, a pair's direction is lost with the eigenvalues below RANK.
_EQUAL = 1e-12

# Error of a pair's direction, in units of p times the precision of float64 times the cancellation in its distance.
_ROUNDING = 4


@dataclass(frozen=True)
class Problem:
    """Eq. 5 in an orthonormal basis Q of span(G): r dimensions, N columns, T terms, p workers.

    The workers' terms come first, then the pairs' terms. A zero gradient has a zero column, with factor 0 if the worker
    has no other gradient.

    Attributes:
        basis: Coefficients (q, r) of Q in the q unit gradients.
        terms: Columns (r, N) of the terms t_k, in the basis Q.
        owner: Index (N,) of the term that each column belongs to.
        factors: Factors c_k (T,) of the terms.
        p: Number of workers.
        m: Number of columns of Y.
        a: Inverse of the power.
        unresolved: Upper bound on the terms of pairs that differ, but are too close for a direction.
        errors: Bound on the error of each term's squared length, (T,); None for 0.
        offsets: Added to the squared length of each term's residual, (T,); None for 0. Negative for what no Y of m
            columns can explain, positive for the part of a pair's direction outside the basis.
    """

    basis: Float64[np.ndarray, "q r"]
    terms: Float64[np.ndarray, "r N"]
    owner: Int[np.ndarray, " N"]
    factors: Float64[np.ndarray, " T"]
    p: int
    m: int
    a: float
    unresolved: float = 0.0
    errors: Float64[np.ndarray, " T"] | None = None
    offsets: Float64[np.ndarray, " T"] | None = None

    def objective(self, residuals: Float64[np.ndarray, " T"]) -> float:
        """Evaluate eq. 5 with the power 1/a.

        Args:
            residuals: 1 - v of each term, (T,).

        Returns:
            The value, without a norm of Y.
        """
        return float(self.factors @ residuals ** (1 / self.a))

    def smoothed_objective(self, residuals: Float64[np.ndarray, " T"]) -> float:
        """Evaluate eq. 5 with the power replaced by its tangent below FLOOR; every step of IRLS lowers this value.

        Args:
            residuals: 1 - v of each term, (T,).

        Returns:
            The value, without a norm of Y.
        """
        floored = np.maximum(residuals, FLOOR)
        below = np.minimum(residuals - FLOOR, 0.0) * FLOOR ** (1 / self.a - 1) / self.a
        return float(self.factors @ (floored ** (1 / self.a) + below))

    def objective_error_bound(self, residuals: Float64[np.ndarray, " T"]) -> float:
        """Bound the error of the objective.

        A term with a residual below FLOOR may be wrong by c_k FLOOR^(1/a), and a pair's term by the rounding error of
        its direction. A pair that is too close for a direction counts with its largest possible term.

        Args:
            residuals: 1 - v of each term, (T,).

        Returns:
            The bound, at least 0.
        """
        total = float(self.factors[residuals < FLOOR].sum() * FLOOR ** (1 / self.a)) + self.unresolved
        if self.errors is not None:
            highest, lowest = residuals + self.errors, np.maximum(residuals - self.errors, 0.0)
            total += self.objective(highest) - self.objective(lowest)
        return total

    def weights(self, residuals: Float64[np.ndarray, " T"]) -> Float64[np.ndarray, " T"]:
        """Compute the weights w_k = (1 - v_k)^(1/a - 1): the slopes of the tangents, up to the factor 1/a.

        Args:
            residuals: 1 - v of each term, (T,); values below FLOOR count as FLOOR.

        Returns:
            The weights (T,), float64.
        """
        weights: np.ndarray = np.maximum(residuals, FLOOR) ** (1 / self.a - 1)
        return weights

    def residuals(self, complement: Float64[np.ndarray, "r s"]) -> Float64[np.ndarray, " T"]:
        """Compute the residuals 1 - v_k of the terms under a subspace.

        They are squared lengths in the orthogonal complement. Subtracting the length in the subspace from 1 would
        cancel.

        Args:
            complement: Orthonormal basis (r, s) of the subspace's orthogonal complement in span(G).

        Returns:
            The residuals (T,), float64.
        """
        lengths = np.square(complement.T @ self.terms).sum(axis=0)
        residuals = np.bincount(self.owner, lengths, minlength=self.factors.size)
        return residuals if self.offsets is None else np.maximum(residuals + self.offsets, 0.0)

    def second_moment(
        self, weights: Float64[np.ndarray, " T"], axes: Float64[np.ndarray, "r s"] | None = None
    ) -> Float64[np.ndarray, "s s"]:
        """Compute the weighted second moment sum_k weights_k t_k t_k^T of the terms.

        Args:
            weights: Weight of each term, (T,), its factor c_k included.
            axes: Orthonormal vectors (r, s) in whose coordinates the moment is; None for the basis Q.

        Returns:
            The moment (s, s), float64; s = r without `axes`.
        """
        terms = self.terms if axes is None else axes.T @ self.terms
        moment: np.ndarray = (terms * weights[self.owner]) @ terms.T
        return moment


def build_problem(
    gram: Gram,
    m: int,
    lam: float,
    a: float,
    formulation: Formulation = "paper",
    counts: Sequence[int] | None = None,
    worker_weights: Any = None,
    group_term: GroupTerm = "fraction",
) -> Problem:
    """Write eq. 5 for some gradients in an orthonormal basis of their span.

    Args:
        gram: Gram matrix of the q gradients.
        m: Number of columns of Y.
        lam: Weight of the pairwise regularizer; 0 leaves the pairs out.
        a: Inverse of the power.
        formulation: "paper" for the pairs of eq. 5, "released" for those of the released code.
        counts: Number of gradients of each worker; None for one each.
        worker_weights: Weight c_i of each worker, as in `fa.irls.worker_weights`; None for 1.
        group_term: Term of a worker with several gradients.

    Returns:
        The terms, factors and basis, float64.

    Raises:
        ValueError: lam is not 0 and a worker has several gradients, or there are more or fewer weights than workers.
    """
    counts = (1,) * gram.p if counts is None else tuple(counts)
    check(
        "lam",
        lam,
        bool(lam == 0) or len(counts) == gram.p,
        "0 where a worker has several gradients, which form no pairs",
    )
    eigenvalues, vectors = nonzero_eigenpairs(gram.cosines, 1.0)
    owner = np.repeat(np.arange(len(counts)), counts)
    of_worker = norm_fractions(gram, owner)
    roots, nonzero = np.sqrt(eigenvalues), gram.scaled_norms > 0
    unit = (vectors * roots).T * nonzero
    weights = np.ones(len(counts))
    if worker_weights is not None:
        weights = np.array(read_weights(worker_weights, len(counts)))
    differences, factors = _pairs(gram, lam, formulation, weights)
    pairs = unit @ differences
    errors, lost = _direction_errors(gram, pairs) if factors.any() and formulation == "paper" else (None, None)
    of_workers = np.zeros(len(counts))
    problem = Problem(
        basis=vectors / roots * nonzero[:, None],
        terms=np.hstack([unit * of_worker, pairs]),
        owner=np.concatenate([owner, len(counts) + np.arange(factors.size)]),
        factors=np.concatenate([weights * (np.bincount(owner, of_worker) > 0), factors]).astype(np.float64),
        p=len(counts),
        m=m,
        a=a,
        unresolved=_unresolved(gram, lam, formulation, weights),
        errors=None if errors is None else np.concatenate([of_workers, errors]),
        offsets=None if lost is None or not lost.any() else np.concatenate([of_workers, lost]),
    )
    return _chordal(problem, unit) if group_term == "chordal" else problem


def _chordal(problem: Problem, unit: Float64[np.ndarray, "r q"]) -> Problem:
    """Replace each worker's term by the chordal one, over s = min(m, k) so that 1 - v stays in [0, 1].

    The factor s^(1/a) makes up for the division. For k > m, k - m of the basis' squared length is out of reach.
    """
    terms, factors = problem.terms.copy(), problem.factors.copy()
    offsets = np.zeros(factors.size) if problem.offsets is None else problem.offsets.copy()
    for worker in range(problem.p):
        columns = problem.owner == worker
        vectors, lengths, _ = np.linalg.svd(unit[:, columns[: unit.shape[1]]], full_matrices=False)
        if not lengths.any():
            continue
        within = lengths > np.sqrt(RANK) * lengths[0]
        k = int(within.sum())
        s = min(problem.m, k)
        basis = np.zeros((len(terms), int(columns.sum())))
        basis[:, :k] = vectors[:, within] / np.sqrt(s)
        terms[:, columns] = basis
        factors[worker] *= s ** (1 / problem.a)
        offsets[worker] = -(k - s) / s
    return replace(problem, terms=terms, factors=factors, offsets=offsets if offsets.any() else None)


def nonzero_eigenpairs(
    matrix: Float64[np.ndarray, "q q"], scale: float = 0.0
) -> tuple[Float64[np.ndarray, " r"], Float64[np.ndarray, "q r"]]:
    """Compute the eigenpairs of a positive semidefinite matrix without those of rounding errors.

    Args:
        matrix: Symmetric matrix (q, q).
        scale: Least value that counts as the largest eigenvalue.

    Returns:
        The eigenvalues (r,) above `RANK` times the largest, in ascending order, and their eigenvectors (q, r).
    """
    eigenvalues, vectors = np.linalg.eigh(matrix)
    nonzero = eigenvalues > RANK * max(eigenvalues[-1], scale)
    return eigenvalues[nonzero], vectors[:, nonzero]


def norm_fractions(gram: Gram, owner: Int[np.ndarray, " q"]) -> Float64[np.ndarray, " q"]:
    """Divide each gradient's norm by the Frobenius norm of all gradients of the same worker.

    Args:
        gram: Gram matrix of the q gradients.
        owner: Worker of each gradient, (q,).

    Returns:
        The fractions (q,), which are 1 for a worker's only gradient, and 0 for a zero gradient.
    """
    if owner.size == owner[-1] + 1:
        return (gram.scaled_norms > 0).astype(np.float64)
    largest = np.zeros(owner[-1] + 1)  # Squares of norms over the worker's largest do not underflow.
    np.maximum.at(largest, owner, gram.clipped_norms)
    relative = np.divide(gram.clipped_norms, largest[owner], out=np.zeros(gram.p), where=largest[owner] > 0)
    together = np.sqrt(np.bincount(owner, np.square(relative)))[owner]
    alone = np.bincount(owner)[owner] == 1
    several = np.divide(relative, together, out=np.zeros(gram.p), where=together > 0)
    return np.where(alone, gram.scaled_norms > 0, several)


def complement(Y: Float64[np.ndarray, "r m"]) -> Float64[np.ndarray, "r s"]:
    """Compute an orthonormal basis of an orthogonal complement.

    Args:
        Y: Matrix (r, m) with orthonormal columns.

    Returns:
        The basis (r, r - m) of the complement of its span.
    """
    rest: np.ndarray = np.linalg.svd(Y, full_matrices=True)[0][:, Y.shape[1] :]
    return rest


def _apart(gram: Gram) -> Bool[np.ndarray, " pairs"]:
    """Return which pairs are far enough from each other for the direction of their difference."""
    i, j = np.triu_indices(gram.p, 1)
    squares = np.square(gram.clipped_norms)
    apart: np.ndarray = gram.D2[i, j] > _EQUAL * (squares[i] + squares[j])
    return apart


def _unresolved(gram: Gram, lam: float, formulation: Formulation, weights: Float64[np.ndarray, " workers"]) -> float:
    """Bound the contribution of the pairs that differ, but are too close for a direction."""
    if lam == 0 or gram.p == 1 or formulation == "released":
        return 0.0
    different = gram.D2[np.triu_indices(gram.p, 1)] > 0
    return 2 * lam / (gram.p - 1) * float(_pair_weights(weights)[different & ~_apart(gram)].sum())


def _direction_errors(
    gram: Gram, pairs: Float64[np.ndarray, "r N"]
) -> tuple[Float64[np.ndarray, " N"], Float64[np.ndarray, " N"]]:
    """Return the error of the squared length of each pair's direction, and its part outside the basis.

    The directions of nearly equal gradients leave the basis with the eigenvalues below `RANK` times the largest, which
    may be p. A part that may be rounding error counts as 0.
    """
    i, j = np.triu_indices(gram.p, 1)
    squares, apart = np.square(gram.clipped_norms), _apart(gram)
    cancelled = np.divide(squares[i] + squares[j], gram.D2[i, j], out=np.zeros(i.size), where=apart)
    errors = _ROUNDING * gram.p * np.finfo(np.float64).eps * cancelled
    return errors, np.maximum(1 - errors - np.square(pairs).sum(axis=0), 0.0) * apart


def _pair_weights(weights: Float64[np.ndarray, " workers"]) -> Float64[np.ndarray, " pairs"]:
    """Return c_i c_j over the mean weight, for each pair; 1 for equal weights."""
    i, j = np.triu_indices(weights.size, 1)
    products: np.ndarray = weights[i] * weights[j] / weights.mean()
    return products


def _pairs(
    gram: Gram, lam: float, formulation: Formulation, weights: Float64[np.ndarray, " workers"]
) -> tuple[Float64[np.ndarray, "p N"], Float64[np.ndarray, " N"]]:
    """Return the pairs' terms as coefficients of the unit gradients (p, N), and their factors c (N,); N = 0 if lam = 0.

    - "paper": (g_i - g_j)/D_ij, each pair twice, divided by p - 1.
    - "released": x_i - x_j, not divided by its length, in columns with the factor lam/(p(p - 1)). The eigenvectors are
      those of the columns' second moment, so the factor is squared here.

    The factors are multiplied by `_pair_weights`.
    """
    p = gram.p
    if lam == 0 or p == 1:
        return np.zeros((p, 0)), np.zeros(0)
    i, j = np.triu_indices(p, 1)
    columns = np.arange(i.size)
    differences = np.zeros((p, i.size))
    if formulation == "released":
        differences[i, columns], differences[j, columns] = 1.0, -1.0
        return differences, 2 * (lam / (p * (p - 1))) ** 2 * _pair_weights(weights)
    apart = _apart(gram)
    distances = np.where(apart, np.sqrt(gram.D2[i, j]), np.inf)
    norms = gram.clipped_norms
    differences[i, columns], differences[j, columns] = norms[i] / distances, -norms[j] / distances
    return differences, np.where(apart, 2 * lam / (p - 1) * _pair_weights(weights), 0.0)
