"""Eq. 5 with a norm of Y for a regularizer, over all Y^T Y = I and not only those in span(G).

    min over Y^T Y = I of  sum_k c_k (1 - ||Y^T t_k||^2)^(1/a) + lam R(Y),     R "l1" or "rows"

A step is one of the manifold proximal gradient method: D minimises <grad, D> + ||D||^2/(2t) + lam R(Y + D) among the
tangents, Y^T D + D^T Y = 0. With a symmetric multiplier T, Y + D is the norm's proximal map of Y T - t grad, and a
semismooth Newton method finds T (m x m). Y + D is then made orthonormal: for "rows" by its polar factor, and for "l1"
by Newton steps within its support, so that entries that are 0 stay exactly 0. t is halved until the smoothed objective
falls, and doubled after three steps in which it fell at once: every step lowers it.

The data terms are concave in v, and of unbounded slope where Y reproduces a gradient. There, as at the solution for
lam = 0, steps are very short, and R hardly falls.

Where lam matters: R is at least m (each column has sum |Y_j| >= ||Y_j|| = 1), and about m sqrt(2n/pi) at a dense "l1"
basis, sqrt(n m) at a dense one by "rows"; the data terms are at most p. So what changes with lam changes around p/(m
sqrt(n)) for "l1", and p/sqrt(n m) for "rows".

Everything of size n is in memory, on the CPU, in float64: Y and two more of its size.

Source: Chen, Ma, So and Zhang, Proximal Gradient Method for Nonsmooth Optimization over the Stiefel Manifold, SIAM
Journal on Optimization 30 (2020). There, the polar factor is taken, and the length of D is halved and not t.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from fa.gradients.gram import Gram
from fa.irls import regularizers
from fa.irls.problem import Problem, norm_fractions

_CHUNK = 1 << 14  # coordinates taken to float64 at a time
_HALVINGS = 25  # of t, after which no step lowers the objective by more than rounding
_NEWTON = 20
_ORTHONORMAL = 1e-13  # by which an entry of Y^T Y may differ from the identity's

Basis = Float64[np.ndarray, "n m"]
Square = Float64[np.ndarray, "m m"]


@dataclass(frozen=True)
class Point:
    """A basis Y, the products t_k^T Y (q, m) with all gradients, the residuals 1 - v, R(Y), and the objective."""

    Y: Basis
    products: Float64[np.ndarray, "q m"]
    residuals: Float64[np.ndarray, " T"]
    norm: float
    smoothed_objective: float


@dataclass(frozen=True)
class Task:
    """Eq. 5 with lam times the norm of this name: `rows` (q, n) times `scales` (q,) are the columns of the terms."""

    problem: Problem
    rows: np.ndarray
    scales: Float64[np.ndarray, " q"]
    name: str
    lam: float

    def at(self, Y: Basis) -> Point:
        """What is known of Y, in two passes."""
        n = len(Y)
        pieces = [slice(start, start + _CHUNK) for start in range(0, n, _CHUNK)]
        raw = sum((self.rows[:, piece].astype(np.float64) @ Y[piece] for piece in pieces), np.zeros((1, 1)))
        left = np.zeros(len(self.rows))
        for piece in pieces:
            lost = (self.rows[:, piece] - raw @ Y[piece].T) * self.scales[:, None]
            left += np.square(lost).sum(axis=1)
        residuals = np.bincount(self.problem.owner, left, minlength=self.problem.factors.size)
        norm = regularizers.value(self.name, torch.from_numpy(Y))
        smoothed = self.problem.smoothed_objective(residuals) + self.lam * norm
        return Point(Y, raw * self.scales[:, None], residuals, norm, smoothed)

    def units(self, m: int) -> Basis:
        """Unit columns for the m coordinates that hold most of the terms. R is at its least, m, as for large lam."""
        pieces = range(0, self.rows.shape[1], _CHUNK)
        held = [np.square(self.rows[:, k : k + _CHUNK] * self.scales[:, None]).sum(axis=0) for k in pieces]
        Y = np.zeros((self.rows.shape[1], m))
        Y[np.argsort(-np.concatenate(held), kind="stable")[:m], range(m)] = 1.0
        return Y

    def combined(self, coefficients: Float64[np.ndarray, "q m"]) -> Basis:
        """The gradients' combinations with these coefficients."""
        pieces = range(0, self.rows.shape[1], _CHUNK)
        return np.vstack([self.rows[:, k : k + _CHUNK].astype(np.float64).T @ coefficients for k in pieces])


