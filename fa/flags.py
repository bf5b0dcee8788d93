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
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fa import irls
from fa.gradients import read_groups
from fa.gradients.gram import measure_groups
from fa.gradients.inputs import is_matrix
from fa.utils.blas import single_threaded
from fa.utils.validation import check, check_integer

Square = Float64[np.ndarray, "r r"]

_NAMED = 1e-10  # of a named direction's squared length, or of the largest singular value: below it is rounding


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
        coefficients = self.levels[-1].coefficients
        assert coefficients is not None  # a flag stays in the span of G
        return coefficients

    def direction(self, level: int = -1, formulation: irls.Formulation = "paper") -> Any:
        """d (n,) of that level, as irls.Solution gives it."""
        return self.levels[level].direction(formulation)


@single_threaded
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
) -> Flag:
    """The nested subspaces of the dimensions dims, m_1 < ... < m_K <= rank of G, that make eq. 5 of all levels small.

    It begins at the subspace that `fa.irls.solve` finds for the outermost level, its columns in the order of what they
    explain; the best of this and `restarts` random bases counts. `start` and the other arguments are as there. Raises
    ValueError as there, and for dims that do not increase or exceed the rank of G.
    """
    check_integer("restarts", restarts, 0)
    gradients, counts, gram = measure_groups(G)
    _check_dims(dims, gram.p)
    options = irls.Options(dims[-1], lam, a=a, tol=tol, max_iter=max_iter, seed=seed)
    outer = irls.solve_gram(gram, options, gradients, start=start, counts=counts)
    problem = irls.build_problem(gram, dims[-1], lam, a, counts=counts)
    rank, generator = len(problem.terms), np.random.default_rng(seed)
    check("the last of dims", dims[-1], dims[-1] <= rank, f"at most {rank}, the rank of G")
    random = (np.linalg.qr(generator.standard_normal((rank, rank)))[0] for _ in range(restarts))
    flags = [_iterate(problem, dims, Y, outer, tol, max_iter) for Y in (_in_order(problem, outer), *random)]
    return min(flags, key=lambda flag: flag.objective)


def _iterate(
    problem: irls.Problem, dims: Sequence[int], Y: Square, outer: irls.Solution, tol: float, max_iter: int
) -> Flag:
    smoothed, converged = [_smoothed(problem, dims, Y)], False
    while len(smoothed) <= max_iter and not converged:
        Y = step(problem, dims, Y)
        smoothed.append(_smoothed(problem, dims, Y))
        converged = abs(sum(smoothed[-1]) - sum(smoothed[-2])) < tol
    return Flag(tuple(_levels(problem, dims, Y, outer, smoothed[1:])), converged)


def step(problem: irls.Problem, dims: Sequence[int], Y: Square) -> Square:
    """One pass over the pairs of blocks. Y is all of an orthonormal basis, its first m_K columns those of the flag."""
    Y, edges = Y.copy(), (0, *dims, len(Y))
    for j, k in combinations(range(len(dims) + 1), 2):
        columns = np.r_[edges[j] : edges[j + 1], edges[k] : edges[k + 1]]
        weights = np.sum([problem.weights(problem.residuals(Y[:, m:])) for m in dims[j:k]], axis=0)
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


def _in_order(problem: irls.Problem, outer: irls.Solution) -> Square:
    """A basis whose first columns span the solution's subspace, by what they explain under its weights."""
    unit = problem.basis.T @ (outer.gram.cosines @ (outer.gram.norms[:, None] * outer.coefficients))
    Y = np.linalg.qr(unit, mode="complete")[0]
    weights = problem.weights(problem.residuals(Y[:, outer.m :]))
    return np.hstack([_by_variance(problem, Y[:, : outer.m], weights), Y[:, outer.m :]])


def _smoothed(problem: irls.Problem, dims: Sequence[int], Y: Square) -> list[float]:
    return [problem.smoothed_objective(problem.residuals(Y[:, m:])) for m in dims]


def _levels(
    problem: irls.Problem,
    dims: Any,
    Y: Square,
    outer: irls.Solution,
    smoothed: list[list[float]],
) -> Iterator[irls.Solution]:
    """Each level as a solution of its own."""
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


def _check_dims(dims: Any, q: int) -> None:
    check("dims", dims, isinstance(dims, Sequence) and len(dims) > 0, "a sequence of one dimension at least")
    for m in dims:
        check_integer("each of dims", m, 1)
    check("dims", tuple(dims), all(m < larger for m, larger in pairwise(dims)), "increasing")
    check("the last of dims", dims[-1], dims[-1] <= q, f"at most p = {q}, the number of gradients")


