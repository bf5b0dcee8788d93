"""How far a subspace can be from the best one: a lower bound on eq. 5 that trusts no solver.

For the projector Z = Y Y^T, (1 - v_k)^(1/a) = ||(I - Z) t_k||^(2/a), with the terms t_k and factors c_k of
`fa.irls`. Let Z be any matrix with 0 <= Z <= I and tr Z = m, and what is left is convex while 2/a >= 1:

    min  sum_k c_k ||(I - Z) t_k||^s     s = 2/min(a, 2)                                              (relaxation)

Its value bounds eq. 5 from below: as it stands for 1 <= a <= 2, and for a > 2 since r^(1/a) >= r^(1/2) on [0, 1], so
that what is certified there is the value at a = 2. Every u_k bounds the relaxation from below, whatever it came from,
because c ||x||^s >= <u, x> - c (s - 1) tau^s on the unit ball with ||u|| = c s tau^(s-1), 0 <= tau <= 1:

    sum_{i <= r-m} lambda_i(S) - sum_k c_k (s - 1) tau_k^s,     S = sym(sum_k u_k t_k^T)              (bound)

the sum of S's r - m smallest eigenvalues being <S, I - Z>'s minimum; with a >= 2, s = 1, only ||u_k|| <= c_k is asked.
r^(1/a) >= r gives one more bound, that of S = sum_k c_k t_k t_k^T: principal components, exact for a = 1. Directions
of span(G) that are left out, below numerical rank, only lower a bound: dist(P t, P span Y) <= dist(t, span Y).

(The relaxation of Lerman et al., Robust computation of linear models by convex relaxation, 2015, with the pairs.)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from fa.gradients.gram import Gram, measure_groups
from fa.irls import Problem, Solution, build_problem
from fa.utils.blas import single_threaded
from fa.utils.validation import check

MIN_STEPS, MAX_STEPS = 60, 400  # of the convex IRLS; the second if the value of the relaxation is very small
REL_TOL, REL_TOL_LATE = 1e-5, 2e-3  # relative gap at which it stops: before MIN_STEPS, and after
CHECK_EVERY = 10  # steps between two computations of the bound
SMOOTHING, SMOOTHING_STEPS = (1e-1, 1e-9), 20  # first and last eps of sqrt(||.||^2 + eps^2), and steps between
OVER_RELAXATION = 1.8  # power of the change of each weight: below 2 it converges, nearly twice as fast as with 1
MATCH_TOL = 1e-4  # difference of relative norms and of cosines that counts as equal, in float32 too
ROUNDING = 2 * np.finfo(np.float64).eps  # per operation, twice what IEEE 754 allows

Terms = Float64[np.ndarray, "r N"]


@dataclass(frozen=True)
class Certificate:
    """`bound` <= eq. 5 at every Y, and `objective` at the solution. `certifies` says what the bound is one of.

    What the bound's own arithmetic may be off by has been subtracted. It holds for the Gram matrix as
    `fa.gradients.gram` measured it: of float32 gradients to about 1e-6, of float64 ones to 1e-13.
    """

    objective: float
    bound: float
    certifies: str

    @property
    def gap(self) -> float:
        """(objective - bound)/objective: the optimum is at most this fraction below; 0 where the objective is 0."""
        return (self.objective - self.bound) / self.objective if self.objective > 0 else 0.0


@single_threaded
def certify(G: Any, solution: Solution) -> Certificate:
    """How far `solution` can be from the best subspace of its m dimensions for the gradients G, without a solver.

    G: what `fa.irls.solve` was given. Raises ValueError where `solution` is of other gradients, as their inner
    products tell, where G is not finite, and with lam > 0 for the formulation "released", whose pairs are not eq. 5's,
    and for the regularizers "l1", "group" and "rows", for which no bound of this kind is known ("l1" and "rows" leave
    span(G); "group" is a constant: take lam = 0).
    """
    check(
        "the solution's formulation",
        solution.formulation,
        solution.lam == 0 or solution.formulation == "paper",
        '"paper", whose pairs are those of eq. 5',
    )
    check(
        "solution",
        solution.regularizer,
        solution.lam == 0 or solution.regularizer == "pairwise",
        'without regularizer, or with "pairwise", to have a certificate',
    )
    _, counts, gram = measure_groups(G)
    check(
        "G",
        counts,
        counts == solution.counts,
        f"of the solution's {len(solution.counts)} workers, with as many gradients each, {solution.counts}",
    )
    _check_same(gram, solution.gram)
    bound = relax(build_problem(gram, solution.m, solution.lam, solution.a, counts=counts))
    return Certificate(solution.objective, bound, certified(solution.a))


def _check_same(gram: Gram, expected: Gram) -> None:
    """Raise ValueError unless these are the inner products that the solution was found from, to float32's digits."""
    norms = np.isclose(gram.norms, expected.norms, rtol=MATCH_TOL, atol=0.0)
    if not (norms.all() and np.allclose(gram.cosines, expected.cosines, rtol=0.0, atol=MATCH_TOL)):
        raise ValueError("G must be the gradients that the solution was found for; their inner products are others")


