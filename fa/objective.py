"""Eq. 5 of the paper as it is written, of a basis Y (n, m): the data terms, the regularizer, and their gradient.

    A(Y) = sum_i (1 - v_i)^(1/a) + lam R(Y),     v_i = tr(Y^T X_i X_i^T Y),     X_i = g_i/||g_i||_F

with a = 2 in the paper. Here everything is of size n, in float64, and nothing of what a solver does is used: this is
what solvers are held to. 1 - v_i is the squared length of what Y leaves of X_i, and not 1 less v_i, which would cancel.

The regularizers are "pairwise", R = 1/(p - 1) sum over i != j of (1 - ||Y^T (g_i - g_j)||^2/D_ij^2)^(1/a), and the
norms of `fa.irls.regularizers`. The term of a gradient that is zero, and of a pair that is equal, is 0.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from fa import irls
from fa.gradients import check_finite, read_groups
from fa.irls import regularizers
from fa.utils.validation import check, check_one_of, check_real

ORTHONORMAL = 1e-4  # by which an entry of Y^T Y may differ from the identity's: a float32 QR of 10^6 rows has 6e-5

Rows = Float64[Tensor, "N n"]
Owner = Int[Tensor, " N"]
Basis = Float64[Tensor, "n m"]


def values(G: Any, Y: Any) -> Float64[np.ndarray, " p"]:
    """The explained variances v_i (p,) of the gradients G under the basis Y (n, m); 1 for a gradient that is zero.

    G: (p, n), one worker a row, or a list of (k_i, n) arrays, k_i gradients from worker i. Raises ValueError for rows
    that are not finite and for columns that are not orthonormal.
    """
    rows, owner, basis = _read(G, Y)
    left = _left(_unit(rows, owner), owner, basis)
    values: np.ndarray = (1 - left).clamp(min=0.0).cpu().numpy()
    return values


def value(G: Any, Y: Any, lam: float = 0.0, regularizer: str = "pairwise", a: float = 2.0) -> float:
    """Eq. 5 at Y, with (1 - v)^(1/a) for the square root; arguments and errors as for `values`.

    lam >= 0 weighs the regularizer: "pairwise", "l1", "group" or "rows". "pairwise" needs one gradient a worker.
    """
    rows, owner, basis = _read(G, Y)
    total = sum(
        factor * float((_left(terms, of, basis) ** (1 / a)).sum())
        for factor, terms, of in _terms(rows, owner, lam, regularizer, a)
    )
    if lam > 0 and regularizer != "pairwise":
        total += lam * regularizers.value(regularizer, basis)
    return total


def gradient(
    G: Any, Y: Any, lam: float = 0.0, regularizer: str = "pairwise", a: float = 2.0
) -> Float64[Tensor, "n m"] | Float64[np.ndarray, "n m"]:
    """The Euclidean gradient (n, m) of eq. 5 by Y, float64, a tensor where Y is one; of a norm, a subgradient.

    Below irls.FLOOR, where the power's slope grows without bound, 1 - v counts as irls.FLOOR.
    """
    rows, owner, basis = _read(G, Y)
    total = torch.zeros_like(basis)
    for factor, terms, of in _terms(rows, owner, lam, regularizer, a):
        slopes = factor / a * _left(terms, of, basis).clamp(min=irls.FLOOR) ** (1 / a - 1)
        total -= 2 * terms.T @ (slopes[of][:, None] * (terms @ basis))
    if lam > 0 and regularizer != "pairwise":
        total += lam * regularizers.gradient(regularizer, basis)
    return total if isinstance(Y, Tensor) else total.cpu().numpy()


def _read(G: Any, Y: Any) -> tuple[Rows, Owner, Basis]:
    """All gradients as rows, the worker of each, and the basis, checked."""
    gradients, counts = read_groups(G)
    rows = gradients.G.double()
    check_finite(torch.isfinite(rows).all(dim=1).tolist(), counts)
    basis = torch.as_tensor(Y, dtype=torch.float64, device=rows.device).detach()
    n = rows.shape[1]
    shape = tuple(basis.shape)
    check("Y", shape, len(shape) == 2 and shape[0] == n and 1 <= shape[1] <= n, f"of ({n}, m), with m from 1 to n")
    off = float((basis.T @ basis - torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)).abs().max())
    if not off <= ORTHONORMAL:
        raise ValueError(f"Y must have orthonormal columns; Y^T Y differs from the identity by {off:.1e}")
    return rows, torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(rows.device), basis


def _terms(rows: Rows, owner: Owner, lam: float, regularizer: str, a: float) -> Iterator[tuple[float, Rows, Owner]]:
    """The data terms and then, worker by worker, the pairs': their factor, the unit rows, and the term of each."""
    check_real("lam", lam, 0)
    check_one_of("regularizer", regularizer, ("pairwise", *regularizers.NAMES))
    check_real("a", a, 0)
    check("a", a, a > 0, "greater than 0")
    p = len(rows)
    yield 1.0, _unit(rows, owner), owner
    if lam == 0 or regularizer != "pairwise":
        return
    check("lam", lam, p == int(owner[-1]) + 1, "0 where a worker has several gradients, which form no pairs")
    for i in range(p - 1):
        of = torch.arange(p - 1 - i, device=rows.device)
        yield 2 * lam / (p - 1), _unit(rows[i + 1 :] - rows[i], of), of


def _unit(rows: Rows, owner: Owner) -> Rows:
    """The rows divided so that each owner's have Frobenius norm 1 together; zeros stay so.

    First by the largest entry, so that no square leaves the range.
    """
    for order in (torch.inf, 2.0):
        norms = torch.linalg.vector_norm(rows, ord=order, dim=1)
        largest = torch.zeros_like(norms).scatter_reduce(0, owner, norms, "amax")
        together = largest if order == torch.inf else _summed(norms.square(), owner).sqrt()
        rows = rows / torch.where(together > 0, together, 1.0)[owner][:, None]
    return rows


def _left(rows: Rows, owner: Owner, Y: Basis) -> Float64[Tensor, " T"]:
    """1 - v of each term: the squared length of what Y leaves of its rows."""
    left = rows - (rows @ Y) @ Y.T
    return _summed(left.square().sum(dim=1), owner)[: int(owner[-1]) + 1]


def _summed(numbers: Float64[Tensor, " N"], owner: Owner) -> Float64[Tensor, " N"]:
    """Added up by owner, of whom there are no more than numbers."""
    return torch.zeros_like(numbers).index_add(0, owner, numbers)