def hints(G: Any, relevant: Any, m: int | None = None) -> Any:
    """A start for `fa.irls.solve` and `solve` from what workers name as relevant: (n, k) orthonormal, of G's kind.

    relevant: an entry a worker: indices of coordinates, (k_i,) integers, or directions, (n, k_i), or None where a
    worker names nothing. With P_i the projector on what worker i names, the start spans the k <= m dimensions (default
    ceil((p + 1)/2)) of span(G) with the largest sum_i tr(Y^T P_i Y): fewer than m where no more are named, and where
    none is, IRLS starts from equal weights. How long the directions are does not matter. Of G only the columns of the
    named coordinates are taken.

    The paper, section 2.1: workers may specify dimensions, "which may be used for smart initialization also". Raises
    ValueError for another number of entries, an index out of range, and an entry that is empty or of another shape.
    """
    gradients, counts, gram = measure_groups(G)
    named = _read(relevant, counts, gradients.G)
    rows = gram.divide_by_norms(irls.build_problem(gram, 1, 0.0, 2.0, counts=counts).basis)
    parts = [rows.T @ _inside(gradients.G, part).double().cpu().numpy() for part in named if part is not None]
    lengths, vectors = np.linalg.eigh(sum((part @ part.T for part in parts), np.zeros((rows.shape[1],) * 2)))
    m = irls.default_m(len(counts)) if m is None else m
    check_integer("m", m, 1)
    chosen = rows @ vectors[:, lengths > _NAMED][:, ::-1][:, :m]
    return gradients.restore(gradients.G.T @ torch.from_numpy(chosen).to(gradients.G))


def restrict(G: Any, relevant: Any) -> Any:
    """The gradients P_i g_i, of each worker only what it names as relevant, in the form in which G came.

    relevant and the ValueErrors: as for `hints`; None keeps all of a worker's gradient. Whatever takes gradients takes
    these. In IRLS and flags worker i then has v_i = ||Y^T P_i g_i||^2/||P_i g_i||^2: it counts with what is relevant to
    it alone, a worker without any of it is a zero gradient, and d is 0 outside of what the workers together name.

    The paper, section 2.1, says that workers "may specify dimensions along which gradient information is relevant",
    and no more; P_i g_i is that information. Other readings: 1 - ||Y^T P_i g_i||^2/||g_i||^2, where a worker counts by
    how much of its gradient is relevant; or one restriction for all, Y within the span of everything that is named.
    """
    gradients, counts = read_groups(G)
    named = _read(relevant, counts, gradients.G)
    parts = [_project(rows, part) for rows, part in zip(gradients.G.split(counts), named, strict=True)]
    if isinstance(G, Tensor | np.ndarray):
        return gradients.restore(torch.cat(parts))
    return [gradients.restore(part if is_matrix(entry) else part[0]) for entry, part in zip(G, parts, strict=True)]


def _read(relevant: Any, counts: tuple[int, ...], G: Float[Tensor, "q n"]) -> list[Tensor | None]:
    """Of each worker the indices (k,) or an orthonormal basis (n, k) of what it names."""
    listed = isinstance(relevant, Sequence) and not isinstance(relevant, str)
    check("relevant", type(relevant).__name__, listed, "a list with one entry a worker")
    check("the length of relevant", len(relevant), len(relevant) == len(counts), f"p = {len(counts)}")
    return [None if entry is None else _named(f"relevant[{i}]", entry, G) for i, entry in enumerate(relevant)]


def _named(name: str, entry: Any, G: Float[Tensor, "q n"]) -> Tensor:
    n = G.shape[1]
    try:
        named = torch.as_tensor(entry if isinstance(entry, Tensor) else np.asarray(entry), device=G.device).detach()
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be an array, got {entry!r}") from None
    found = (tuple(named.shape), str(named.dtype).removeprefix("torch."))
    check(name, found, named.numel() > 0, "not empty; None says that a worker names nothing")
    if named.ndim == 1 and not (named.is_floating_point() or named.is_complex() or named.dtype == torch.bool):
        outside = named[(named < 0) | (named >= n)]
        check(name, outside[:3].tolist(), not len(outside), f"of indices from 0 to n - 1 = {n - 1}")
        indices: Tensor = torch.unique(named.long())
        return indices
    directions = named.ndim == 2 and len(named) == n and named.is_floating_point()
    check(name, found, directions, f"indices, (k,) integers, or directions, ({n}, k) floating-point numbers")
    return _orthonormal(name, named.double()).to(torch.promote_types(G.dtype, torch.float32))


def _orthonormal(name: str, directions: Float64[Tensor, "n k"]) -> Float64[Tensor, "n r"]:
    """A basis of the span; each direction is first divided by its largest entry, so that no length counts."""
    largest = directions.abs().amax(dim=0)
    usable = torch.isfinite(largest) & (largest > 0)
    if not usable.all():
        raise ValueError(f"{name} must be finite and not 0 in each column; column {int(usable.int().argmin())} is not")
    basis, lengths, _ = torch.linalg.svd(directions / largest, full_matrices=False)
    kept: Tensor = basis[:, lengths > _NAMED * lengths[0]]
    return kept


def _inside(rows: Float[Tensor, "q n"], named: Tensor) -> Float[Tensor, "q k"]:
    """The rows in an orthonormal basis of what is named."""
    return torch.mm(rows.to(named.dtype), named) if named.is_floating_point() else rows.index_select(1, named)


def _project(rows: Float[Tensor, "q n"], named: Tensor | None) -> Float[Tensor, "q n"]:
    if named is None:
        return rows
    inside = _inside(rows, named)
    if named.is_floating_point():
        return torch.mm(inside, named.T).to(rows.dtype)
    return torch.index_copy(torch.zeros_like(rows), 1, named, inside)
