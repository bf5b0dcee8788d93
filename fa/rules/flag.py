"""FA, the Flag Aggregator: the mean of the gradients, reconstructed in the subspace Y.

Source: the paper, Algorithm 1 and eq. 5.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from fa.gradients.gram import Gram
from fa.irls import DEFAULTS, FORMULATIONS, Formulation, Options, solve, solve_gram
from fa.irls.worker_weights import read_weights
from fa.objective import values
from fa.rules.base import Rule
from fa.rules.decision import ColumnDecision
from fa.rules.options import AnyRule
from fa.rules.preaggregators import MixedGradients, make_step
from fa.utils.validation import check, check_one_of


@dataclass(frozen=True, kw_only=True)
class FlagAggregator(Rule):
    """d = (1/p) Y Y^T G 1, with the basis Y from IRLS on eq. 5.

    With regularizer="l1" or "rows" and lam > 0, Y is outside the span of the gradients. The decision then has no
    weights, and `max_iter` counts proximal steps.

    Attributes:
        m: Number of columns of Y. None: ceil((p + 1)/2).
        lam: Weight of the regularizer.
        regularizer: A name in `fa.irls.REGULARIZERS`.
        a: Parameter of the prior in eq. 5.
        tol: Relative tolerance of IRLS.
        max_iter: Maximum number of IRLS steps. None: 5, or 1 with formulation="released".
        formulation: "paper" is eq. 5, where a gradient's weight depends on its norm. It is robust with
            `preaggregators=("median_norm",)`, its default; `preaggregators=()` is the formula as printed.
            "released" is the authors' released code: unit gradients, one step from equal weights, and
            d = (1/m) sum_i Y Y^T g_i/||g_i||. Its pairs' terms are not divided by D_ij; their factor is squared.
        worker_weights: Weight of each worker, for workers that differ in batch size or noise; see
            `fa.irls.worker_weights`. None: 1. Pre-aggregators must keep all gradients apart.
    """

    m: int | None = DEFAULTS.m
    lam: float = DEFAULTS.lam
    regularizer: str = DEFAULTS.regularizer
    a: float = DEFAULTS.a
    tol: float = DEFAULTS.tol
    max_iter: int | None = None
    formulation: Formulation = "paper"
    worker_weights: tuple[float, ...] | None = DEFAULTS.worker_weights

    name: ClassVar[str] = "fa"
    column_count_option: ClassVar[str] = "m"

    def __post_init__(self) -> None:
        check_one_of("formulation", self.formulation, FORMULATIONS)
        released = self.formulation == "released"
        if self.preaggregators is None and not released:
            object.__setattr__(self, "preaggregators", ("median_norm",))
        super().__post_init__()
        if self.max_iter is None:
            object.__setattr__(self, "max_iter", 1 if released else DEFAULTS.max_iter)
        check("max_iter", self.max_iter, self.max_iter == 1 or not released, '1 with formulation="released"')
        within = not (released and self.direction_outside_span)
        check("regularizer", self.regularizer, within, '"pairwise" or "group" with formulation="released"')
        if self.worker_weights is not None:
            object.__setattr__(self, "worker_weights", read_weights(self.worker_weights))
        _ = self.options  # checks them

    @cached_property
    def options(self) -> Options:
        """Options of IRLS."""
        assert self.max_iter is not None  # by __post_init__
        return Options(
            self.m, self.lam, self.regularizer, self.a, self.tol, self.max_iter, worker_weights=self.worker_weights
        )

    def check_workers(self, p: int, remark: str = "") -> None:
        """Check p as every rule does, and that there is one weight for each gradient that the rule sees."""
        super().check_workers(p, remark)
        if self.worker_weights is not None:
            read_weights(self.worker_weights, p)
            mixing = [name for name in self.steps if not make_step(name).keeps_workers]
            check("preaggregators", mixing, not mixing, "ones that neither choose nor mix workers, with worker_weights")

    def for_rows(self: AnyRule, rows: Sequence[int], p: int) -> AnyRule:
        """Return the rule with the weights of these rows."""
        weights = self.worker_weights  # type: ignore[attr-defined]
        if weights is None:
            return self
        read_weights(weights, p)
        return replace(self, worker_weights=tuple(weights[row] for row in rows))  # type: ignore[call-arg]

    @property
    def direction_outside_span(self) -> bool:
        return self.options.leaves_span

    def check_within_span(self, where: str) -> None:
        check("regularizer", self.regularizer, not self.direction_outside_span, f"'pairwise' or 'group' {where}")

    def decide_from_gradients(self, G: Tensor, mixed: MixedGradients) -> ColumnDecision:
        solution = solve(mixed.apply_to(G), **asdict(self.options))
        return ColumnDecision(direction=solution.direction(), values=values(G, solution.Y))

    def decide(self, gram: Gram) -> ColumnDecision:
        solution = solve_gram(gram, self.options, formulation=self.formulation)
        return ColumnDecision(weights=solution.weights(self.formulation), coefficients=solution.coefficients)
