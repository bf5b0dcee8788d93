"""Flags, which are nested subspaces span(Y_1) < ... < span(Y_K).

    min over Y^T Y = I of  sum_k A(Y_k),     Y_k the first m_k columns of Y,     m_1 < ... < m_K

A is eq. 5. The paper (section 2.1) parametrises Y as follows: "as a nested sequence of Y_k, k = 1, ..., K where
m_k < m_{k+1} <= p". It gives neither weights for the levels nor a solver.

As in IRLS, the tangents of the powers bound the objective by -sum_k tr(Y_k^T A_k Y_k). There is no closed form for the
minimum over all Y, but there is one for two blocks of columns. Block k has the columns that level k adds to the
level before it, and the last block is the rest of span(G). The span of two blocks j < l stays the same. Block j becomes
the top eigenvectors of A_j + ... + A_{l-1} in that span.

One iteration does this for every pair of blocks, with new weights for each pair. It never raises the smoothed
objective. A point that no pair changes is stationary on the flag manifold, whose tangent space consists of these pairs.
With one level, this is a step of IRLS.

Source: the paper, section 2.1; Ye, Wong and Lim, Optimization on flag manifolds, Mathematical Programming 2022.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from jaxtyping import Float64

from fa import irls
from fa.gradients import Gradients
from fa.gradients.gram import Gram
from fa.gradients.measurement import measure_groups
from fa.utils.ambient import usual_float_errors
from fa.utils.blas import single_threaded
from fa.utils.validation import check, check_integer

Square = Float64[np.ndarray, "r r"]


@dataclass(frozen=True)
class Flag:
    """Result of `solve`.

    Attributes:
        levels: Solution of each level, from the innermost to the outermost. Each has its own part of the objective and
            of the history, its explained variances, and the first m_k columns.
        converged: True if the last iteration changed the smoothed objective by less than tol.
    """

    levels: tuple[irls.Solution, ...]
    converged: bool

    @property
    def dims(self) -> tuple[int, ...]:
        """Return the dimensions m_1 < ... < m_K of the levels."""
        return tuple(level.m for level in self.levels)

    @property
    def objective(self) -> float:
        """Return eq. 5, summed over the levels."""
        return sum(level.objective for level in self.levels)

    @property
    def history(self) -> tuple[float, ...]:
        """Return the smoothed objective after each iteration, summed over the levels; it never rises."""
        return tuple(map(sum, zip(*(level.history for level in self.levels), strict=True)))

    @property
    def values(self) -> Float64[np.ndarray, "K p"]:
        """Return the explained variances v_i of each level, (K, p) float64; they grow from level to level."""
        return np.array([level.values for level in self.levels])

    @property
    def coefficients(self) -> Float64[np.ndarray, "q m"]:
        """Return the coefficients C (q, m_K) with Y = G^T C, float64."""
        coefficients = self.levels[-1].coefficients
        assert coefficients is not None  # A flag stays in the span of G.
        return coefficients

    def direction(self, level: int = -1, formulation: irls.Formulation | None = None) -> Any:
        """Compute the direction d of one level, as `fa.irls.Solution.direction` does.

        Args:
            level: Index of the level; the default is the outermost.
            formulation: "paper" or "released"; None for the level's, which is "paper".

        Returns:
            d (n,), of the gradients' kind, dtype and device.
        """
        return self.levels[level].direction(formulation)


@usual_float_errors()
def solve(
    G: Any,
    dims: Any,
    lam: float = irls.DEFAULTS.lam,
    a: float = irls.DEFAULTS.a,
    tol: float = irls.DEFAULTS.tol,
    max_iter: int = 100,
    start: Any = "equal",
    restarts: int = irls.DEFAULTS.restarts,
    seed: int = irls.DEFAULTS.seed,
    worker_weights: Any = irls.DEFAULTS.worker_weights,
) -> Flag:
    """Find nested subspaces that make the sum of eq. 5 over all levels small.

    The first start is the subspace that `fa.irls.solve` finds for the outermost level, with its columns in order of
    their explained variance. The result is the best end from this start and from `restarts` random bases.

    Args:
        G: Gradients, as for `fa.irls.solve`.
        dims: Dimensions m_1 < ... < m_K, at most the rank of G.
        lam: Weight of the pairwise regularizer, at least 0.
        a: Inverse of the power, at least 1; the paper has 2.
        tol: Change of the smoothed objective below which the iteration stops.
        max_iter: Largest number of iterations.
        start: Start of the outermost level, as for `fa.irls.solve`.
        restarts: Number of further, random starts.
        seed: Seed of the random starts.
        worker_weights: Weight c_i > 0 of each worker, as for `fa.irls.solve`, in every level. None for 1.

    Returns:
        The flag, with one solution per level.

    Raises:
        ValueError: `dims` does not increase or exceeds the rank of G, or as for `fa.irls.solve`.

    Example:
        >>> import numpy as np
        >>> from fa import flags
        >>> G = np.array([[2.0, 1.0, 0.0], [2.0, -1.0, 0.0], [0.0, 0.0, 5.0]])
        >>> flag = flags.solve(G, [1, 2])
        >>> (flag.values > 0.5).tolist()
        [[False, False, True], [True, True, True]]
        >>> round(flag.objective, 4)
        2.8944
    """
    dims = dims.tolist() if isinstance(dims, np.ndarray) else dims
    gradients, counts, gram = measure_groups(G)
    check_dims(dims, gram.p)
    options = irls.Options(
        m=dims[-1],
        lam=lam,
        a=a,
        tol=tol,
        max_iter=max_iter,
        restarts=restarts,
        seed=seed,
        worker_weights=worker_weights,
    )
    return solve_gram(gram, dims, options, gradients, start, counts)


@usual_float_errors()
@single_threaded
def solve_gram(
    gram: Gram,
    dims: Sequence[int],
    options: irls.Options,
    gradients: Gradients | None = None,
    start: Any = "equal",
    counts: Sequence[int] | None = None,
) -> Flag:
    """Solve as `solve` does, from the Gram matrix.

    Args:
        gram: Gram matrix of the q gradients.
        dims: Dimensions m_1 < ... < m_K, at most the rank of G.
        options: Options of `fa.irls.solve_gram`; their m does not count.
        gradients: The gradients, for the levels' directions and for hints; None if only the Gram matrix is available.
        start: Start of the outermost level, as for `fa.irls.solve_gram`.
        counts: Number of gradients of each worker; None for one each.

    Returns:
        The flag. Its `direction` needs `gradients`.

    Raises:
        ValueError: As for `solve`, or the term of the options is "chordal". It depends on m, so each level would need
            terms of its own.
    """
    check_dims(dims, gram.p)
    check("group_term", options.group_term, options.group_term == "fraction", '"fraction" with nested subspaces')
    outer = irls.solve_gram(gram, replace(options, m=dims[-1], restarts=0), gradients, start=start, counts=counts)
    problem = outer.problem
    rank, generator = len(problem.terms), np.random.default_rng(options.seed)
    check("the last of dims", dims[-1], dims[-1] <= rank, f"at most {rank}, the rank of G")
    random = (np.linalg.qr(generator.standard_normal((rank, rank)))[0] for _ in range(options.restarts))
    starts = (_in_order(problem, outer), *random)
    tol = options.tol * irls.mean_weight(options.worker_weights)
    flags = [_iterate(problem, dims, Y, outer, tol, options.max_iter) for Y in starts]
    return min(flags, key=lambda flag: flag.objective)


def _iterate(
    problem: irls.Problem, dims: Sequence[int], Y: Square, outer: irls.Solution, tol: float, max_iter: int
) -> Flag:
    """Iterate from the basis Y until the smoothed objective changes by less than tol."""
    smoothed, converged = [_smoothed(problem, dims, Y)], False
    while len(smoothed) <= max_iter and not converged:
        Y = step(problem, dims, Y)
        smoothed.append(_smoothed(problem, dims, Y))
        converged = abs(sum(smoothed[-1]) - sum(smoothed[-2])) < tol
    return Flag(tuple(_levels(problem, dims, Y, replace(outer, converged=converged), smoothed[1:])), converged)


def step(problem: irls.Problem, dims: Sequence[int], Y: Square) -> Square:
    """Make one pass over the pairs of blocks.

    Args:
        problem: Terms of eq. 5, in r dimensions.
        dims: Dimensions of the levels.
        Y: Orthonormal basis (r, r), whose first m_K columns are those of the flag.

    Returns:
        The new basis (r, r).

    Example:
        >>> import numpy as np
        >>> from fa import flags, irls
        >>> G = np.array([[2.0, 1.0, 0.0], [2.0, -1.0, 0.0], [0.0, 0.0, 5.0]])
        >>> Y = flags.step(irls.solve(G).problem, [1, 2], np.eye(3))
        >>> bool(np.allclose(Y.T @ Y, np.eye(3)))
        True
    """
    Y, edges = Y.copy(), (0, *dims, len(Y))
    for j, k in combinations(range(len(dims) + 1), 2):
        columns = np.r_[edges[j] : edges[j + 1], edges[k] : edges[k + 1]]
        weights = np.sum([problem.weights(problem.residuals(Y[:, m:])) for m in dims[j:k]], axis=0)
        Y[:, columns] = _by_variance(problem, Y[:, columns], weights)
    return Y


def _by_variance(
    problem: irls.Problem, Y: Float64[np.ndarray, "r s"], weights: Float64[np.ndarray, " T"]
) -> Float64[np.ndarray, "r s"]:
    """Rotate Y to the eigenvectors of the weighted second moment in its span, the largest first."""
    moment = problem.second_moment(problem.factors * weights, Y)
    rotated: np.ndarray = Y @ np.linalg.eigh(moment)[1][:, ::-1]
    return rotated


def _in_order(problem: irls.Problem, outer: irls.Solution) -> Square:
    """Complete the solution's basis, with its first m columns in order of their explained variance."""
    Y = np.linalg.qr(outer.coordinates, mode="complete")[0]
    weights = problem.weights(problem.residuals(Y[:, outer.m :]))
    return np.hstack([_by_variance(problem, Y[:, : outer.m], weights), Y[:, outer.m :]])


