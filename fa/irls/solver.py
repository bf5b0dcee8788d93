"""Minimise eq. 5 by iteratively reweighted least squares (FlagIRLS) in the Gram matrix.

    min over Y^T Y = I of  sum_k c_k (1 - ||Y^T t_k||^2)^(1/a)

The terms t_k are:

- the unit gradients x_i = g_i/||g_i||, with c = 1;
- with lam > 0, the unit differences (g_i - g_j)/D_ij of every pair, with c = 2 lam/(p - 1): eq. 5 counts each pair
  twice.

`fa.irls.worker_weights` describes the c of workers that differ.

The power is concave in ||Y^T t_k||^2, so its tangent bounds it from above. The minimiser of the tangents is the top m
eigenvectors of sum_k c_k w_k t_k t_k^T, with w = (1 - v)^(1/a - 1). A step to it does not raise the objective.

All matrices are in an orthonormal basis of span(G), of at most p dimensions, so no array has size n. A worker with k_i
gradients has one term of k_i columns, with Frobenius norm 1 together.

The problem is not convex: the solution depends on the start. The default start has equal weights.

Source: the paper, sections 2.2 and 2.3; Mankovich et al., The Flag Median and FlagIRLS, CVPR 2022.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64

from fa.gradients import Gradients
from fa.gradients.gram import Gram
from fa.gradients.measurement import measure_groups
from fa.irls import proximal
from fa.irls.problem import RANK, Formulation, GroupTerm, Problem, build_problem
from fa.irls.proximal import read_start
from fa.irls.solution import DEFAULTS, FORMULATIONS, Options, Solution
from fa.irls.worker_weights import mean_weight
from fa.utils.ambient import usual_float_errors
from fa.utils.blas import single_threaded
from fa.utils.tracing import untraced
from fa.utils.validation import check, check_one_of

STARTS = ("equal", "data", "random")
"""Names of starts of `solve`."""


@dataclass(frozen=True)
class State:
    """One iterate of IRLS.

    Attributes:
        Y: Basis (r, min(m, r)), in the basis of the problem.
        residuals: 1 - v of each term, (T,).
        smoothed_objective: Smoothed objective at Y.
    """

    Y: Float64[np.ndarray, "r m"]
    residuals: Float64[np.ndarray, " T"]
    smoothed_objective: float


@untraced
@usual_float_errors()
def solve(
    G: Any,
    m: int | None = DEFAULTS.m,
    lam: float = DEFAULTS.lam,
    regularizer: str = DEFAULTS.regularizer,
    a: float = DEFAULTS.a,
    tol: float = DEFAULTS.tol,
    max_iter: int = DEFAULTS.max_iter,
    start: Any = "equal",
    restarts: int = DEFAULTS.restarts,
    seed: int = DEFAULTS.seed,
    formulation: Formulation = "paper",
    worker_weights: Any = DEFAULTS.worker_weights,
    group_term: GroupTerm = DEFAULTS.group_term,
) -> Solution:
    """Find a subspace of m dimensions that makes eq. 5 small.

    The result is the best end of the iterations from `start` and from `restarts` random starts.

    With "group", the regularizer is the constant m where Y^T Y = I, so the solution is that for lam = 0.

    With "l1" and "rows", the steps are those of `fa.irls.proximal`, and more than 5 of them pay off. That module also
    describes useful values of lam. The starts then are:

    - "equal" and "data": the best end of three runs. They start at the solution for lam = 0, its first step, and unit
      columns.
    - "random" and the restarts: a random Y.
    - an array (n, m): that Y, such as the solution for the previous lam on a path.

    Args:
        G: Gradients (p, n), one worker per row, or any form that `fa.aggregate` accepts. A list of (k_i, n) arrays
            holds k_i gradients of worker i.
        m: Number of columns of Y; None for ceil((p + 1)/2).
        lam: Weight of the regularizer, at least 0.
        regularizer: "pairwise", "l1", "group" or "rows".
        a: Inverse of the power, at least 1; the paper has 2.
        tol: Change of the smoothed objective below which the iteration stops.
        max_iter: Largest number of steps.
        start: "equal" for equal weights, "data" for the span of the first m gradients, "random" for a random subspace.
            An array (n, k) starts at its span, as with the workers' hints; if k > m, at that of its m largest singular
            directions.
        restarts: Number of further, random starts.
        seed: Seed of the random starts.
        formulation: "paper" for the pairs and the direction of the paper, "released" for those of the released code.
        worker_weights: Weight c_i > 0 of each worker, in eq. 5 and in the direction; see `fa.irls.worker_weights`.
            None for 1.
        group_term: Term of a worker with several gradients: "fraction" or "chordal", as in
            `fa.irls.problem.GroupTerm`.

    Returns:
        The solution, of which `direction` and `weights` give the aggregate of the formulation.

    Raises:
        ValueError: An argument is out of range, or a row has NaN or Inf.

    Example:
        >>> import numpy as np
        >>> from fa import irls
        >>> G = np.array([[2.0, 1.0, 0.0], [2.0, -1.0, 0.0], [0.0, 0.0, 5.0]])
        >>> solution = irls.solve(G, m=1)
        >>> (solution.values > 0.5).tolist()
        [True, True, False]
        >>> round(solution.objective, 4)
        1.8944

    Source: the paper, eq. 5 and sections 2.2 and 2.3.
    """
    options = Options(
        m=m,
        lam=lam,
        regularizer=regularizer,
        a=a,
        tol=tol,
        max_iter=max_iter,
        restarts=restarts,
        seed=seed,
        worker_weights=worker_weights,
        group_term=group_term,
    )
    gradients, counts, gram = measure_groups(G)
    if not options.leaves_span:
        return solve_gram(gram, options, gradients, formulation, start, counts)
    word = start if isinstance(start, str) and start != "random" else "equal"
    limit, first = (
        solve_gram(gram, replace(options, lam=0.0, restarts=0, max_iter=steps), gradients, formulation, word, counts)
        for steps in (options.max_iter, 1)
    )
    solution = proximal.solve((limit, first), options, start)
    return replace(solution, Y=solution.Y.numpy()) if gradients.is_array else solution


@usual_float_errors()
@single_threaded
def solve_gram(
    gram: Gram,
    options: Options = DEFAULTS,
    gradients: Gradients | None = None,
    formulation: Formulation = "paper",
    start: Any = "equal",
    counts: Sequence[int] | None = None,
) -> Solution:
    """Solve as `solve` does, from the Gram matrix.

    Args:
        gram: Gram matrix of the q gradients.
        options: Options that do not depend on the gradients.
        gradients: The gradients, for the solution's direction and for hints; None if only the Gram matrix is available.
        formulation: As for `solve`.
        start: As for `solve`, or a function that returns the weights of the first step from the problem.
        counts: Number of gradients of each worker; None for one each.

    Returns:
        The solution. Its `direction` needs `gradients`.

    Raises:
        ValueError: The regularizer is "l1" or "rows", whose Y leaves span(G), or as for `solve`.
    """
    check_one_of("formulation", formulation, FORMULATIONS)
    if options.leaves_span:
        requirement = '"pairwise" or "group", whose Y is in the span of G'
        check("regularizer", options.regularizer, False, requirement, "Call irls.solve with the gradients.")
    constant, lam = (options.lam, 0.0) if options.regularizer == "group" else (0.0, options.lam)
    counts = (1,) * gram.p if counts is None else tuple(counts)
    m = default_m(len(counts)) if options.m is None else options.m
    check_m(m, gram.p)
    problem = build_problem(gram, m, lam, options.a, formulation, counts, options.worker_weights, options.group_term)
    runs = [
        iterate(problem, weights, options.tol * mean_weight(options.worker_weights), options.max_iter)
        for weights in _starts(problem, gram, gradients, start, options)
    ]
    states, converged = min(runs, key=lambda run: problem.objective(run[0][-1].residuals))
    last = states[-1]
    constant *= last.Y.shape[1]
    return Solution(
        objective=problem.objective(last.residuals) + constant,
        objective_error_bound=problem.objective_error_bound(last.residuals),
        history=tuple(state.smoothed_objective + constant for state in states),
        converged=converged,
        values=1.0 - last.residuals[: len(counts)],
        coefficients=gram.divide_by_norms(problem.basis @ last.Y),
        m=m,
        lam=options.lam,
        a=options.a,
        regularizer=options.regularizer,
        formulation=formulation,
        gram=gram,
        counts=counts,
        gradients=gradients,
        worker_weights=options.worker_weights,
        group_term=options.group_term,
    )


def default_m(p: int) -> int:
    """Return ceil((p + 1)/2), the paper's number of columns of Y.

    Args:
        p: Number of workers.

    Returns:
        The number of columns.
    """
    return -(-(p + 1) // 2)


def check_m(m: int, q: int) -> None:
    """Check that there are enough gradients for m columns of Y.

    Args:
        m: Number of columns of Y.
        q: Number of gradients.

    Raises:
        ValueError: m is larger than q.
    """
    check("m", m, m <= q, f"at most p = {q}, the number of gradients")


def _starts(
    problem: Problem, gram: Gram, gradients: Gradients | None, start: Any, options: Options
) -> Iterator[Float64[np.ndarray, " T"]]:
    """Yield the weights of the first step: for the chosen start, then for random ones."""
    generator = _random_subspaces(options.seed, (len(problem.terms), problem.m))
    if callable(start):
        yield start(problem)
    elif not isinstance(start, str):
        yield _weights_of(problem, _hints(problem, gram, gradients, start))
    else:
        check_one_of("start", start, STARTS)
        if start == "equal":
            yield np.ones_like(problem.factors)
        elif start == "data":
            yield _weights_of(problem, problem.terms[:, : problem.m])
        else:
            yield _weights_of(problem, next(generator))
    for _ in range(options.restarts):
        yield _weights_of(problem, next(generator))


def _random_subspaces(seed: int, shape: tuple[int, int]) -> Iterator[Float64[np.ndarray, "r m"]]:
    """Yield vectors that span random subspaces. The generator is slow to create, so only the first draw creates it."""
    generator = np.random.default_rng(seed)
    while True:
        yield generator.standard_normal(shape)


def _weights_of(problem: Problem, vectors: Float64[np.ndarray, "r k"]) -> Float64[np.ndarray, " T"]:
    """Compute the weights at the subspace that these vectors span."""
    axes, sizes, _ = np.linalg.svd(vectors, full_matrices=True)
    rank = int((sizes > RANK * max(sizes.max(initial=0.0), 1e-300)).sum())
    return problem.weights(problem.residuals(axes[:, min(rank, problem.m) :]))


def _hints(problem: Problem, gram: Gram, gradients: Gradients | None, hints: Any) -> Float64[np.ndarray, "r k"]:
    """Project vectors (n, k) on span(G), in the problem's basis."""
    if gradients is None:
        raise ValueError(f"start must be one of {STARTS} for a Gram matrix alone, got an array")
    G = gradients.G.double()
    vectors = read_start(hints).to(G.device)
    check("start", tuple(vectors.shape), vectors.ndim == 2 and len(vectors) == G.shape[1], f"of ({G.shape[1]}, k)")
    projected: np.ndarray = problem.basis.T @ gram.divide_by_norms((G @ vectors).cpu().numpy())
    return projected


