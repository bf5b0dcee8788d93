"""The convex relaxation of eq. 5 as a semidefinite program of cvxpy, p x p for any n.

`fa.sdp.certificate` describes the relaxation. Its `certify` needs no solver; this module checks it and comes closer to
the relaxation's value. The lengths may be smoothed here, which makes the loss differentiable, as the paper's
convergence argument requires.
"""

import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64

from fa import irls
from fa.gradients.measurement import measure_groups
from fa.irls import Options, Problem
from fa.sdp.certificate import certified, check_convex, exponent, lower_bound, principal, relative_gap
from fa.utils.optional import import_optional
from fa.utils.validation import check_one_of, check_real

__all__ = ["Relaxation", "solve"]

SOLVERS = ("CLARABEL", "SCS")
# Dimensions. Clarabel solves 15 to 1e-8 in 0.5 s. At 31 it takes 3 to 4 s, and SCS to 1e-6 one second or less.
LARGEST_FOR_CLARABEL = 15
_ACCURACY: dict[str, dict[str, Any]] = {"CLARABEL": {}, "SCS": {"eps": 1e-6, "max_iters": 20_000}}
_NOISE = 1e-10  # Smaller coefficients count as zero; the bound uses the terms themselves.
_POLISHING = 200  # Largest number of IRLS steps from the rounded point.


@dataclass(frozen=True)
class Relaxation:
    """Result of the relaxation of eq. 5.

    Attributes:
        bound: Lower bound on eq. 5 at every Y, proven from the solver's dual values. If a < 2 and principal components
            prove more, their bound.
        certifies: The optimum that the bound holds for.
        value: Value of the relaxation, smoothed if eps > 0, as the solver reports it.
        rounded_objective: Eq. 5 at the eigenspace of Z's m largest eigenvalues.
        polished_objective: Eq. 5 at the end of IRLS from that eigenspace.
        coefficients: C (q, min(m, r)) with Y = G^T C, for `polished_objective`.
        Z: Relaxed projector (r, r), in the orthonormal basis G^T `basis` of span(G).
        basis: Coefficients (q, r) of that basis in the q gradients.
        solver: Name of the solver.
        status: Status that it reports.
        seconds: Wall-clock time in seconds, cvxpy's preparation included.
        scale: Mean weight of the workers.
    """

    bound: float
    certifies: str
    value: float
    rounded_objective: float
    polished_objective: float
    coefficients: Float64[np.ndarray, "q k"] = field(repr=False)
    Z: Float64[np.ndarray, "r r"] = field(repr=False)
    basis: Float64[np.ndarray, "q r"] = field(repr=False)
    solver: str
    status: str
    seconds: float
    scale: float = 1.0

    @property
    def gap(self) -> float:
        """Return the relative gap (polished_objective - bound)/polished_objective, as `relative_gap`."""
        return relative_gap(self.polished_objective, self.bound, self.scale)


def solve(
    G: Any,
    m: int | None = None,
    lam: float = 0.0,
    a: float = 2.0,
    eps: float = 0.0,
    solver: str | None = None,
    worker_weights: Any = None,
    group_term: irls.GroupTerm = "fraction",
) -> Relaxation:
    """Solve the relaxation of eq. 5.

    Args:
        G: Gradients, as for `fa.irls.solve`.
        m: Number of dimensions; None for ceil((p + 1)/2).
        lam: Weight of the pairwise regularizer, at least 0.
        a: Inverse of the power, at least 1. For a > 2 the relaxation is that of a = 2, whose bound also holds there.
        eps: Smoothing of the lengths ||x|| to sqrt(||x||^2 + eps^2). For a >= 2 it raises the value by at most eps sum
            c_k. The bound remains one of eq. 5.
        solver: "CLARABEL" or "SCS". None takes Clarabel for at most 15 dimensions and SCS for more, then the other one
            if the first fails.
        worker_weights: As for `fa.irls.solve`.
        group_term: As for `fa.irls.solve`; "chordal" needs at most m gradients from each worker.

    Returns:
        The relaxation's value and bound, and eq. 5 at the rounded and the polished point.

    Raises:
        ValueError: An argument is out of range, or a row has NaN or Inf.
        ImportError: cvxpy is not installed.
        RuntimeError: No solver finds a solution.

    Example:
        >>> import numpy as np
        >>> from fa import sdp
        >>> G = np.array([[2.0, 1.0, 0.0], [2.0, -1.0, 0.0], [0.0, 0.0, 5.0]])
        >>> relaxation = sdp.solve(G, m=1)
        >>> round(relaxation.bound, 3), round(relaxation.polished_objective, 3)
        (1.742, 1.894)
    """
    options = Options(m=m, lam=lam, a=a, worker_weights=worker_weights, group_term=group_term)
    check_real("eps", eps, 0)
    if solver is not None:
        check_one_of("solver", solver, SOLVERS)
    _, counts, gram = measure_groups(G)
    m = irls.default_m(len(counts)) if options.m is None else options.m
    irls.check_m(m, gram.p)
    weights, scale = options.worker_weights, irls.mean_weight(options.worker_weights)
    # The solvers' tolerances are absolute.
    scaled = None if weights is None else [weight / scale for weight in weights]
    problem = irls.build_problem(gram, m, lam, a, "paper", counts, scaled, group_term)
    check_convex(problem)
    cp = import_optional("cvxpy", "fa.sdp.solve", "theory")
    start = time.perf_counter()
    W, U, value, used, status = _program(cp, problem, eps, solver)
    seconds = time.perf_counter() - start
    _, vectors = np.linalg.eigh(W)
    rounded = problem.residuals(vectors[:, min(m, len(W)) :])
    polished = irls.iterate(problem, problem.weights(rounded), irls.DEFAULTS.tol, _POLISHING)[0][-1]
    return Relaxation(
        bound=scale * max(lower_bound(problem, U), principal(problem)),
        certifies=certified(a),
        value=scale * value,
        rounded_objective=scale * problem.objective(rounded),
        polished_objective=scale * problem.objective(polished.residuals),
        coefficients=gram.divide_by_norms(problem.basis @ polished.Y),
        Z=np.eye(len(W)) - W,
        basis=gram.divide_by_norms(problem.basis),
        solver=used,
        status=status,
        seconds=seconds,
        scale=scale,
    )


