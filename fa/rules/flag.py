"""FA, the Flag Aggregator: the mean of the gradients as the subspace Y reconstructs them.

Source: the paper, Algorithm 1 and eq. 5.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from fa.gradients.blocks import ColumnBlocks
from fa.gradients.gram import Gram
from fa.irls import DEFAULTS, FORMULATIONS, Formulation, Options, solve, solve_gram
from fa.objective import values
from fa.rules.base import Choice, Rule
from fa.rules.preaggregators import Mixture
from fa.utils.validation import check, check_one_of


@dataclass(frozen=True, kw_only=True)
class FlagAggregator(Rule):
    """d = (1/p) Y Y^T G 1, with Y of m columns (default ceil((p + 1)/2)) from IRLS on eq. 5.

    formulation="released" is what the authors' released code computes: unit gradients, one step from equal weights, d =
    (1/m) sum_i Y Y^T g_i/||g_i||, the pairs' terms not divided by D_ij and their factor squared. The formula as
    printed lets a gradient count by its length. `preaggregators=("median_norm",)`, the default of formulation="paper",
    makes the rule robust; `preaggregators=()` is the formula. `max_iter` is 5 if not given, and 1 as released. With
    regularizer="l1" or "rows" (lam > 0) Y leaves the span of the gradients: the decision has no weights
    but the direction itself, and `max_iter` counts proximal steps.
    """

    m: int | None = DEFAULTS.m
    lam: float = DEFAULTS.lam
    regularizer: str = DEFAULTS.regularizer
    a: float = DEFAULTS.a
    tol: float = DEFAULTS.tol
    max_iter: int | None = None
    formulation: Formulation = "paper"

    name: ClassVar[str] = "fa"
    count: ClassVar[str] = "m"

    def __post_init__(self) -> None:
        check_one_of("formulation", self.formulation, FORMULATIONS)
        released = self.formulation == "released"
        if self.preaggregators is None and not released:
            object.__setattr__(self, "preaggregators", ("median_norm",))
        super().__post_init__()
        if self.max_iter is None:
            object.__setattr__(self, "max_iter", 1 if released else DEFAULTS.max_iter)
        elif released and self.max_iter != 1:
            raise ValueError(
                f'max_iter must be 1 with formulation="released", which takes one step, got {self.max_iter}'
            )
        check("regularizer", self.regularizer, not (released and self.leaves_span), '"pairwise" or "group" as released')
        _ = self.options  # checks them

    @property
    def options(self) -> Options:
        """What IRLS is told."""
        assert self.max_iter is not None  # once it is made
        return Options(self.m, self.lam, self.regularizer, self.a, self.tol, self.max_iter)

    @property
    def leaves_span(self) -> bool:
        """With "l1" and "rows", where lam > 0."""
        return self.options.leaves_span

    def check_span(self, where: str) -> None:
        check("regularizer", self.regularizer, not self.leaves_span, f"'pairwise' or 'group' {where}")

    def choose(self, G: ColumnBlocks, rows: Int[np.ndarray, " k"], mixture: Mixture) -> Choice:
        if not self.leaves_span:
            return self.decide(mixture.gram)
        (whole,) = G.blocks
        finite = whole[rows]
        mixed, options = mixture.of(finite), self.options
        solution = solve(mixed, options.m, options.lam, options.regularizer, options.a, options.tol, options.max_iter)
        return Choice(direction=solution.direction(), values=values(finite, solution.Y))

    def decide(self, gram: Gram) -> Choice:
        solution = solve_gram(gram, self.options, formulation=self.formulation)
        return Choice(weights=solution.weights(self.formulation), coefficients=solution.coefficients)