def iterate(
    problem: Problem, weights: Float64[np.ndarray, " T"], tol: float, max_iter: int
) -> tuple[list[State], bool]:
    """Iterate from the weights of the first step.

    Args:
        problem: Terms of eq. 5.
        weights: Weight w_k of each term, (T,).
        tol: Change of the smoothed objective below which the iteration stops.
        max_iter: Largest number of steps, at least 1.

    Returns:
        The iterates, and True if the last two agree within tol.
    """
    states = [step(problem, weights)]
    while len(states) < max_iter:
        states.append(step(problem, problem.weights(states[-1].residuals)))
        if abs(states[-2].smoothed_objective - states[-1].smoothed_objective) < tol:
            return states, True
    return states, False


def step(problem: Problem, weights: Float64[np.ndarray, " T"]) -> State:
    """Take one step of IRLS: the top m eigenvectors of the terms' weighted second moment.

    Args:
        problem: Terms of eq. 5.
        weights: Weight w_k of each term, (T,).

    Returns:
        The new iterate.
    """
    _, vectors = np.linalg.eigh(problem.second_moment(problem.factors * weights))
    split = max(vectors.shape[0] - problem.m, 0)
    residuals = problem.residuals(vectors[:, :split])
    return State(vectors[:, split:], residuals, problem.smoothed_objective(residuals))