def _program(
    cp: Any, problem: Problem, eps: float, solver: str | None
) -> tuple[Float64[np.ndarray, "r r"], Float64[np.ndarray, "r N"], float, str, str]:
    """Return I - Z, the u_k of the bound, the value, the solver's name and its status.

    No solver runs if Y spans all of span(G).
    """
    r, N = problem.terms.shape
    count = problem.factors.size
    s = exponent(problem.a)
    if problem.m >= r:
        return np.zeros((r, r)), np.zeros((r, N)), float(problem.factors.sum()) * eps**s, "none needed", "optimal"
    X = problem.terms[:, problem.owner < problem.p]
    blocks, place = _blocks(problem, X)

    # The program, with s = 1 for a >= 2 and W = I - Z:
    #
    #     minimise    sum_k c_k tau_k^s
    #     subject to  ||(W t_k, eps)|| <= tau_k
    #                 0 <= W <= I,  tr W = r - m
    #
    # V = W X is a separate variable, with X the unit gradients. A pair's t_k is X b_k.
    # W t_k = V b_k then has two columns of V instead of r.
    W, V, tau = cp.Variable((r, r), symmetric=True), cp.Variable(X.shape), cp.Variable(count)
    rows = [V @ block for block in blocks] + ([np.full((1, count), eps)] if eps > 0 else [])
    cones = cp.SOC(tau, cp.vstack(rows), axis=0)
    loss = cp.Minimize(problem.factors @ (tau if s == 1 else cp.power(tau, s)))
    program = cp.Problem(loss, [cones, V == W @ X, W >> 0, np.eye(r) - W >> 0, cp.trace(W) == r - problem.m])
    with warnings.catch_warnings():  # The status shows an inaccurate solution, and its bound is still proven.
        warnings.simplefilter("ignore")
        for used in (solver,) if solver else SOLVERS if r <= LARGEST_FOR_CLARABEL else SOLVERS[::-1]:
            with suppress(cp.error.SolverError):  # W then has no value.
                program.solve(solver=used, **_ACCURACY[used])
            if W.value is not None:
                break
        else:
            raise RuntimeError(f"{used} found no solution of the relaxation; its status is {program.status}")
    duals = -np.reshape(cones.dual_value[1], (-1, count))
    U = np.stack([duals[column * r : (column + 1) * r, term] for term, column in place], axis=1)
    return np.asarray(W.value), U, float(program.value), used, str(program.status)


def _blocks(problem: Problem, X: Float64[np.ndarray, "r q"]) -> tuple[list[Any], list[tuple[int, int]]]:
    """Split the terms by columns: their first columns, their second columns, and so on.

    Returns:
        Each block as sparse coefficients of X (q, T), zero for a term without such a column. For each column of
        `problem.terms`, also its term and its index within the term.
    """
    coefficients = np.linalg.lstsq(X, problem.terms)[0]
    coefficients[np.abs(coefficients) < _NOISE] = 0.0
    owner = problem.owner
    within = np.arange(owner.size) - np.searchsorted(owner, owner)  # The columns of a term are adjacent.
    blocks = [np.zeros((X.shape[1], problem.factors.size)) for _ in range(1 + within.max())]
    for column, (term, j) in enumerate(zip(owner, within, strict=True)):
        blocks[j][:, term] = coefficients[:, column]
    sparse = import_optional("scipy.sparse", "fa.sdp.solve", "theory")
    return [sparse.csc_array(block) for block in blocks], list(zip(owner.tolist(), within.tolist(), strict=True))
