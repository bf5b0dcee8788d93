"""FA, the Flag Aggregator: the mean of the gradients as the subspace Y reconstructs them.

Source: the paper, Algorithm 1 and eq. 5.
"""

from dataclasses import dataclass
from typing import ClassVar

from fa.gram import Gram
from fa.irls import READINGS, Reading, check_options, solve_gram
from fa.rules.base import Choice, Rule


@dataclass(frozen=True, kw_only=True)
class FlagAggregator(Rule):
    """d = (1/p) Y Y^T G 1, with Y of m columns (default ceil((p + 1)/2)) from IRLS on eq. 5.

    reading="released" is what the authors' released code computes: unit gradients, one step from equal weights, d = (1/m) sum_i
    Y Y^T g_i/||g_i||, the pairs' terms not divided by D_ij and their factor squared. The formula as printed lets a gradient count
    by its length; `before=("median_norm",)`, the default here, is what makes the rule robust, and `before=()` is the formula.
    `max_iter` is 5 if not given; the released reading admits 1 only.
    """

    before: tuple[str, ...] = ("median_norm",)
    m: int | None = None
    lam: float = 0.0
    regularizer: str = "pairwise"
    a: float = 2.0
    tol: float = 1e-10
    max_iter: int | None = None
    reading: Reading = "paper"

    name: ClassVar[str] = "fa"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self.m, self.lam, self.regularizer, self.a, self.tol, self.max_iter)
        if self.reading not in READINGS:
            raise ValueError(f"reading must be one of {', '.join(READINGS)}; it is {self.reading!r}")
        steps = 1 if self.reading == "released" else 5
        if self.max_iter is None:
            object.__setattr__(self, "max_iter", steps)
        elif self.reading == "released" and self.max_iter != 1:
            raise ValueError(f'max_iter must be 1 with reading="released", which takes one step; it is {self.max_iter}')

    def decide(self, gram: Gram) -> Choice:
        assert self.max_iter is not None
        solution = solve_gram(
            gram, self.m, self.lam, self.regularizer, self.a, self.tol, self.max_iter, reading=self.reading
        )
        return Choice(weights=solution.weights(self.reading), coefficients=solution.coefficients)
