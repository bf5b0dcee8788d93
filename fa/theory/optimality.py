"""Optimality of an IRLS solution: FA as a right multiplication, first and second order, and rate of convergence.

Let A = sum_k c_k w_k t_k t_k^T = G^T M G be the weighted second moment of eq. 5's terms at Y's own weights. G is
(p, n) with one worker in a row. Y is stationary if A Y = Y Lambda. Up to the factor from the square root's slope,
Lambda (m, m) holds the Lagrange multipliers of Y^T Y = I. Then Y = A Y Lambda^-1, and the reconstruction is a right
multiplication of the gradients, as Bulyan's selection is (section 2.3 of the paper):

    Y Y^T G^T = G^T R,     R = M G Y Lambda^-1 Y^T G^T     (p, p)

For the second order, let Z be an orthonormal basis of the complement of Y. Let z_k = Y^T t_k and b_k = Z^T t_k, and
phi(r) = r^(1/a) with the residual r = 1 - v. Along Y's geodesic with velocity Z B, the objective's second derivative is

    sum_k c_k [4 phi''(r_k) (b_k^T B z_k)^2 - 2 phi'(r_k) (||B^T b_k||^2 - ||B z_k||^2)]

A direction outside span(G) has b_k = 0. Its curvature is 2 tr(B Y^T A' Y B^T), with phi' instead of w in A'. This is
never negative, so to second order Y gains nothing outside span(G).
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
    """FA as a right multiplication, Y Y^T G^T = G^T R.

    Attributes:
        R: The matrix (q, q), for q gradients.
        Lambda: Lagrange multipliers (m, m).
        violation: Largest ||Y Y^T g_i - G^T R_i||/||g_i|| over the gradients i.
    """

    R: Float64[np.ndarray, "q q"]
    Lambda: Float64[np.ndarray, "m m"]
    violation: float


@dataclass(frozen=True)
class SecondOrder:
    """Riemannian gradient and Hessian of the smoothed objective, per radian of Y's rotation.

    Attributes:
        gradient_norm: Norm of the gradient.
        eigenvalues: Eigenvalues of the Hessian inside span(G) (k,), in ascending order.
        outside: Eigenvalues (m,) for each direction outside span(G), in ascending order.
    """

    gradient_norm: float
    eigenvalues: Float64[np.ndarray, " k"]
    outside: Float64[np.ndarray, " m"]

    @property
    def smallest(self) -> float:
        """Smallest eigenvalue, which is not negative at a second-order point.

        Eigenvalues outside span(G) are never negative. If all gradients are 0, the value is 0.
        """
        return float(min(self.eigenvalues if self.eigenvalues.size else self.outside, default=0.0))


def right_multiplication(solution: Solution) -> RightMultiplication:
    """Compute R from the multipliers at Y's own weights.

    Args:
        solution: A solution of `fa.irls.solve`.

    Returns:
        R, the multipliers and the violation, which is 0 if Y is stationary.

    Raises:
        ValueError: Y leaves span(G).
    """
    problem, unit, Y = _posed(solution)
    residuals = problem.residuals(complement(Y))
    moment = problem.second_moment(problem.factors * problem.weights(residuals))
    Lambda = Y.T @ moment @ Y
    R = problem.basis @ (moment @ Y @ np.linalg.solve(Lambda, Y.T @ unit))  # For the unit gradients.
    violation = np.linalg.norm(Y @ (Y.T @ unit) - unit @ R, axis=0).max()
    gram = solution.gram
    return RightMultiplication(gram.divide_by_norms(R) * gram.norms, Lambda, float(violation))


def second_order(solution: Solution) -> SecondOrder:
    """Compute the smoothed objective's Riemannian gradient and Hessian at a solution.

    Args:
        solution: A solution of `fa.irls.solve`.

    Returns:
        Norm of the gradient and eigenvalues of the Hessian.

    Raises:
        ValueError: Y leaves span(G).
    """
    problem, _, Y = _posed(solution)
    Z = complement(Y)
    residuals = problem.residuals(Z)
    moment = problem.second_moment(problem.factors * problem.weights(residuals) / problem.a)
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
    """Return the factor by which the objective's decrease shrinks per step, at the end of a run.

    It is the median of the last ten ratios above rounding. A value below 1 means linear convergence.

    Args:
        history: Objective after each step.

    Returns:
        The factor, or NaN if there are too few decreases.
    """
    if len(history) < 2:
        return float("nan")
    decreases = -np.diff(history)
    falls = decreases[decreases > 1e-13 * abs(history[0])]
    return float(np.median(falls[1:][-10:] / falls[:-1][-10:])) if falls.size > 1 else float("nan")


def _posed(solution: Solution) -> tuple[Problem, Float64[np.ndarray, "r q"], Columns]:
    """Return the problem, and the unit gradients and Y in its basis of span(G)."""
    Y, problem = np.linalg.qr(solution.coordinates)[0], solution.problem
    return problem, problem.basis.T @ solution.gram.cosines, Y


def _hessian(
    problem: Problem, Y: Columns, Z: Float64[np.ndarray, "r s"], residuals: Float64[np.ndarray, " T"]
) -> Float64[np.ndarray, "k k"]:
    """Return the part with phi'', which is 0 below FLOOR, where the smoothed power is linear."""
    inverse = 1 / problem.a
    curvature = (
        np.where(residuals > FLOOR, np.maximum(residuals, FLOOR) ** (inverse - 2), 0.0) * inverse * (inverse - 1)
    )
    columns = (Z.T @ problem.terms)[:, None] * (Y.T @ problem.terms)
    turns = np.zeros((problem.factors.size, columns.shape[0] * columns.shape[1]))
    np.add.at(turns, problem.owner, columns.reshape(-1, columns.shape[-1]).T)
    hessian: np.ndarray = 4 * (turns.T * (problem.factors * curvature)) @ turns
    return hessian
