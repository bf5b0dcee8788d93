"""Bound the distance of a subspace from the best one: a lower bound on eq. 5 that does not depend on a solver.

For the projector Z = Y Y^T, (1 - v_k)^(1/a) = ||(I - Z) t_k||^(2/a), with the terms t_k and factors c_k of `fa.irls`.
The relaxation allows any matrix Z with 0 <= Z <= I and tr Z = m. It is convex while 2/a >= 1:

    min  sum_k c_k ||(I - Z) t_k||^s     s = 2/min(a, 2)                                              (relaxation)

Its value bounds eq. 5 from below for 1 <= a <= 2. For a > 2 it does so because r^(1/a) >= r^(1/2) on [0, 1]. The
certificate is then one for a = 2.

Any vectors u_k give a lower bound of the relaxation. Let ||u|| = c s tau^(s-1) with 0 <= tau <= 1.
Then c ||x||^s >= <u, x> - c (s - 1) tau^s for x in the unit ball. Therefore

    sum_{i <= r-m} lambda_i(S) - sum_k c_k (s - 1) tau_k^s,     S = sym(sum_k u_k t_k^T)              (bound)

The sum of the r - m smallest eigenvalues of S is the minimum of <S, I - Z>. With a >= 2, s = 1, and the only
condition is ||u_k|| <= c_k.

Since r^(1/a) >= r, there is one more bound, with S = sum_k c_k t_k t_k^T: principal components, exact for a = 1.

Directions of span(G) below numerical rank are excluded. This can only lower a bound, since
dist(P t, P span Y) <= dist(t, span Y).

Source: Lerman et al., Robust computation of linear models by convex relaxation, 2015, with the pairs added.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from fa.gradients.gram import Gram
from fa.gradients.measurement import measure_groups
from fa.irls import Problem, Solution, build_problem, mean_weight
from fa.utils.ambient import usual_float_errors
from fa.utils.blas import single_threaded
from fa.utils.validation import check

MIN_STEPS, MAX_STEPS = 60, 400  # Steps of the convex IRLS; very small values of the relaxation need many steps.
REL_TOL, REL_TOL_LATE = 1e-5, 2e-3  # Relative gap at which the convex IRLS stops: before MIN_STEPS, and after.
CHECK_EVERY = 10  # Steps between two computations of the bound.
SMOOTHING, SMOOTHING_STEPS = (1e-1, 1e-9), 20  # First and last eps of sqrt(||.||^2 + eps^2), and steps between them.
OVER_RELAXATION = 1.8  # Power of the change of each weight: below 2 it converges, nearly twice as fast as with 1.
MATCH_TOL = 1e-4  # Difference of relative norms and of cosines that counts as equal, also in float32.
NEGLIGIBLE = 1e-9  # Objective that counts as 0 for weights of 1: the rounding error of 1 - v may be so large.
ROUNDING = 2 * np.finfo(np.float64).eps  # Rounding error per operation: twice the bound of IEEE 754.

Terms = Float64[np.ndarray, "r N"]


@dataclass(frozen=True, repr=False)
class Certificate:
    """Lower bound on eq. 5, beside the objective of a solution.

    The rounding error of the bound has been subtracted. The bound holds for the measured Gram matrix
    (`fa.gradients.measurement`). Its relative error is about 1e-6 for float32 gradients, and 1e-13 for float64.

    Attributes:
        objective: Eq. 5 at the solution.
        bound: Lower bound on eq. 5 at every Y.
        certifies: The optimum that the bound holds for.
        scale: Mean weight of the workers.
    """

    objective: float
    bound: float
    certifies: str
    scale: float = 1.0

    @property
    def gap(self) -> float:
        """Return the relative gap (objective - bound)/objective, as `relative_gap`.

        The optimum is at most this fraction below the objective.
        """
        return relative_gap(self.objective, self.bound, self.scale)

    def __repr__(self) -> str:
        return (
            f"Certificate(objective={self.objective:.6g}, bound={self.bound:.6g}, gap={self.gap:.3g}, "
            f"certifies={self.certifies!r})"
        )


def relative_gap(objective: float, bound: float, scale: float = 1.0) -> float:
    """Compute (objective - bound)/objective.

    Args:
        objective: Eq. 5 at a subspace.
        bound: Lower bound on eq. 5.
        scale: Mean weight of the workers.

    Returns:
        The gap, 0 for an objective below NEGLIGIBLE times the scale.
    """
    return (objective - bound) / objective if objective >= NEGLIGIBLE * scale else 0.0


@usual_float_errors()
@single_threaded
def certify(G: Any, solution: Solution) -> Certificate:
    """Bound the distance of a solution from the best subspace of its m dimensions.

    Args:
        G: The gradients that `fa.irls.solve` had, in the same form.
        solution: Its solution.

    Returns:
        The lower bound, beside the objective of the solution.

    Raises:
        ValueError: G has NaN or Inf, or its inner products are not those of the solution. With lam > 0, the formulation
            must be "paper" and the regularizer "pairwise". For "group", which is constant, use lam = 0. No bound of
            this kind is available for "l1" and "rows".

    Example:
        >>> import numpy as np
        >>> from fa import irls, sdp
        >>> G = np.array([[2.0, 1.0, 0.0], [2.0, -1.0, 0.0], [0.0, 0.0, 5.0]])
        >>> certificate = sdp.certify(G, irls.solve(G, m=1))
        >>> round(certificate.objective, 2), round(certificate.bound, 2), round(certificate.gap, 2)
        (1.89, 1.74, 0.08)
    """
    check("solution", type(solution).__name__, isinstance(solution, Solution), "a Solution", "Take a level of a flag.")
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
    settings = solution.worker_weights, solution.group_term
    problem = build_problem(gram, solution.m, solution.lam, solution.a, "paper", counts, *settings)
    check_convex(problem)
    bound = relax(problem)
    return Certificate(solution.objective, bound, certified(solution.a), mean_weight(solution.worker_weights))


def check_convex(problem: Problem) -> None:
    """Check that the relaxation of the terms is convex.

    Args:
        problem: Terms of eq. 5.

    Raises:
        ValueError: With the chordal term, a worker has more than m gradients.
    """
    convex = problem.offsets is None or bool((problem.offsets >= 0).all())
    check("group_term", "chordal", convex, '"fraction" where a worker has more gradients than m')


def _check_same(gram: Gram, expected: Gram) -> None:
    """Raise ValueError unless the inner products agree with the solution's, within the precision of float32."""
    norms = np.isclose(gram.norms, expected.norms, rtol=MATCH_TOL, atol=0.0)
    if not (norms.all() and np.allclose(gram.cosines, expected.cosines, rtol=0.0, atol=MATCH_TOL)):
        raise ValueError("G must be the gradients of the solution, got other inner products")