def certified(a: float) -> str:
    """What a bound for this a is a bound of."""
    if a <= 2:
        return f"the optimum of eq. 5 with a = {a:g}"
    return f"the optimum of eq. 5 with a = 2, and so that with a = {a:g}, which is no smaller"


def relax(problem: Problem) -> float:
    """A lower bound on eq. 5 near the relaxation's value, by IRLS on Z.

    sum_k w_k ||W t_k||^2, W = I - Z, has its minimum over 0 <= W <= I, tr W = r - m where W shares the eigenvectors of
    A = sum_k w_k t_k t_k^T and has the eigenvalues min(1, theta/alpha_i): the water level theta makes the trace right.
    The last weights give the bound its u_k = w_k W t_k.
    """
    T, s = problem.terms, exponent(problem.a)
    factors = problem.factors[problem.owner]
    best, weights = principal(problem), s * factors
    if problem.m >= len(T):
        return best
    smoothing = np.geomspace(*SMOOTHING, SMOOTHING_STEPS)
    for count in range(1, MAX_STEPS + 1):
        alpha, vectors = np.linalg.eigh((T * weights) @ T.T)
        left = (vectors * _water_fill(alpha, len(T) - problem.m)) @ (vectors.T @ T)
        squares = _sum_by_term(problem, np.square(left).sum(axis=0))
        if count % CHECK_EVERY == 0:
            best = max(best, lower_bound(problem, weights * left))
            close = REL_TOL if count < MIN_STEPS else REL_TOL_LATE
            if problem.factors @ squares ** (s / 2) <= (1 + close) * best:
                break
        eps = smoothing[min(count, SMOOTHING_STEPS) - 1]
        asked = s * factors * (squares + eps**2)[problem.owner] ** (s / 2 - 1)
        change = np.divide(asked, weights, out=np.ones_like(weights), where=weights > 0)
        weights = weights * change ** (OVER_RELAXATION if s == 1 else 1.0)
    return best


def lower_bound(problem: Problem, U: Terms) -> float:
    """The bound that the u_k, columns as the terms' are, prove for eq. 5.

    Those too long are brought into their balls in two ways, of which the better counts: each cut to its own, or all
    shortened alike, which keeps what cancels in S where the value is far below the number of terms.

    In floating point the value is off by less than ROUNDING (r - m) (N + 10 r + 10) sum c_k: products of N terms, the
    symmetric eigenvalue solver's backward error, 10 r units, and the lengths. That much is subtracted.
    """
    longest = exponent(problem.a) * problem.factors
    lengths = np.sqrt(_sum_by_term(problem, np.square(U).sum(axis=0)))
    scale_factors = np.divide(longest, lengths, out=np.ones_like(lengths), where=lengths > longest)
    uniform = np.where(longest > 0, scale_factors[longest > 0].min(initial=1.0), 0.0)
    return max(
        0.0,
        *(_bound_from_feasible(problem, U * each[problem.owner], lengths * each) for each in (scale_factors, uniform)),
    )


def _bound_from_feasible(problem: Problem, U: Terms, lengths: Float64[np.ndarray, " T"]) -> float:
    """Return the bound that feasible u_k of these lengths prove."""
    s = exponent(problem.a)
    longest = s * problem.factors
    slopes = np.divide(lengths, longest, out=np.zeros_like(lengths), where=longest > 0)
    conjugate = problem.factors @ slopes ** (s / (s - 1)) * (s - 1) if s > 1 else 0.0
    return _smallest_eigenvalue_sum(problem, U @ problem.terms.T) - float(conjugate)


def exponent(a: float) -> float:
    """s, the power of the length in the relaxation."""
    return 2 / min(a, 2.0)


def principal(problem: Problem) -> float:
    """The bound by principal components: eq. 5 with a = 1 at its best Y, which is no larger for any a."""
    T = problem.terms
    return max(_smallest_eigenvalue_sum(problem, (T * problem.factors[problem.owner]) @ T.T), 0.0)


def _smallest_eigenvalue_sum(problem: Problem, S: Float64[np.ndarray, "r r"]) -> float:
    """Sum the r - m smallest eigenvalues of sym(S), and subtract a bound on the rounding error."""
    r, N = problem.terms.shape
    if problem.m >= r:
        return 0.0
    rounding = ROUNDING * (r - problem.m) * (N + 10 * r + 10) * problem.factors.sum()
    return float(np.linalg.eigvalsh((S + S.T) / 2)[: r - problem.m].sum() - rounding)


def _sum_by_term(problem: Problem, numbers: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " T"]:
    """Sum over the columns of each term."""
    return np.bincount(problem.owner, numbers, minlength=problem.factors.size)


def _water_fill(alpha: Float64[np.ndarray, " r"], total: int) -> Float64[np.ndarray, " r"]:
    """Return min(1, theta/alpha_i), with the theta for which they sum to `total` < r; alpha ascends."""
    inverse = 1 / np.maximum(alpha, 1e-30 * alpha[-1])  # those that rounding has made 0 or less are the first to fill
    levels = (total - np.arange(alpha.size)) / np.cumsum(inverse[::-1])[::-1]  # theta, if those before i are full
    theta = levels[np.argmax(levels * inverse <= 1)]
    filled: np.ndarray = np.minimum(theta * inverse, 1.0)
    return filled
