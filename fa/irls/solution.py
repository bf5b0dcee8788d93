"""What the solvers of eq. 5 can be told, and what they find: options and solutions."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from fa import kernels
from fa.gradients import Gradients
from fa.gradients.gram import Gram
from fa.irls import regularizers
from fa.irls.problem import Formulation, Problem, build_problem
from fa.utils.validation import check_integer, check_one_of, check_real

FORMULATIONS = ("paper", "released")
REGULARIZERS = ("pairwise", *regularizers.NAMES)


@dataclass(frozen=True)
class Options:
    """What `solve` can be told; raises ValueError for a value that no problem admits."""

    m: int | None = None
    lam: float = 0.0
    regularizer: str = "pairwise"
    a: float = 2.0
    tol: float = 1e-10
    max_iter: int = 5
    restarts: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.m is not None:
            check_integer("m", self.m, 1)
        check_real("lam", self.lam, 0)
        check_one_of("regularizer", self.regularizer, REGULARIZERS)
        check_real("a", self.a, 1, ", where (1 - v)^(1/a) is concave")
        check_real("tol", self.tol, 0)
        check_integer("max_iter", self.max_iter, 1)
        check_integer("restarts", self.restarts, 0)
        check_integer("seed", self.seed, 0)

    @property
    def leaves_span(self) -> bool:
        """Whether the regularizer is one whose Y leaves the span of G, which no p x p matrix tells."""
        return self.lam > 0 and self.regularizer in ("l1", "rows")


DEFAULTS = Options()


@dataclass(frozen=True)
class Solution:
    """What was found: `objective` is eq. 5 at Y, `history` the smoothed objective after each step, `values` the v_i
    (p,).

    `coefficients` C (q, min(m, rank G)) give Y = G^T C. `objective_error_bound` is what the objective may be off by:
    the terms below FLOOR, which the smoothing cannot tell from FLOOR, can hide their number times FLOOR^(1/a), and of a
    pair too close for its direction to be known the whole term is left out. `formulation` tells whose pairs it has, the
    paper's or the released code's. `gram` is of all q gradients, of which worker i has counts_i. With "l1" and "rows"
    Y leaves the span of G: `coefficients` are None, and `Y` (n, m) is of the gradients' dtype (float32 for halves), a
    tensor where G is one.
    """

    objective: float
    objective_error_bound: float
    history: tuple[float, ...]
    converged: bool
    values: Float64[np.ndarray, " p"]
    coefficients: Float64[np.ndarray, "q m"] | None = field(repr=False)
    m: int
    lam: float
    a: float
    regularizer: str
    formulation: Formulation
    gram: Gram = field(repr=False)
    counts: tuple[int, ...] = field(repr=False)
    gradients: Gradients | None = field(default=None, repr=False)
    Y: Any = field(default=None, repr=False)

    @property
    def iterations(self) -> int:
        """The number of steps taken."""
        return len(self.history)

    @property
    def problem(self) -> Problem:
        """The data terms and pairs that were posed, in a basis of span(G): a norm of Y is no part of them."""
        lam = self.lam if self.regularizer == "pairwise" else 0.0
        return build_problem(self.gram, self.m, lam, self.a, self.formulation, self.counts)

    def weights(self, formulation: Formulation = "paper") -> Float64[np.ndarray, " q"]:
        """The direction's coefficients on the gradients, (q,): "paper" (1/p) Y Y^T G 1, "released" (1/m) sum_i Y Y^T
        g_i/||g_i||. Of a worker with several gradients it is their mean that counts.
        """
        if self.coefficients is None:
            raise ValueError(f'with regularizer="{self.regularizer}" the direction is no combination of the gradients')
        lengths = self.gram.cosines @ self._shares(formulation)
        scaled = self.gram.norms[:, None] * self.coefficients
        with np.errstate(over="ignore"):
            weights = self.gram.divide_by_norms(scaled @ (scaled.T @ lengths))
        norms = self.gram.norms[self.gram.norms > 0]
        if not np.isfinite(weights).all():
            raise ValueError(
                "G must have norms whose ratios stay within float64's range; they go from "
                f"{norms.min():.0e} to {norms.max():.0e}: set them equal first, as preaggregators=('median_norm',) does"
            )
        return weights

    def _shares(self, formulation: Formulation) -> Float64[np.ndarray, " q"]:
        """The coefficients on the unit gradients of what Y Y^T is applied to."""
        check_one_of("formulation", formulation, FORMULATIONS)
        norms, each = self.gram.norms, np.repeat(1 / np.array(self.counts), self.counts)
        return each * (norms / len(self.counts) if formulation == "paper" else (norms > 0) / self.m)

    def direction(self, formulation: Formulation = "paper") -> Any:
        """d (n,), of the gradients' kind, dtype and device."""
        if self.gradients is None:
            raise ValueError(
                "this solution was found from a Gram matrix alone: take .weights() and combine the gradients with them"
            )
        G = self.gradients.G
        if self.Y is None:
            return self.gradients.restore(kernels.combine(G, self.weights(formulation))[0])
        mean = kernels.combine(G, self.gram.divide_by_norms(self._shares(formulation)))[0].double()
        Y = torch.as_tensor(self.Y, device=G.device).double()
        return self.gradients.restore((Y @ (Y.T @ mean)).to(G.dtype))