def certified(a: float) -> str:
    """Describe the optimum that a bound holds for.

    Args:
        a: Inverse of the power.

    Returns:
        A phrase such as "the optimum of eq. 5 with a = 2".
    """
    if a <= 2:
        return f"the optimum of eq. 5 with a = {a:g}"
    return f"the optimum of eq. 5 with a = 2, and so that with a = {a:g}, which is no smaller"


def relax(problem: Problem) -> float:
    """Compute a lower bound on eq. 5 near the relaxation's value, by IRLS on Z.

    With W = I - Z, each step minimises sum_k w_k ||W t_k||^2 over 0 <= W <= I, tr W = r - m. The minimiser has the
    eigenvectors of A = sum_k w_k t_k t_k^T and the eigenvalues min(1, theta/alpha_i). The water level theta makes the
    trace right. The last weights give the bound its u_k = w_k W t_k.

    Args:
        problem: Terms of eq. 5.

    Returns:
        The bound, at least 0.
    """
    T, s = problem.terms, exponent(problem.a)
    best, weights = principal(problem), s * problem.factors
    if problem.m >= len(T):
        return best
    smoothing = np.geomspace(*SMOOTHING, SMOOTHING_STEPS)
    for count in range(1, MAX_STEPS + 1):
        alpha, vectors = np.linalg.eigh(problem.second_moment(weights))
        residuals = (vectors * _water_fill(alpha, len(T) - problem.m)) @ (vectors.T @ T)
        squares = _sum_by_term(problem, np.square(residuals).sum(axis=0))
        if count % CHECK_EVERY == 0:
            best = max(best, lower_bound(problem, weights[problem.owner] * residuals))
            close = REL_TOL if count < MIN_STEPS else REL_TOL_LATE
            if problem.factors @ squares ** (s / 2) <= (1 + close) * best:
                break
        eps = smoothing[min(count, SMOOTHING_STEPS) - 1]
        target = s * problem.factors * (squares + eps**2) ** (s / 2 - 1)
        change = np.divide(target, weights, out=np.ones_like(weights), where=weights > 0)
        weights = weights * change ** (OVER_RELAXATION if s == 1 else 1.0)
    return best


def lower_bound(problem: Problem, U: Terms) -> float:
    """Compute the lower bound on eq. 5 that vectors u_k prove.

    Vectors that are too long are shortened in two ways, and the better bound counts. The first shortens each vector to
    its own limit. The second shortens all by one factor, which preserves cancellation in S. This matters where the
    value is far below the number of terms.

    The rounding error is less than ROUNDING (r - m) (N + 10 r + 10) sum c_k, and is subtracted. It has three parts:
    products of N terms, the backward error of the symmetric eigenvalue solver (10 r units), and the lengths.

    Args:
        problem: Terms of eq. 5.
        U: Vectors u_k (r, N), in columns as the terms are.

    Returns:
        The bound, at least 0.
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
    """Compute the bound that feasible u_k of these lengths prove."""
    s = exponent(problem.a)
    longest = s * problem.factors
    slopes = np.divide(lengths, longest, out=np.zeros_like(lengths), where=longest > 0)
    conjugate = problem.factors @ slopes ** (s / (s - 1)) * (s - 1) if s > 1 else 0.0
    return _smallest_eigenvalue_sum(problem, U @ problem.terms.T) - float(conjugate)


def exponent(a: float) -> float:
    """Return s = 2/min(a, 2), the power of the length in the relaxation.

    Args:
        a: Inverse of the power in eq. 5.

    Returns:
        s, from 1 to 2.
    """
    return 2 / min(a, 2.0)


def principal(problem: Problem) -> float:
    """Compute the bound by principal components: the optimum of eq. 5 with a = 1, a lower bound for every a >= 1.

    Args:
        problem: Terms of eq. 5.

    Returns:
        The bound, at least 0.
    """
    return max(_smallest_eigenvalue_sum(problem, problem.second_moment(problem.factors)), 0.0)


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
    inverse = 1 / np.maximum(alpha, 1e-30 * alpha[-1])  # Rounding may leave eigenvalues <= 0; they fill first.
    levels = (total - np.arange(alpha.size)) / np.cumsum(inverse[::-1])[::-1]  # Theta if all before i are full.
    theta = levels[np.argmax(levels * inverse <= 1)]
    filled: np.ndarray = np.minimum(theta * inverse, 1.0)
    return filled
