"""The convex relaxation of eq. 5 as a semidefinite program of cvxpy, p x p whatever n is.

`certify`, of `fa.sdp.certificate`, needs no solver; this is what checks it, and what comes closer. The relaxation is
described there; here it may be smoothed, which makes the loss differentiable, as the paper's convergence argument asks.
"""

import importlib
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from fa import irls
from fa.gradients.gram import measure_groups
from fa.irls import Options, Problem
from fa.sdp.certificate import certified, exponent, lower_bound, principal
from fa.utils.validation import check_one_of, check_real

__all__ = ["Relaxation", "solve"]

SOLVERS = ("CLARABEL", "SCS")
LARGEST_FOR_CLARABEL = 15  # dimensions: to 1e-8 in 0.5 s; with 31 it takes 3 to 4 s, SCS to 1e-6 one or less
_ACCURACY: dict[str, dict[str, Any]] = {"CLARABEL": {}, "SCS": {"eps": 1e-6, "max_iters": 20_000}}
_NOISE = 1e-10  # coefficients below count as zero; the bound is taken with the terms themselves
_POLISHING = 200  # steps of IRLS from the rounded point, at most


@dataclass(frozen=True)
class Relaxation:
    """What the relaxation tells of eq. 5.

    `bound` <= eq. 5 at every Y, proven from the solver's dual values and not by its word (or by principal components,
    where a < 2 and these prove more); `certifies` says what it is a bound of. `value` is the relaxation's (smoothed
    with eps > 0) as the solver has it. `Z` (r, r) is in the orthonormal basis G^T `basis` of span(G), `basis` (q, r)
    for q gradients. `rounded_objective` is eq. 5 at the eigenspace of Z's m largest eigenvalues; IRLS started there
    ends at `polished_objective`, with Y = G^T `coefficients` (q, min(m, r)). `solver`, its `status` and `seconds`,
    cvxpy's own work included.
    """

    bound: float
    certifies: str
    value: float
    rounded_objective: float
    polished_objective: float
    coefficients: Float64[np.ndarray, "q k"]
    Z: Float64[np.ndarray, "r r"]
    basis: Float64[np.ndarray, "q r"]
    solver: str
    status: str
    seconds: float


def solve(
    G: Any, m: int | None = None, lam: float = 0.0, a: float = 2.0, eps: float = 0.0, solver: str | None = None
) -> Relaxation:
    """The relaxation of eq. 5 for m dimensions (default ceil((p + 1)/2)), with pairs if lam > 0.

    G: what `fa.irls.solve` takes. For 1 <= a <= 2 it is a's own relaxation, for a > 2 that of a = 2, whose bound holds
    there too. eps > 0 smooths the lengths ||x|| to sqrt(||x||^2 + eps^2), which raises the value by at most eps sum
    c_k where a >= 2; the bound stays one of eq. 5. solver: "CLARABEL" or "SCS"; by default the first up to 15
    dimensions and the second above, and the other where it gives up.

    Raises ValueError for values out of range and rows that are not finite, ImportError without cvxpy, RuntimeError
    where no solver finds an answer.
    """
    options = Options(m=m, lam=lam, a=a)
    check_real("eps", eps, 0)
    if solver is not None:
        check_one_of("solver", solver, SOLVERS)
    _, counts, gram = measure_groups(G)
    m = irls.default_m(len(counts)) if options.m is None else options.m
    irls.check_m(m, gram.p)
    problem = irls.build_problem(gram, m, lam, a, counts=counts)
    cp = _cvxpy()
    start = time.perf_counter()
    W, U, value, used, status = _program(cp, problem, eps, solver)
    seconds = time.perf_counter() - start
    _, vectors = np.linalg.eigh(W)
    rounded = problem.residuals(vectors[:, min(m, len(W)) :])
    state = _polished(problem, rounded)
    return Relaxation(
        bound=max(lower_bound(problem, U), principal(problem)),
        certifies=certified(a),
        value=value,
        rounded_objective=problem.objective(rounded),
        polished_objective=problem.objective(state.residuals),
        coefficients=gram.divide_by_norms(problem.basis @ state.Y),
        Z=np.eye(len(W)) - W,
        basis=gram.divide_by_norms(problem.basis),
        solver=used,
        status=status,
        seconds=seconds,
    )


