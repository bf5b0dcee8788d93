"""Options and solutions of the solvers of eq. 5."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from fa import kernels
from fa.gradients import Gradients, read_groups
from fa.gradients.gram import Gram
from fa.irls import regularizers
from fa.irls.problem import Formulation, GroupTerm, Problem, build_problem
from fa.irls.worker_weights import read_weights
from fa.utils.validation import check, check_integer, check_one_of, check_real

FORMULATIONS = ("paper", "released")
"""Names of the formulations: that of the paper, and that of the released code."""

GROUP_TERMS = ("fraction", "chordal")
"""Names of the terms of a worker with several gradients; see `fa.irls.problem.GroupTerm`."""

REGULARIZERS = ("pairwise", *regularizers.NAMES)
"""Names of the regularizers."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `solve` that do not depend on the gradients.

    Attributes:
        m: Number of columns of Y; None for ceil((p + 1)/2).
        lam: Weight of the regularizer, at least 0.
        regularizer: One of `REGULARIZERS`.
        a: Inverse of the power, at least 1, where (1 - v)^(1/a) is concave in v.
        tol: Change of the smoothed objective below which the iteration has converged.
        max_iter: Largest number of steps.
        restarts: Number of further, random starts.
        seed: Seed of the random starts.
        worker_weights: Weight of each worker, as in `fa.irls.worker_weights`; None for 1.
        group_term: Term of a worker with several gradients, one of `GROUP_TERMS`.

    Raises:
        ValueError: A value is out of range.
    """

    m: int | None = None
    lam: float = 0.0
    regularizer: str = "pairwise"
    a: float = 2.0
    tol: float = 1e-10
    max_iter: int = 5
    restarts: int = 0
    seed: int = 0
    worker_weights: Sequence[float] | np.ndarray | None = None
    group_term: GroupTerm = "fraction"

    def __post_init__(self) -> None:
        if self.worker_weights is not None:
            object.__setattr__(self, "worker_weights", read_weights(self.worker_weights))
        check_one_of("group_term", self.group_term, GROUP_TERMS)
        if self.m is not None:
            check_integer("m", self.m, 1)
        check_real("lam", self.lam, 0)
        check_one_of("regularizer", self.regularizer, REGULARIZERS)
        check_real("a", self.a, 1, ", where (1 - v)^(1/a) is concave")
        check_real("tol", self.tol, 0)
        check_integer("max_iter", self.max_iter, 1)
        check_integer("restarts", self.restarts, 0)
        check_integer("seed", self.seed, 0)
        within = self.group_term == "fraction" or not self.leaves_span
        check("group_term", self.group_term, within, f'"fraction" with regularizer={self.regularizer!r}')

    @property
    def leaves_span(self) -> bool:
        """Return True if the regularizer's Y may leave the span of G, so that the Gram matrix does not suffice."""
        return self.lam > 0 and self.regularizer in ("l1", "rows")


_WIDTH = 1 << 18  # Number of coordinates that are converted to float64 at a time.

DEFAULTS = Options()
"""Default options."""


def basis_of_span(gradients: Gradients, coefficients: Float64[np.ndarray, "q k"]) -> Any:
    """Compute an orthonormal basis from its coefficients on the gradients.

    Args:
        gradients: The gradients (q, n).
        coefficients: C, for which the columns of G^T C are orthonormal up to rounding.

    Returns:
        The basis (n, k), an array if the gradients are numpy's, otherwise a tensor; float32 for gradients of 16 bits.
    """
    C = torch.from_numpy(coefficients).to(gradients.G.device)
    columns = torch.cat([part.double().T @ C for part in gradients.G.split(_WIDTH, dim=1)])
    # Rounding is large where gradients nearly agree.
    Y = torch.linalg.qr(columns).Q.to(torch.promote_types(gradients.G.dtype, torch.float32))
    return Y.numpy() if gradients.is_array else Y


