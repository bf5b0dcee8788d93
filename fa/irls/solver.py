"""FlagIRLS in the Gram matrix: the subspace Y that minimises eq. 5 by iteratively reweighted least squares.

    min over Y^T Y = I of  sum_k c_k (1 - ||Y^T t_k||^2)^(1/a)

The terms t_k are the unit gradients x_i = g_i/||g_i|| (c = 1) and, with lam > 0, the unit differences (g_i -
g_j)/D_ij of every pair (c = 2 lam/(p - 1), since eq. 5 counts each pair twice). The power is concave in ||Y^T
t_k||^2, so its tangent bounds it above and the tangent's minimiser, the top m eigenvectors of sum_k c_k w_k t_k t_k^T
with w = (1 - v)^(1/a - 1), does not raise the objective. Everything is written in an orthonormal basis of span(G), of
p dimensions at the most: nothing of size n is built. A worker with k_i gradients has one term of k_i columns, of
Frobenius norm 1 together.

The problem is not convex: where IRLS ends depends on where it starts, from equal weights if nothing else is said.

Source: the paper, sections 2.2 and 2.3; Mankovich et al., The Flag Median and FlagIRLS, CVPR 2022.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from fa.gradients import Gradients
from fa.gradients.gram import Gram, measure_groups
from fa.irls import proximal
from fa.irls.problem import RANK, Formulation, Problem, build_problem
from fa.irls.solution import DEFAULTS, Options, Solution
from fa.utils.blas import single_threaded
from fa.utils.validation import check, check_one_of

__all__ = ["State", "check_m", "default_m", "solve", "solve_gram", "step", "terminates"]

STARTS = ("equal", "data", "random")


@dataclass(frozen=True)
class State:
    """One iterate: Y in the basis (r, min(m, r)), the residuals 1 - v_k it leaves (T,), its smoothed objective."""

    Y: Float64[np.ndarray, "r m"]
    residuals: Float64[np.ndarray, " T"]
    smoothed_objective: float


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
) -> Solution:
    """The subspace of m dimensions (default ceil((p + 1)/2)) that IRLS finds for eq. 5.

    G: (p, n), one worker a row, or what `fa.aggregate` takes, or a list of (k_i, n) arrays, k_i gradients from worker
    i. lam weighs the regularizer, a is the power's inverse. It stops when the smoothed objective changes by less than
    tol, or after max_iter steps.

    start: "equal" weights, the "data" (the span of the first m gradients), a "random" subspace, or the workers' hints,
    (n, k) vectors whose span is taken. The best of that start and `restarts` random ones counts; these draw from
    `seed`. Raises ValueError for values out of range and for rows with NaN or Inf.

    "group" is constant, m, on Y^T Y = I: what is found is the solution for lam = 0. With "l1" and "rows" (see
    `fa.irls.proximal`, and there for the size of lam) the steps are proximal ones, and more than 5 of them are worth
    their time. There, "equal" and "data" take the best end of three runs, from the solution for lam = 0, from its
    first step, and from unit columns; "random" and the restarts begin at a random Y; and an array (n, m) is the Y to
    begin with, such as the solution for the lam before on a path.
    """
    options = Options(m, lam, regularizer, a, tol, max_iter, restarts, seed)
    gradients, counts, gram = measure_groups(G)
    if options.leaves_span:
        return _solve_outside(gram, options, gradients, start, counts, isinstance(G, torch.Tensor))
    return solve_gram(gram, options, gradients, start=start, counts=counts)


def _solve_outside(
    gram: Gram, options: Options, gradients: Gradients, start: Any, counts: tuple[int, ...], tensor: bool
) -> Solution:
    """The solution for a norm whose Y leaves span(G); `tensor`: whether its Y is to be one."""
    plain = replace(options, lam=0.0, restarts=0)
    word = start if isinstance(start, str) and start != "random" else "equal"
    whole = solve_gram(gram, plain, gradients, start=word, counts=counts)
    problem = build_problem(gram, whole.m, 0.0, options.a, counts=counts)
    task = proximal.task_of(problem, gram, gradients.G, options.regularizer, options.lam)
    first = solve_gram(gram, replace(plain, max_iter=1), gradients, start=word, counts=counts)
    begins = _bases(task, (whole, first), start, options)
    runs = (proximal.minimise(task, Y, options.tol, options.max_iter) for Y in begins)
    point, history, converged = min(runs, key=lambda run: run[0].smoothed_objective)
    Y = torch.from_numpy(point.Y).to(gradients.G.device, torch.promote_types(gradients.G.dtype, torch.float32))
    return replace(
        whole,
        objective=problem.objective(point.residuals) + options.lam * point.norm,
        objective_error_bound=problem.objective_error_bound(point.residuals),
        history=history,
        converged=converged,
        values=1.0 - point.residuals[: len(counts)],
        coefficients=None,
        lam=options.lam,
        regularizer=options.regularizer,
        Y=Y if tensor else Y.numpy(),
    )


def _bases(
    task: proximal.Task, plain: tuple[Solution, ...], start: Any, options: Options
) -> Iterator[Float64[np.ndarray, "n m"]]:
    """The bases to begin with: of the start that is asked for, then random ones."""
    n, m = task.rows.shape[1], min(plain[0].m, len(task.problem.terms))
    generator = np.random.default_rng(options.seed)
    if not isinstance(start, str):
        given = torch.as_tensor(start, dtype=torch.float64).cpu().numpy()
        check("start", given.shape, given.shape == (n, m), f"of ({n}, {m}) for this regularizer")
        yield given
    elif start == "random":
        yield generator.standard_normal((n, m))
    else:
        for solution in plain:
            assert solution.coefficients is not None  # with lam = 0
            yield task.combined(solution.coefficients)
        yield task.units(m)
    for _ in range(options.restarts):
        yield generator.standard_normal((n, m))


@single_threaded
def solve_gram(
    gram: Gram,
    options: Options = DEFAULTS,
    gradients: Gradients | None = None,
    formulation: Formulation = "paper",
    start: Any = "equal",
    counts: Sequence[int] | None = None,
) -> Solution:
    """As `solve`, from the Gram matrix; formulation="released" takes the pairs as the released code does."""
    if options.leaves_span:
        raise ValueError(
            'regularizer must be "pairwise" or "group" where only the Gram matrix is known; it is '
            f"{options.regularizer!r}, whose Y leaves the span of G: take irls.solve, with the gradients in memory"
        )
    constant, lam = (options.lam, 0.0) if options.regularizer == "group" else (0.0, options.lam)
    counts = (1,) * gram.p if counts is None else tuple(counts)
    m = default_m(len(counts)) if options.m is None else options.m
    check_m(m, gram.p)
    problem = build_problem(gram, m, lam, options.a, formulation, counts)
    found = [
        _iterate(problem, weights, options.tol, options.max_iter)
        for weights in _starts(problem, gram, gradients, start, options)
    ]
    states, converged = min(found, key=lambda run: problem.objective(run[0][-1].residuals))
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
    )


def default_m(p: int) -> int:
    """ceil((p + 1)/2), the paper's number of columns of Y."""
    return -(-(p + 1) // 2)


def check_m(m: int, q: int) -> None:
    """m columns of Y for q gradients; ValueError where there are fewer."""
    check("m", m, m <= q, f"at most p = {q}, the number of gradients")


def _starts(
    problem: Problem, gram: Gram, gradients: Gradients | None, start: Any, options: Options
) -> Iterator[Float64[np.ndarray, " T"]]:
    """The weights of the first step: of the start that is asked for, then of random ones."""
    generator = np.random.default_rng(options.seed)
    r = len(problem.terms)
    if not isinstance(start, str):
        yield _weights_of(problem, _hints(problem, gram, gradients, start))
    else:
        check_one_of("start", start, STARTS)
        if start == "equal":
            yield np.ones_like(problem.factors)
        elif start == "data":
            yield _weights_of(problem, problem.terms[:, : problem.m])
        else:
            yield _weights_of(problem, generator.standard_normal((r, problem.m)))
    for _ in range(options.restarts):
        yield _weights_of(problem, generator.standard_normal((r, problem.m)))


def _weights_of(problem: Problem, vectors: Float64[np.ndarray, "r k"]) -> Float64[np.ndarray, " T"]:
    """The weights at the subspace that these vectors span."""
    left, sizes, _ = np.linalg.svd(vectors, full_matrices=True)
    rank = int((sizes > RANK * max(sizes.max(initial=0.0), 1e-300)).sum())
    return problem.weights(problem.residuals(left[:, min(rank, problem.m) :]))


def _hints(problem: Problem, gram: Gram, gradients: Gradients | None, hints: Any) -> Float64[np.ndarray, "r k"]:
    """The projections on span(G) of vectors (n, k), in the problem's basis."""
    if gradients is None:
        raise ValueError("start must be one of its words where only the Gram matrix is known; it is an array")
    G = gradients.G.double()
    vectors = torch.as_tensor(hints, dtype=torch.float64, device=G.device)
    check("start", tuple(vectors.shape), vectors.ndim == 2 and len(vectors) == G.shape[1], f"of ({G.shape[1]}, k)")
    projected: np.ndarray = problem.basis.T @ gram.divide_by_norms((G @ vectors).cpu().numpy())
    return projected


def _iterate(
    problem: Problem, weights: Float64[np.ndarray, " T"], tol: float, max_iter: int
) -> tuple[list[State], bool]:
    states = [step(problem, weights)]
    while len(states) < max_iter:
        states.append(step(problem, problem.weights(states[-1].residuals)))
        if terminates(states[-2], states[-1], tol):
            return states, True
    return states, False


def step(problem: Problem, weights: Float64[np.ndarray, " T"]) -> State:
    """The top m eigenvectors of the weighted terms' second moment, and what they leave of each term."""
    moment = (problem.terms * (problem.factors * weights)[problem.owner]) @ problem.terms.T
    _, vectors = np.linalg.eigh(moment)
    split = max(vectors.shape[0] - problem.m, 0)
    residuals = problem.residuals(vectors[:, :split])
    return State(vectors[:, split:], residuals, problem.smoothed_objective(residuals))


def terminates(before: State, after: State, tol: float) -> bool:
    """Whether the last step changed the smoothed objective by less than tol."""
    return abs(before.smoothed_objective - after.smoothed_objective) < tol