def _smoothed(problem: irls.Problem, dims: Sequence[int], Y: Square) -> list[float]:
    """Compute the smoothed objective of each level."""
    return [problem.smoothed_objective(problem.residuals(Y[:, m:])) for m in dims]


def _levels(
    problem: irls.Problem,
    dims: Any,
    Y: Square,
    outer: irls.Solution,
    smoothed: list[list[float]],
) -> Iterator[irls.Solution]:
    """Yield each level as a solution."""
    coefficients = outer.gram.divide_by_norms(problem.basis @ Y)
    for m, history in zip(dims, zip(*smoothed, strict=True), strict=True):
        residuals = problem.residuals(Y[:, m:])
        yield replace(
            outer,
            objective=problem.objective(residuals),
            objective_error_bound=problem.objective_error_bound(residuals),
            history=history,
            values=1.0 - residuals[: problem.p],
            coefficients=coefficients[:, :m],
            m=m,
        )


def check_dims(dims: Any, q: int | None = None) -> None:
    """Check the dimensions of a flag.

    Args:
        dims: A sequence of dimensions.
        q: Number of gradients; None if it is not available yet.

    Raises:
        ValueError: The dimensions are not integers that increase and do not exceed q.
    """
    check("dims", dims, isinstance(dims, Sequence) and len(dims) > 0, "a sequence of one dimension at least")
    for m in dims:
        check_integer("each of dims", m, 1)
    check("dims", tuple(dims), all(m < larger for m, larger in pairwise(dims)), "increasing")
    if q is not None:
        check("the last of dims", dims[-1], dims[-1] <= q, f"at most p = {q}, the number of gradients")