@dataclass(frozen=True, repr=False)
class Solution:
    """Result of a solver of eq. 5.

    Attributes:
        objective: Eq. 5 at Y, with the pairs of the formulation.
        objective_error_bound: Bound on the error of `objective`, from `Problem.objective_error_bound`.
        history: Smoothed objective after each step.
        converged: True if the last step changed the smoothed objective by less than tol.
        values: Explained variances v_i (p,), float64.
        coefficients: C (q, min(m, rank G)) with Y = G^T C; None with "l1" and "rows", for which Y leaves span(G).
        m: Number of columns of Y.
        lam: Weight of the regularizer.
        a: Inverse of the power.
        regularizer: One of `REGULARIZERS`.
        formulation: "paper" for the pairs of eq. 5, "released" for those of the released code.
        gram: Gram matrix of all q gradients.
        counts: Number of gradients of each worker.
        gradients: The gradients; None if the solver had only their Gram matrix.
        Y: Basis (n, m) with "l1" and "rows", in the gradients' dtype (float32 for halves); a tensor if G is one.
            Otherwise None.
        worker_weights: Weight of each worker; None for 1.
        group_term: Term of a worker with several gradients.
    """

    objective: float
    objective_error_bound: float
    history: tuple[float, ...]
    converged: bool
    values: Float64[np.ndarray, " p"]
    coefficients: Float64[np.ndarray, "q m"] | None
    m: int
    lam: float
    a: float
    regularizer: str
    formulation: Formulation
    gram: Gram
    counts: tuple[int, ...]
    gradients: Gradients | None = None
    Y: Any = None
    worker_weights: Sequence[float] | np.ndarray | None = None
    group_term: GroupTerm = "fraction"

    @property
    def iterations(self) -> int:
        """Return the number of steps."""
        return len(self.history)

    @cached_property
    def problem(self) -> Problem:
        """Return the data terms and pairs in a basis of span(G), without a norm of Y."""
        lam = self.lam if self.regularizer == "pairwise" else 0.0
        settings = self.formulation, self.counts, self.worker_weights, self.group_term
        return build_problem(self.gram, self.m, lam, self.a, *settings)

    @property
    def coordinates(self) -> Float64[np.ndarray, "r m"]:
        """Return Y's coordinates in the basis of `problem`, orthonormal up to rounding.

        Raises:
            ValueError: The regularizer is "l1" or "rows", for which Y leaves span(G).
        """
        if self.coefficients is None:
            requirement = "for a Y in the span of G"
            raise ValueError(f'regularizer must be "pairwise" or "group" {requirement}, got {self.regularizer!r}')
        products = self.gram.cosines @ (self.gram.norms[:, None] * self.coefficients)
        coordinates: np.ndarray = self.problem.basis.T @ products
        return coordinates

    def __repr__(self) -> str:
        return (
            f"Solution(objective={self.objective:.6g}, iterations={self.iterations}, converged={self.converged}, "
            f"p={len(self.counts)}, m={self.m}, lam={self.lam:g}, a={self.a:g}, regularizer={self.regularizer!r})"
        )

    def basis(self, G: Any = None) -> Any:
        """Compute an orthonormal basis of the subspace, for every regularizer.

        Args:
            G: The gradients that the solution belongs to. None: those that it has. Required after `solve_gram` without
                gradients.

        Returns:
            Y (n, min(m, rank G)), an array if G is one, otherwise a tensor; float32 for gradients of 16 bits.

        Raises:
            ValueError: The solution comes from a Gram matrix alone and G is None, or G has another number of rows.
        """
        if self.Y is not None:
            return self.Y
        if G is None and self.gradients is None:
            raise ValueError("G must be the gradients of this solution of a Gram matrix, got None")
        gradients = self.gradients if G is None else read_groups(G)[0]
        assert gradients is not None and self.coefficients is not None  # Only "l1" and "rows" have no coefficients.
        found, needed = len(gradients.G), len(self.coefficients)
        check("G", found, found == needed, f"{needed} gradients")
        return basis_of_span(gradients, self.coefficients)

    def weights(self, formulation: Formulation | None = None) -> Float64[np.ndarray, " q"]:
        """Compute the direction's coefficients on the gradients.

        - "paper": (1/p) Y Y^T G 1.
        - "released": (1/m) sum_i Y Y^T g_i/||g_i||.

        A worker with several gradients counts with their mean. With weights c_i, each g_i is multiplied by c_i over the
        mean weight.

        Args:
            formulation: "paper" or "released"; None for the solution's.

        Returns:
            The coefficients (q,), float64.

        Raises:
            ValueError: The regularizer is "l1" or "rows", or ratios of norms leave the range of float64.
        """
        if self.coefficients is None:
            requirement = "for a direction that combines the gradients"
            raise ValueError(f'regularizer must be "pairwise" or "group" {requirement}, got {self.regularizer!r}')
        lengths = self.gram.cosines @ self._shares(formulation)
        scaled = self.gram.norms[:, None] * self.coefficients
        with np.errstate(over="ignore"):
            weights = self.gram.divide_by_norms(scaled @ (scaled.T @ lengths))
        self.gram.check_ratios(weights)
        return weights

    def _shares(self, formulation: Formulation | None) -> Float64[np.ndarray, " q"]:
        """Return the coefficients on the unit gradients of the vector that Y Y^T projects."""
        formulation = self.formulation if formulation is None else formulation
        check_one_of("formulation", formulation, FORMULATIONS)
        norms, each = self.gram.norms, np.repeat(1 / np.array(self.counts), self.counts)
        if self.worker_weights is not None:
            each = each * np.repeat(np.array(self.worker_weights) / np.mean(self.worker_weights), self.counts)
        return each * (norms / len(self.counts) if formulation == "paper" else (norms > 0) / self.m)

    def direction(self, formulation: Formulation | None = None) -> Any:
        """Compute the direction d, with the formulas of `weights`.

        Args:
            formulation: "paper" or "released"; None for the solution's.

        Returns:
            d (n,), of the gradients' kind, dtype and device.

        Raises:
            ValueError: The solution comes from a Gram matrix alone, or as for `weights`.
        """
        if self.gradients is None:
            cure = "Combine the gradients with .weights()."
            raise ValueError(f"solution must have the gradients, got one of a Gram matrix alone. {cure}")
        G = self.gradients.G
        if self.Y is None:
            return self.gradients.restore(kernels.combine(G, self.weights(formulation))[0])
        mean = kernels.combine(G, self.gram.divide_by_norms(self._shares(formulation)))[0].double()
        Y = torch.as_tensor(self.Y, device=G.device).double()
        return self.gradients.restore((Y @ (Y.T @ mean)).to(G.dtype))
