"""What IRLS has found where it stops: FA as a right multiplication, first and second order, and how fast it came there.

With A = sum_k c_k w_k t_k t_k^T = G^T M G (G (p, n), one worker a row) the weighted second moment of eq. 5's terms at
Y's own weights, Y is stationary when A Y = Y Lambda: Lambda (m, m) holds the Lagrange multipliers of Y^T Y = I, up to
the factor that the square root's slope brings. Then Y = A Y Lambda^-1, and the reconstruction is a right
multiplication of the gradients, as Bulyan's selection is one (section 2.3 of the paper):

    Y Y^T G^T = G^T R,     R = M G Y Lambda^-1 Y^T G^T     (p, p)

The objective's second derivative on the Grassmann manifold, along Y's geodesic with velocity Z B (Z an orthonormal
basis of what Y leaves, z_k = Y^T t_k, b_k = Z^T t_k, phi(r) = r^(1/a) of the residual r = 1 - v), is

    sum_k c_k [4 phi''(r_k) (b_k^T B z_k)^2 - 2 phi'(r_k) (||B^T b_k||^2 - ||B z_k||^2)]

A direction outside span(G) has b_k = 0: the curvature there is 2 tr(B Y^T A' Y B^T), A' with phi' for w, which is
never negative, and no part of Y is better sought there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from fa.irls import FLOOR, Problem, Solution
from fa.irls.problem import complement

Columns = Float64[np.ndarray, "r m"]


@dataclass(frozen=True)
class RightMultiplication:
    """Y Y^T G^T = G^T R: `R` (q, q) for q gradients, the multipliers `Lambda` (m, m), and the largest `violation`,
    ||Y Y^T g_i - G^T R_i||/||g_i|| over the gradients i.
    """

    R: Float64[np.ndarray, "q q"]
    Lambda: Float64[np.ndarray, "m m"]
    violation: float


@dataclass(frozen=True)
class SecondOrder:
    """The Riemannian `gradient_norm` of the smoothed objective, and its Riemannian Hessian's eigenvalues in ascending
    order: `eigenvalues` inside span(G), `outside` (m,) for each direction outside it. Of the objective, per radian that
    Y turns.
    """

    gradient_norm: float
    eigenvalues: Float64[np.ndarray, " k"]
    outside: Float64[np.ndarray, " m"]

    @property
    def smallest(self) -> float:
        """The smallest eigenvalue; at a second-order point it is not negative. Outside span(G) none is, and where all
        gradients are 0 there is none: 0.
        """
        return float(min(self.eigenvalues if self.eigenvalues.size else self.outside, default=0.0))


def right_multiplication(solution: Solution) -> RightMultiplication:
    """R from the multipliers at Y's own weights; the violation is 0 where Y is stationary.

    Raises ValueError for a solution whose Y leaves span(G).
    """
    problem, unit, Y = _posed(solution)
    residuals = problem.residuals(complement(Y))
    moment = _moment(problem, problem.factors * problem.weights(residuals))
    Lambda = Y.T @ moment @ Y
    R = problem.basis @ (moment @ Y @ np.linalg.solve(Lambda, Y.T @ unit))  # of the unit gradients
    violation = np.linalg.norm(Y @ (Y.T @ unit) - unit @ R, axis=0).max()
    gram = solution.gram
    return RightMultiplication(gram.divide_by_norms(R) * gram.norms, Lambda, float(violation))


def selection_matrix(rows: Sequence[int], p: int) -> Float64[np.ndarray, "p q"]:
    """S (p, q) of the paper's section 2.3: G^T S are the gradients that a rule such as Bulyan selects."""
    return np.eye(p)[:, list(rows)]


def second_order(solution: Solution) -> SecondOrder:
    """The smoothed objective's Riemannian gradient and Hessian at a solution.

    Raises ValueError for a solution whose Y leaves span(G).
    """
    problem, _, Y = _posed(solution)
    Z = complement(Y)
    residuals = problem.residuals(Z)
    slopes = problem.factors * problem.weights(residuals) / problem.a
    moment = _moment(problem, slopes)
    inside = Y.T @ moment @ Y
    hessian = _hessian(problem, Y, Z, residuals) + 2 * (
        np.kron(np.eye(Z.shape[1]), inside) - np.kron(Z.T @ moment @ Z, np.eye(Y.shape[1]))
    )
    return SecondOrder(
        gradient_norm=2 * float(np.linalg.norm(Z.T @ moment @ Y)),
        eigenvalues=np.linalg.eigvalsh(hessian),
        outside=2 * np.linalg.eigvalsh(inside),
    )


def rate(history: Sequence[float]) -> float:
    """The factor by which the decrease of the objective shrinks from step to step, in the end: the median of the last
    ten ratios above rounding; NaN where there is none. Below 1 it is linear convergence, the smaller the faster.
    """
    decreases = -np.diff(history)
    kept = decreases[decreases > 1e-13 * abs(history[0])]
    return float(np.median(kept[1:][-10:] / kept[:-1][-10:])) if kept.size > 1 else float("nan")


def _posed(solution: Solution) -> tuple[Problem, Float64[np.ndarray, "r q"], Columns]:
    """The problem again, and in its basis of span(G) the unit gradients and Y."""
    if solution.coefficients is None:
        raise ValueError(f'with regularizer="{solution.regularizer}" Y leaves the span of G: take "pairwise"')
    gram, problem = solution.gram, solution.problem
    unit = problem.basis.T @ gram.cosines
    return problem, unit, np.linalg.qr(unit @ (gram.norms[:, None] * solution.coefficients))[0]


def _moment(problem: Problem, weights: Float64[np.ndarray, " T"]) -> Float64[np.ndarray, "r r"]:
    """sum_k weights_k t_k t_k^T."""
    moment: np.ndarray = (problem.terms * weights[problem.owner]) @ problem.terms.T
    return moment


def _hessian(
    problem: Problem, Y: Columns, Z: Float64[np.ndarray, "r s"], residuals: Float64[np.ndarray, " T"]
) -> Float64[np.ndarray, "k k"]:
    """The part with phi'', which is 0 below FLOOR, where the smoothed power is straight."""
    inverse = 1 / problem.a
    bent = np.where(residuals > FLOOR, np.maximum(residuals, FLOOR) ** (inverse - 2), 0.0) * inverse * (inverse - 1)
    columns = (Z.T @ problem.terms)[:, None] * (Y.T @ problem.terms)
    turns = np.zeros((problem.factors.size, columns.shape[0] * columns.shape[1]))
    np.add.at(turns, problem.owner, columns.reshape(-1, columns.shape[-1]).T)
    hessian: np.ndarray = 4 * (turns.T * (problem.factors * bent)) @ turns
    return hessian