def minimise(task: Task, Y: Basis, tol: float, max_iter: int) -> tuple[Point, tuple[float, ...], bool]:
    """The last point, the objective after each step, and whether the last changed it by less than tol."""
    point = task.at(orthonormal(Y))
    history: list[float] = []
    steepest = (task.problem.factors * task.problem.weights(point.residuals)).max()
    t, T, easy = 1 / max(steepest, 1.0), np.zeros((Y.shape[1], Y.shape[1])), 0
    while len(history) < max_iter:
        found, shorter, T = _lower(task, point, t, T)
        history.append(found.smoothed_objective)
        change, point = point.smoothed_objective - found.smoothed_objective, found
        if change < tol:
            return point, tuple(history), True
        easy = easy + 1 if shorter == t else 0
        t = shorter
        if easy == 3:
            t, T, easy = 2 * t, 2 * T, 0
    return point, tuple(history), False


def _lower(task: Task, point: Point, t: float, T: Square) -> tuple[Point, float, Square]:
    """The point after the first step, with t halved until then, that lowers the objective; the same point if none does,
    as where Y has no column.
    """
    for _ in range(_HALVINGS if point.Y.size else 0):
        Z, T = proximal_step(task, point, t, T)
        if Z is not None and (found := task.at(Z)).smoothed_objective < point.smoothed_objective:
            return found, t, T
        t, T = t / 2, T / 2
    return point, t, T


def proximal_step(task: Task, point: Point, t: float, T: Square) -> tuple[Basis | None, Square]:
    """Y + D for this t, made orthonormal (None where that fails), and the multiplier; T is where Newton begins."""
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
    full = np.abs(Z.T @ Z - eye).max() < _ORTHONORMAL  # not where a column was drawn to 0
    return (Z if full else None), T


def orthonormal(Z: Basis) -> Basis:
    """The polar factor of Z, the nearest matrix with orthonormal columns: rows that are 0 stay so."""
    for _ in range(2):  # the second time mends what the squares in Z^T Z lose
        lengths, vectors = np.linalg.eigh(Z.T @ Z)
        Z = Z @ ((vectors / np.sqrt(np.maximum(lengths, 1e-100))) @ vectors.T)
    return Z


def _within_support(Z: Basis) -> Basis | None:
    """The entries of Z that are not 0, corrected until Z^T Z = I; None where they cannot be."""
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
    """The symmetric S for which the symmetric part of [blocks_j S_j]_j, and of what `bend` adds, is `right`'s."""
    m = len(right)
    upper = np.triu_indices(m)
    unknown = np.arange(upper[0].size)
    spread = np.zeros((m, m, unknown.size))  # [j, a, s]: the entry (a, j) of the symmetric matrix of s
    spread[upper[0], upper[1], unknown] = spread[upper[1], upper[0], unknown] = 1.0
    system = (spread.transpose(0, 2, 1) @ (blocks @ spread)).sum(axis=0)
    if bend is not None:
        system += bend
    lengths, vectors = np.linalg.eigh(system)
    kept = lengths > 1e-12 * max(lengths[-1], 1e-300)
    solution = vectors[:, kept] @ ((vectors[:, kept].T @ spread.reshape(m * m, -1).T @ right.T.ravel()) / lengths[kept])
    return np.asarray(spread @ solution)


def task_of(problem: Problem, gram: Gram, G: Tensor, name: str, lam: float) -> Task:
    """The task of gradients (q, n) in memory, in float32 or float64."""
    scales = gram.divide_by_norms(norm_fractions(gram, problem.owner[: gram.p]))
    rows: Any = G.cpu() if G.dtype in (torch.float32, torch.float64) else G.cpu().float()
    return Task(problem, rows.numpy(), scales, name, lam)
