"""Minimise eq. 5 with a norm of Y as regularizer, over all Y^T Y = I and not only those in span(G).

    min over Y^T Y = I of  sum_k c_k (1 - ||Y^T t_k||^2)^(1/a) + lam R(Y),     R "l1" or "rows"

A step is a manifold proximal gradient step. D minimises <grad, D> + ||D||^2/(2t) + lam R(Y + D) among the tangents,
Y^T D + D^T Y = 0. For a symmetric multiplier T, Y + D is the norm's proximal map of Y T - t grad. A semismooth Newton
method finds T (m x m).

Y + D is then made orthonormal. For "rows", its polar factor is taken. For "l1", Newton steps correct the nonzero
entries only, so that zero entries stay exactly zero.

t is halved until the smoothed objective falls, and doubled after three steps that needed no halving. Every step
therefore lowers the objective.

The data terms are concave in v, with unbounded slope where Y reproduces a gradient. Near such a Y, as at the solution
for lam = 0, steps are very short and R hardly falls.

The useful range of lam follows from three sizes:

- R is at least m, since each column has `sum |Y_j| >= ||Y_j|| = 1`.
- At a dense basis, R is about m sqrt(2n/pi) for "l1" and sqrt(n m) for "rows".
- The data terms are at most p.

The solution therefore changes around lam = p/(m sqrt(n)) for "l1", and lam = p/sqrt(n m) for "rows".

Y and two more arrays of its size are in memory, on the CPU, in float64.

Source: Chen, Ma, So and Zhang, Proximal Gradient Method for Nonsmooth Optimization over the Stiefel Manifold, SIAM
Journal on Optimization 30 (2020). Unlike here, they take the polar factor for every norm and halve the length of D
instead of t.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from fa.gradients.gram import Gram
from fa.gradients.inputs import to_real_tensor
from fa.irls import regularizers
from fa.irls.problem import Problem, nonzero_eigenpairs, norm_fractions
from fa.irls.solution import Options, Solution
from fa.irls.worker_weights import mean_weight
from fa.utils.validation import check

_CHUNK = 1 << 14  # Number of coordinates converted to float64 at a time.
_HALVINGS = 25  # Halvings of t after which no step lowers the objective by more than rounding.
_FAILURES = 4  # Failures of Newton's method after which a step is given up; each costs up to 28 solutions.
_NEWTON = 20  # Largest number of Newton steps for the multiplier T.
_ORTHONORMAL = 1e-13  # Largest accepted difference between an entry of Y^T Y and of the identity.

Basis = Float64[np.ndarray, "n m"]
Square = Float64[np.ndarray, "m m"]


@dataclass(frozen=True)
class Point:
    """A basis Y and the quantities of eq. 5 at it.

    Attributes:
        Y: Basis (n, m), float64, with orthonormal columns.
        products: Products t_k^T Y (q, m) with all gradients.
        residuals: 1 - v of each term, (T,).
        norm: R(Y).
        smoothed_objective: Smoothed data terms plus lam R(Y).
    """

    Y: Basis
    products: Float64[np.ndarray, "q m"]
    residuals: Float64[np.ndarray, " T"]
    norm: float
    smoothed_objective: float


@dataclass(frozen=True)
class Task:
    """Eq. 5 with lam times a norm of Y.

    Attributes:
        problem: Data terms of eq. 5.
        rows: Gradients (q, n), float32 or float64.
        scales: Factors (q,); `rows` times `scales` are the columns of the terms.
        name: Norm: "l1" or "rows".
        lam: Weight of the norm.
    """

    problem: Problem
    rows: np.ndarray
    scales: Float64[np.ndarray, " q"]
    name: str
    lam: float

    def at(self, Y: Basis) -> Point:
        """Evaluate eq. 5 at a basis, in two passes over the gradients.

        Args:
            Y: Basis (n, m) with orthonormal columns.

        Returns:
            The basis with its products, residuals and objective.
        """
        n = len(Y)
        pieces = [slice(start, start + _CHUNK) for start in range(0, n, _CHUNK)]
        raw = sum((self.rows[:, piece].astype(np.float64) @ Y[piece] for piece in pieces), np.zeros((1, 1)))
        squares = np.zeros(len(self.rows))
        for piece in pieces:
            rest = (self.rows[:, piece] - raw @ Y[piece].T) * self.scales[:, None]
            squares += np.square(rest).sum(axis=1)
        residuals = np.bincount(self.problem.owner, squares, minlength=self.problem.factors.size)
        norm = regularizers.value(self.name, torch.from_numpy(Y))
        smoothed = self.problem.smoothed_objective(residuals) + self.lam * norm
        return Point(Y, raw * self.scales[:, None], residuals, norm, smoothed)

    def units(self, m: int) -> Basis:
        """Build a start of unit columns, at the m coordinates with the largest sums of squared terms.

        R has its minimum m there, which is the solution for large lam.

        Args:
            m: Number of columns.

        Returns:
            The basis (n, m).
        """
        pieces = range(0, self.rows.shape[1], _CHUNK)
        squares = [np.square(self.rows[:, k : k + _CHUNK] * self.scales[:, None]).sum(axis=0) for k in pieces]
        Y = np.zeros((self.rows.shape[1], m))
        Y[np.argsort(-np.concatenate(squares), kind="stable")[:m], range(m)] = 1.0
        return Y

    def combined(self, coefficients: Float64[np.ndarray, "q m"]) -> Basis:
        """Combine the gradients linearly.

        Args:
            coefficients: Coefficients (q, m) of the gradients.

        Returns:
            The combinations (n, m), float64.
        """
        pieces = range(0, self.rows.shape[1], _CHUNK)
        return np.vstack([self.rows[:, k : k + _CHUNK].astype(np.float64).T @ coefficients for k in pieces])


def solve(plain: Sequence[Solution], options: Options, start: Any) -> Solution:
    """Minimise eq. 5 with a norm of Y, from several starts.

    Args:
        plain: Solutions for lam = 0, with the gradients. They are the starts "equal" and "data", with unit columns.
        options: Options with the norm and its weight.
        start: As for `fa.irls.solve`.

    Returns:
        The best end, whose Y is a tensor on the gradients' device.

    Raises:
        ValueError: `start` has a wrong shape.
    """
    solution, gradients = plain[0], plain[0].gradients
    assert gradients is not None
    problem = solution.problem
    task = task_of(problem, solution.gram, gradients.G, options.regularizer, options.lam)
    tol = options.tol * mean_weight(options.worker_weights)
    runs = (minimise(task, Y, tol, options.max_iter) for Y in _starts(task, plain, start, options))
    point, history, converged = min(runs, key=lambda run: run[0].smoothed_objective)
    return replace(
        solution,
        objective=problem.objective(point.residuals) + options.lam * point.norm,
        objective_error_bound=problem.objective_error_bound(point.residuals),
        history=history,
        converged=converged,
        values=1.0 - point.residuals[: problem.p],
        coefficients=None,
        lam=options.lam,
        Y=torch.from_numpy(point.Y).to(gradients.G.device, torch.promote_types(gradients.G.dtype, torch.float32)),
    )


def _starts(task: Task, plain: Sequence[Solution], start: Any, options: Options) -> Iterator[Basis]:
    """Yield the bases of the chosen start, then random ones."""
    n, m = task.rows.shape[1], min(plain[0].m, len(task.problem.terms))
    generator = np.random.default_rng(options.seed)
    if not isinstance(start, str):
        basis = read_start(start).cpu().numpy()
        check("start", basis.shape, basis.shape == (n, m), f"of ({n}, {m}) for this regularizer")
        rank = int(np.linalg.matrix_rank(basis))
        check("the rank of start", rank, rank == m, f"m = {m} for this regularizer")
        yield basis
    elif start == "random":
        yield generator.standard_normal((n, m))
    else:
        for solution in plain:
            assert solution.coefficients is not None  # The solutions have lam = 0, so Y is in span(G).
            yield task.combined(solution.coefficients)
        yield task.units(m)
    for _ in range(options.restarts):
        yield generator.standard_normal((n, m))


def read_start(start: Any) -> Float64[Tensor, "n k"]:
    """Read the basis of a start.

    Args:
        start: An array or a tensor of numbers.

    Returns:
        The numbers, float64.

    Raises:
        ValueError: They are not finite, or not numbers.
    """
    check("start", start, start is not None, "a name, or an array of (n, k)")
    basis = to_real_tensor(start, "start").double()
    check("start", "NaN or Inf", bool(torch.isfinite(basis).all()), "finite")
    return basis


def minimise(task: Task, Y: Basis, tol: float, max_iter: int) -> tuple[Point, tuple[float, ...], bool]:
    """Minimise the objective by proximal steps.

    Args:
        task: Terms and norm.
        Y: Start (n, m); its polar factor is taken.
        tol: Change of the smoothed objective below which the iteration has converged.
        max_iter: Largest number of steps.

    Returns:
        The last point, the smoothed objective after each step, and True if the last step changed it by less than tol.
    """
    point = task.at(orthonormal(Y))
    history: list[float] = []
    steepest = (task.problem.factors * task.problem.weights(point.residuals)).max()
    t, T, easy = 1 / max(steepest, 1.0), np.zeros((Y.shape[1], Y.shape[1])), 0
    while len(history) < max_iter:
        before = point.smoothed_objective
        point, shorter, T = _lower(task, point, t, T)
        history.append(point.smoothed_objective)
        if before - point.smoothed_objective < tol:
            return point, tuple(history), bool(shorter > 0)
        easy = easy + 1 if shorter == t else 0
        t = shorter
        if easy == 3:
            t, T, easy = 2 * t, 2 * T, 0
    return point, tuple(history), False


def _lower(task: Task, point: Point, t: float, T: Square) -> tuple[Point, float, Square]:
    """Halve t until a step lowers the objective, and return the new point, t and T.

    The same point is returned if no step does, or if Y has no column; t is 0 if Newton's method failed for every step,
    as it does for huge lam.
    """
    failures = 0
    for _ in range(_HALVINGS if point.Y.size else 0):
        Z, T = proximal_step(task, point, t, T)
        if Z is not None and (lower := task.at(Z)).smoothed_objective < point.smoothed_objective:
            return lower, t, T
        failures += Z is None
        if failures == _FAILURES:
            return point, 0.0, T
        t, T = t / 2, T / 2
    return point, t, T


def proximal_step(task: Task, point: Point, t: float, T: Square) -> tuple[Basis | None, Square]:
    """Take one proximal step, by a semismooth Newton method for the multiplier.

    Args:
        task: Terms and norm.
        point: Current point.
        t: Step size.
        T: Symmetric multiplier (m, m) at which Newton's method starts.

    Returns:
        Y + D made orthonormal, or None if that fails, and the multiplier.
    """
    from fa.kernels import stiefel

    problem, Y = task.problem, point.Y
    slopes = (problem.factors * problem.weights(point.residuals))[problem.owner] / problem.a
    C = (2 * t * slopes * task.scales)[:, None] * point.products
    Z, eye = np.empty_like(Y), np.eye(Y.shape[1])
    before, direction, length = np.inf, np.zeros_like(T), 1.0
    for _ in range(_NEWTON):
        products, squares, moved, blocks, bend = stiefel.prox(
            task.rows, Y, eye + T, C, t * task.lam, task.name == "rows", Z
        )
        merit, error = squares / 2 - np.trace(T), products - eye
        if np.linalg.norm(error + error.T) <= max(0.1 * moved, 1e-13):
            break
        if merit > before and length > 1e-3:
            length, T = length / 4, T - 0.75 * length * direction
            continue
        direction, length, before = _symmetric_solution(blocks, bend, -error), 1.0, merit
        T = T + direction
    if task.name == "l1":
        return _within_support(Z), T
    Z = orthonormal(Z)
    full = np.abs(Z.T @ Z - eye).max() < _ORTHONORMAL  # The norm may have shrunk a whole column to 0.
    return (Z if full else None), T


def orthonormal(Z: Basis) -> Basis:
    """Compute the polar factor, which is the nearest matrix with orthonormal columns; zero rows stay zero.

    Args:
        Z: Matrix (n, m) of rank m.

    Returns:
        The polar factor (n, m).
    """
    for _ in range(2):  # The second pass corrects the rounding error of Z^T Z.
        lengths, vectors = np.linalg.eigh(Z.T @ Z)
        Z = Z @ ((vectors / np.sqrt(np.maximum(lengths, 1e-100))) @ vectors.T)
    return Z


def _within_support(Z: Basis) -> Basis | None:
    """Correct the nonzero entries of Z until Z^T Z = I; return None if that fails."""
    from fa.kernels import stiefel

    S, columns = np.zeros((Z.shape[1], Z.shape[1])), np.arange(Z.shape[1])
    for _ in range(8):
        blocks = stiefel.correct(Z, S)
        error = np.eye(len(S)) - blocks[columns, :, columns].T
        if np.abs(error).max() < _ORTHONORMAL:
            return Z
        if not np.abs(error).max() < 10:
            return None
        S = _symmetric_solution(blocks, None, error / 2)
    return None


def _symmetric_solution(blocks: np.ndarray, bend: np.ndarray | None, right: Square) -> Square:
    """Solve for a symmetric S.

    The symmetric part of [blocks_j S_j]_j, plus the contribution of `bend`, equals the symmetric part of `right`.
    """
    m = len(right)
    upper = np.triu_indices(m)
    unknown = np.arange(upper[0].size)
    spread = np.zeros((m, m, unknown.size))  # Entry [j, a, s] is entry (a, j) of the s-th symmetric unit matrix.
    spread[upper[0], upper[1], unknown] = spread[upper[1], upper[0], unknown] = 1.0
    system = (spread.transpose(0, 2, 1) @ (blocks @ spread)).sum(axis=0)
    if bend is not None:
        system += bend
    eigenvalues, vectors = nonzero_eigenpairs(system, 1e-300)
    solution = vectors @ ((vectors.T @ spread.reshape(m * m, -1).T @ right.T.ravel()) / eigenvalues)
    return np.asarray(spread @ solution)


def task_of(problem: Problem, gram: Gram, G: Tensor, name: str, lam: float) -> Task:
    """Build the task for gradients in memory.

    Args:
        problem: Data terms of eq. 5.
        gram: Gram matrix of the gradients.
        G: Gradients (q, n); they are moved to the CPU, and half precision is converted to float32.
        name: Norm: "l1" or "rows".
        lam: Weight of the norm.

    Returns:
        The task, whose rows are a numpy array.
    """
    scales = gram.divide_by_norms(norm_fractions(gram, problem.owner[: gram.p]))
    rows: Any = G.cpu() if G.dtype in (torch.float32, torch.float64) else G.cpu().float()
    return Task(problem, rows.numpy(), scales, name, lam)
