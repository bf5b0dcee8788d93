"""Flags: nested subspaces span(Y_1) < ... < span(Y_K) of given dimensions, and workers that say what is relevant.

    min over Y^T Y = I of  sum_k A(Y_k),     Y_k the first m_k columns of Y,     m_1 < ... < m_K

A is eq. 5. The paper (section 2.1) parametrises Y "as a nested sequence of Y_k, k = 1, ..., K where m_k < m_{k+1} <= p"
and gives no weights to the levels, nor a solver. Here the tangents of the powers bound the objective by -sum_k tr(Y_k^T
A_k Y_k), as in IRLS. No closed form minimises that over all of Y, but over two of the blocks that Y's columns fall into
(those that level k adds to level k - 1; the last is the rest of span(G)) there is one: what the two span stays, so of
blocks j < l the first becomes the top eigenvectors of A_j + ... + A_{l-1} in that span. One iteration does so for every
pair of blocks, with weights taken anew each time; none raises the smoothed objective, and a point that no pair changes
is stationary on the flag manifold, whose tangent space is made of these pairs. With one level it is IRLS's step.

Source: the paper, section 2.1; Ye, Wong and Lim, Optimization on flag manifolds, Mathematical Programming 2022.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from jaxtyping import Float64

from fa import irls
from fa.checks import check_integer, require


@dataclass(frozen=True)
class Flag:
    """What was found: for each level an irls.Solution (its part of the objective and of the history, its values, the
    first m_k columns), from the innermost to the outermost.
    """

    levels: tuple[irls.Solution, ...]
    converged: bool

    @property
    def dims(self) -> tuple[int, ...]:
        """m_1 < ... < m_K."""
        return tuple(level.m for level in self.levels)

    @property
    def objective(self) -> float:
        """Eq. 5, summed over the levels."""
        return sum(level.objective for level in self.levels)

    @property
    def history(self) -> tuple[float, ...]:
        """The smoothed objective, summed over the levels, after each iteration: it never rises."""
        return tuple(map(sum, zip(*(level.history for level in self.levels), strict=True)))

    @property
    def values(self) -> Float64[np.ndarray, "K p"]:
        """The v_i of each level: a worker's grow from level to level."""
        return np.array([level.values for level in self.levels])

    @property
    def coefficients(self) -> Float64[np.ndarray, "q m"]:
        """C (q, m_K) with Y = G^T C."""
        return self.levels[-1].coefficients

    def direction(self, level: int = -1, reading: irls.Reading = "paper") -> Any:
        """d (n,) of that level, as irls.Solution gives it."""
        return self.levels[level].direction(reading)


def solve(
    G: Any,
    dims: Sequence[int],
    lam: float = irls.DEFAULTS.lam,
    a: float = irls.DEFAULTS.a,
    tol: float = irls.DEFAULTS.tol,
    max_iter: int = 100,
    start: Any = "equal",
    restarts: int = irls.DEFAULTS.restarts,
    seed: int = irls.DEFAULTS.seed,
) -> Flag:
    """The nested subspaces of the dimensions dims, m_1 < ... < m_K <= rank of G, that make eq. 5 of all levels small.

    It begins at the subspace that `fa.irls.solve` finds for the outermost level from this start (and restarts, seed),
    its columns in the order of what they explain. G and the other arguments, and the ValueErrors, are as there.
    """
    _check_dims(dims)
    outer = irls.solve(G, dims[-1], lam, "pairwise", a, tol, max_iter, start, restarts, seed)
    problem = irls.pose(outer.gram, dims[-1], lam, a, counts=outer.counts)
    rank = len(problem.terms)
    require(dims[-1] <= rank, "dims", tuple(dims), f"at most {rank}, the rank of G")
    Y = _in_order(problem, outer)
    smoothed, converged = [_smoothed(problem, dims, Y)], False
    while len(smoothed) <= max_iter and not converged:
        Y = step(problem, dims, Y)
        smoothed.append(_smoothed(problem, dims, Y))
        converged = abs(sum(smoothed[-1]) - sum(smoothed[-2])) < tol
    return Flag(tuple(_levels(problem, dims, Y, outer, smoothed[1:])), converged)


def step(problem: irls.Problem, dims: Sequence[int], Y: Float64[np.ndarray, "r r"]) -> Float64[np.ndarray, "r r"]:
    """One pass over the pairs of blocks. Y is all of an orthonormal basis, its first m_K columns those of the flag."""
    Y, edges = Y.copy(), (0, *dims, len(Y))
    for j, k in combinations(range(len(dims) + 1), 2):
        columns = np.r_[edges[j] : edges[j + 1], edges[k] : edges[k + 1]]
        weights = sum(problem.weights(problem.residuals(Y[:, m:])) for m in dims[j:k])
        Y[:, columns] = _by_variance(problem, Y[:, columns], weights)
    return Y


def _by_variance(
    problem: irls.Problem, Y: Float64[np.ndarray, "r s"], weights: Float64[np.ndarray, " T"]
) -> Float64[np.ndarray, "r s"]:
    """Another basis of the same span: the eigenvectors of the weighted second moment there, largest first."""
    terms = Y.T @ problem.terms
    moment = (terms * (problem.factors * weights)[problem.owner]) @ terms.T
    turned: np.ndarray = Y @ np.linalg.eigh(moment)[1][:, ::-1]
    return turned


def _in_order(problem: irls.Problem, outer: irls.Solution) -> Float64[np.ndarray, "r r"]:
    """A basis whose first columns span the solution's subspace, by what they explain under its weights."""
    unit = problem.basis.T @ (outer.gram.cosines @ (outer.gram.norms[:, None] * outer.coefficients))
    Y = np.linalg.qr(unit, mode="complete")[0]
    weights = problem.weights(problem.residuals(Y[:, outer.m :]))
    return np.hstack([_by_variance(problem, Y[:, : outer.m], weights), Y[:, outer.m :]])


def _smoothed(problem: irls.Problem, dims: Sequence[int], Y: Float64[np.ndarray, "r r"]) -> list[float]:
    return [problem.smoothed(problem.residuals(Y[:, m:])) for m in dims]


def _levels(
    problem: irls.Problem,
    dims: Sequence[int],
    Y: Float64[np.ndarray, "r r"],
    outer: irls.Solution,
    smoothed: list[list[float]],
) -> Iterator[irls.Solution]:
    """Each level as a solution of its own."""
    norms = outer.gram.norms[:, None]
    unit = problem.basis @ Y
    coefficients = np.divide(unit, norms, out=np.zeros_like(unit), where=norms > 0)
    for m, history in zip(dims, zip(*smoothed, strict=True), strict=True):
        residuals = problem.residuals(Y[:, m:])
        hidden = problem.factors[residuals < irls.FLOOR].sum() * irls.FLOOR ** (1 / problem.a)
        yield replace(
            outer,
            objective=problem.objective(residuals),
            resolution=outer.resolution + float(hidden),
            history=history,
            values=1.0 - residuals[: problem.p],
            coefficients=coefficients[:, :m],
            m=m,
        )


def _check_dims(dims: Sequence[int]) -> None:
    """ValueError unless the dimensions are integers of at least 1 that increase."""
    require(len(dims) > 0, "dims", dims, "at least one dimension")
    for m in dims:
        check_integer("each of dims", m, 1)
    require(all(m < larger for m, larger in pairwise(dims)), "dims", tuple(dims), "increasing")