def _program(
    cp: Any, problem: Problem, eps: float, solver: str | None
) -> tuple[Float64[np.ndarray, "r r"], Float64[np.ndarray, "r N"], float, str, str]:
    """I - Z, the u_k of the bound, the value, the solver and its status; no solver where Y spans all of G."""
    r, N = problem.terms.shape
    count = problem.factors.size
    s = exponent(problem.a)
    if problem.m >= r:
        return np.zeros((r, r)), np.zeros((r, N)), float(problem.factors.sum()) * eps**s, "none needed", "optimal"
    X = problem.terms[:, problem.owner < problem.p]
    blocks, place = _blocks(problem, X)

    # minimise    sum_k c_k tau_k^s                      s = 1 for a >= 2
    # subject to  ||(W t_k, eps)|| <= tau_k              W = I - Z
    #             0 <= W <= I,  tr W = r - m
    # with V = W X apart, X the unit gradients: a pair's t_k = X b_k, and W t_k = V b_k has two gradients instead of r
    W, V, tau = cp.Variable((r, r), symmetric=True), cp.Variable(X.shape), cp.Variable(count)
    rows = [V @ block for block in blocks] + ([np.full((1, count), eps)] if eps > 0 else [])
    cones = cp.SOC(tau, cp.vstack(rows), axis=0)
    loss = cp.Minimize(problem.factors @ (tau if s == 1 else cp.power(tau, s)))
    program = cp.Problem(loss, [cones, V == W @ X, W >> 0, np.eye(r) - W >> 0, cp.trace(W) == r - problem.m])
    with warnings.catch_warnings():  # an inaccurate solution is told by the status, and its bound is no less proven
        warnings.simplefilter("ignore")
        for used in (solver,) if solver else SOLVERS if r <= LARGEST_FOR_CLARABEL else SOLVERS[::-1]:
            with suppress(cp.error.SolverError):  # then there is no value
                program.solve(solver=used, **_ACCURACY[used])
            if W.value is not None:
                break
        else:
            raise RuntimeError(f"{used} found no solution of the relaxation; its status is {program.status}")
    duals = -np.reshape(cones.dual_value[1], (-1, count))
    U = np.stack([duals[column * r : (column + 1) * r, term] for term, column in place], axis=1)
    return np.asarray(W.value), U, float(program.value), used, str(program.status)


def _cvxpy() -> Any:
    try:
        return importlib.import_module("cvxpy")
    except ImportError as error:
        raise ImportError("fa.sdp.solve needs cvxpy: pip install 'flag-aggregator[theory]'") from error


def _blocks(problem: Problem, X: Float64[np.ndarray, "r q"]) -> tuple[list[Any], list[tuple[int, int]]]:
    """The terms' first columns, their second columns, ..., each as coefficients of X (q, T), sparse, zero where a term
    has none; and of each column of `problem.terms` its term and which of the term's columns it is.
    """
    coefficients = np.linalg.lstsq(X, problem.terms)[0]
    coefficients[np.abs(coefficients) < _NOISE] = 0.0
    owner = problem.owner
    within = np.arange(owner.size) - np.searchsorted(owner, owner)  # columns of one term stand together
    blocks = [np.zeros((X.shape[1], problem.factors.size)) for _ in range(1 + within.max())]
    for column, (term, j) in enumerate(zip(owner, within, strict=True)):
        blocks[j][:, term] = coefficients[:, column]
    sparse = importlib.import_module("scipy.sparse")  # comes with cvxpy
    return [sparse.csc_array(block) for block in blocks], list(zip(owner.tolist(), within.tolist(), strict=True))


def _polished(problem: Problem, residuals: Float64[np.ndarray, " T"]) -> irls.State:
    state = irls.step(problem, problem.weights(residuals))
    for _ in range(_POLISHING):
        before, state = state, irls.step(problem, problem.weights(state.residuals))
        if irls.terminates(before, state, irls.DEFAULTS.tol):
            break
    return state
