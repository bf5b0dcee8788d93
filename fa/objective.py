"""Evaluate eq. 5 of the paper as written, for a basis Y (n, m): explained variances, value and gradient.

    A(Y) = sum_i (1 - v_i)^(1/a) + lam R(Y),     v_i = tr(Y^T X_i X_i^T Y),     X_i = g_i/||g_i||_F

The paper has a = 2. All arrays have size n and are float64. No step of a solver is used, so that solvers can be
checked against this module. 1 - v_i is the squared length of X_i's residual: subtracting v_i from 1 would cancel.

The regularizers are:

- "pairwise": R = 1/(p - 1) sum over i != j of (1 - ||Y^T (g_i - g_j)||^2/D_ij^2)^(1/a).
- "l1", "group", "rows": the norms of `fa.irls.regularizers`.

The term of a zero gradient is 0, as is the term of a pair of equal gradients.

With weights c_i of the workers, the term of worker i is multiplied by c_i, and that of a pair by c_i c_j over the mean
weight. With group_term="chordal", the term of worker i is min(m, k) - tr(Y^T Q_i Q_i^T Y) to the power 1/a, where Q_i
is an orthonormal basis of the k-dimensional span of the worker's gradients, and v_i = tr(Y^T Q_i Q_i^T Y)/min(m, k).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from fa import irls
from fa.gradients import check_finite, read_groups
from fa.gradients.inputs import to_real_tensor
from fa.irls import GroupTerm, regularizers
from fa.irls.worker_weights import read_weights
from fa.utils.validation import check, check_one_of, check_positive, check_real

ORTHONORMAL = 1e-4  # Largest accepted difference between Y^T Y and I; a float32 QR of 10^6 rows has 6e-5.

_RANK = 1e-6  # Fraction of a worker's largest singular value below which a singular value is rounding error.

Rows = Float64[Tensor, "N n"]
Owner = Int[Tensor, " N"]
Basis = Float64[Tensor, "n m"]
PerTerm = Float64[Tensor, " T"]


def values(G: Any, Y: Any, group_term: GroupTerm = "fraction") -> Float64[np.ndarray, " p"]:
    """Compute the explained variances v_i of the gradients under a basis.

    Args:
        G: Gradients (p, n), one worker per row, or a list of (k_i, n) arrays, k_i gradients from worker i.
        Y: Basis (n, m) with orthonormal columns, an array or a tensor.
        group_term: Term of a worker with several gradients, "fraction" or "chordal".

    Returns:
        The v_i (p,), float64; 1 for a zero gradient.

    Raises:
        ValueError: G has a row with NaN or Inf, or Y has another shape or columns that are not orthonormal.
    """
    rows, owner, basis = _read(G, Y)
    residuals = _worker_terms(rows, owner, basis.shape[1], group_term).residuals(basis)
    values: np.ndarray = (1 - residuals).clamp(min=0.0).cpu().numpy()
    return values


def value(
    G: Any,
    Y: Any,
    lam: float = 0.0,
    regularizer: str = "pairwise",
    a: float = 2.0,
    worker_weights: Any = None,
    group_term: GroupTerm = "fraction",
) -> float:
    """Evaluate eq. 5 at Y, with the power 1/a.

    Args:
        G: Gradients, as in `values`.
        Y: Basis (n, m), as in `values`.
        lam: Weight of the regularizer, at least 0.
        regularizer: "pairwise", "l1", "group" or "rows". "pairwise" needs one gradient per worker.
        a: Inverse of the power, greater than 0; the paper has 2.
        worker_weights: Weight c_i > 0 of each worker; None for 1.
        group_term: Term of a worker with several gradients, "fraction" or "chordal".

    Returns:
        The value of eq. 5.

    Raises:
        ValueError: An argument is out of range, as in `values`.

    Example:
        >>> import numpy as np
        >>> from fa import objective
        >>> G = np.array([[2.0, 1.0, 0.0], [2.0, -1.0, 0.0], [0.0, 0.0, 5.0]])
        >>> Y = np.array([[1.0], [0.0], [0.0]])
        >>> objective.values(G, Y).round(3).tolist()
        [0.8, 0.8, 0.0]
        >>> round(objective.value(G, Y), 4)
        1.8944
    """
    equation = _Equation(lam, regularizer, a, worker_weights, group_term)
    rows, owner, basis = _read(G, Y)
    total = sum(
        float(factors @ terms.residuals(basis) ** (1 / a))
        for factors, terms in equation.sums(rows, owner, basis.shape[1])
    )
    return total + lam * regularizers.value(regularizer, basis) if equation.has_norm else total


def gradient(
    G: Any,
    Y: Any,
    lam: float = 0.0,
    regularizer: str = "pairwise",
    a: float = 2.0,
    worker_weights: Any = None,
    group_term: GroupTerm = "fraction",
) -> Float64[Tensor, "n m"] | Float64[np.ndarray, "n m"]:
    """Compute the Euclidean gradient of eq. 5 with respect to Y.

    The slope of the power is unbounded as 1 - v tends to 0. Values of 1 - v below `fa.irls.FLOOR` are therefore
    replaced by it. For a norm of Y, the result is a subgradient.

    Args:
        G: Gradients, as in `values`.
        Y: Basis (n, m), as in `values`.
        lam: Weight of the regularizer, as in `value`.
        regularizer: Name of the regularizer, as in `value`.
        a: Inverse of the power, as in `value`.
        worker_weights: Weights of the workers, as in `value`.
        group_term: Term of a worker with several gradients, as in `value`.

    Returns:
        The gradient (n, m), float64, a tensor if Y is one.

    Raises:
        ValueError: An argument is out of range, as in `value`.
    """
    equation = _Equation(lam, regularizer, a, worker_weights, group_term)
    rows, owner, basis = _read(G, Y)
    total = torch.zeros_like(basis)
    for factors, terms in equation.sums(rows, owner, basis.shape[1]):
        slopes = factors / terms.sizes.clamp(min=1.0) / a * terms.residuals(basis).clamp(min=irls.FLOOR) ** (1 / a - 1)
        total -= 2 * terms.rows.T @ (slopes[terms.owner][:, None] * (terms.rows @ basis))
    if equation.has_norm:
        total += lam * regularizers.gradient(regularizer, basis)
    return total if isinstance(Y, Tensor) else total.cpu().numpy()


def _read(G: Any, Y: Any) -> tuple[Rows, Owner, Basis]:
    """Return all gradients as rows, the worker of each row, and the basis, after checking them."""
    gradients, counts = read_groups(G)
    rows = gradients.G.double()
    check_finite(torch.isfinite(rows).all(dim=1).tolist(), counts)
    basis = to_real_tensor(Y, "Y").to(rows.device, torch.float64)
    n = rows.shape[1]
    shape = tuple(basis.shape)
    check("Y", shape, len(shape) == 2 and shape[0] == n and shape[1] <= n, f"of ({n}, m), with m from 0 to n")
    off = basis.T @ basis - torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
    error = float(off.abs().max()) if off.numel() else 0.0
    if not error <= ORTHONORMAL:
        raise ValueError(f"Y must have orthonormal columns, got Y^T Y with an error of {error:.1e}")
    owner = np.repeat(np.arange(len(counts)), counts)
    return rows, torch.from_numpy(owner).to(rows.device), basis


class _Terms(NamedTuple):
    """Terms of eq. 5."""

    rows: Rows  # Unit gradients, or an orthonormal basis of each term's gradients.
    owner: Owner  # Term of each row.
    sizes: PerTerm  # Largest ||Y^T X||^2 of each term; 0 if Y has no columns.

    def residuals(self, Y: Basis) -> PerTerm:
        """Compute 1 - v of each term.

        It is the squared length of the residual of the term's rows, less what no Y explains, over the term's size. No Y
        explains more than the size.
        """
        rest = self.rows - (self.rows @ Y) @ Y.T
        terms = len(self.sizes)
        residuals, lengths = (_summed(part.square().sum(dim=1), self.owner)[:terms] for part in (rest, self.rows))
        # Lengths and sizes are whole numbers, up to rounding.
        beyond = torch.where(lengths > self.sizes + 0.5, lengths - self.sizes, 0.0)
        rest = (residuals - beyond).clamp(min=0.0) / self.sizes.clamp(min=1.0)
        return torch.where((self.sizes == 0) & (lengths > 0), 1.0, rest)  # No columns explain nothing.


@dataclass(frozen=True)
class _Equation:
    """The options of eq. 5, as in `value`."""

    lam: float
    regularizer: str
    a: float
    worker_weights: Any
    group_term: GroupTerm

    def __post_init__(self) -> None:
        check_real("lam", self.lam, 0)
        check_one_of("regularizer", self.regularizer, irls.REGULARIZERS)
        check_positive("a", self.a)

    @property
    def has_norm(self) -> bool:
        """True if a norm of Y counts."""
        return self.lam > 0 and self.regularizer != "pairwise"

    def sums(self, rows: Rows, owner: Owner, m: int) -> Iterator[tuple[PerTerm, _Terms]]:
        """Yield the factors and the terms of the workers, then those of the pairs, worker by worker."""
        p, workers = len(rows), int(owner[-1]) + 1
        c = torch.ones(workers, dtype=rows.dtype, device=rows.device)
        if self.worker_weights is not None:
            c = torch.tensor(read_weights(self.worker_weights, workers), dtype=rows.dtype, device=rows.device)
        terms = _worker_terms(rows, owner, m, self.group_term)
        yield c * terms.sizes ** (1 / self.a), terms
        if self.lam == 0 or self.regularizer != "pairwise":
            return
        check("lam", self.lam, p == workers, "0 where a worker has several gradients, which form no pairs")
        for i in range(p - 1):
            pairs = torch.arange(p - 1 - i, device=rows.device)
            factors = 2 * self.lam / (p - 1) * c[i] * c[i + 1 :] / c.mean()
            yield factors, _Terms(_unit(rows[i + 1 :] - rows[i], pairs), pairs, torch.ones_like(factors))


def _worker_terms(rows: Rows, owner: Owner, m: int, group_term: GroupTerm) -> _Terms:
    """Return the workers' terms.

    - "fraction": the gradients over the Frobenius norm of their worker's, of size 1.
    - "chordal": an orthonormal basis of the span of each worker's gradients, of k dimensions and size min(m, k).
    """
    check_one_of("group_term", group_term, irls.GROUP_TERMS)
    sizes = torch.ones(int(owner[-1]) + 1, dtype=rows.dtype, device=rows.device)
    if group_term == "fraction":
        return _Terms(_unit(rows, owner), owner, sizes)
    bases, unit = [], _unit(rows, torch.arange(len(rows), device=rows.device))
    for worker in range(len(sizes)):
        _, lengths, vectors = torch.linalg.svd(unit[owner == worker], full_matrices=False)
        bases.append(vectors[lengths > _RANK * lengths[0]] if lengths[0] > 0 else vectors[:1] * 0)
        sizes[worker] = min(m, len(bases[-1]))
    counts = torch.tensor([len(basis) for basis in bases])
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts).to(rows.device)
    return _Terms(torch.cat(bases), owner, sizes)


def _unit(rows: Rows, owner: Owner) -> Rows:
    """Divide the rows so that the rows of each owner together have Frobenius norm 1; zeros stay zero.

    The rows are first divided by the largest entry, so that no square overflows or underflows.
    """
    for order in (torch.inf, 2.0):
        norms = torch.linalg.vector_norm(rows, ord=order, dim=1)
        largest = torch.zeros_like(norms).scatter_reduce(0, owner, norms, "amax")
        together = largest if order == torch.inf else _summed(norms.square(), owner).sqrt()
        rows = rows / torch.where(together > 0, together, 1.0)[owner][:, None]
    return rows


def _summed(numbers: Float64[Tensor, " N"], owner: Owner) -> Float64[Tensor, " N"]:
    """Sum by owner; the result is as long as the input."""
    return torch.zeros_like(numbers).index_add(0, owner, numbers)
