"""MoNNA's nearest-neighbour averaging: the mean of the gradients nearest a trusted worker's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fa.gradients.gram import Gram
from fa.rules.base import Rule
from fa.rules.decision import ColumnDecision
from fa.rules.preaggregators import make_preaggregator
from fa.utils.validation import TooFewWorkersError, check


@dataclass(frozen=True, kw_only=True)
class MoNNA(Rule):
    """The mean of the p - f gradients nearest the gradient of a trusted worker, which is among them.

    Attributes:
        reference: Rank of the trusted worker; negative ranks count from the last, -1. In the runs of this package the
            first f workers are Byzantine, and the last one is honest.

    Source: Farhadkhani, Guerraoui, Gupta, Hoang, Pinot and Stephan, Robust Collaborative Learning with Linear Gradient
    Overhead, ICML 2023. There, each worker trusts itself.

    Example:
        >>> import numpy as np, fa
        >>> fa.aggregate(np.array([[9.0], [1.0], [2.0]]), "monna", f=1)
        array([1.5])
    """

    reference: int = -1

    name: ClassVar[str] = "monna"
    uses_f: ClassVar[bool] = True
    min_workers: ClassVar[tuple[int, int]] = (2, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        integer = isinstance(self.reference, int | np.integer) and not isinstance(self.reference, bool)
        check("reference", self.reference, integer, "an integer")

    def check_workers(self, p: int, remark: str = "") -> None:
        """Check p as every rule does, and that `reference` is one of the gradients that the rule sees.

        Args:
            p: Number of gradients.
            remark: As for `RuleOptions.check_workers`.

        Raises:
            ValueError: p is too small, a pre-aggregator drops or reorders gradients, or `reference` is not a rank.
        """
        super().check_workers(p, remark)
        names = self.preaggregator_names
        in_order = all(make_preaggregator(name).keeps_order for name in names)
        check("preaggregators", names, in_order, "ones that keep each gradient in its place, for `reference`")
        self._check_reference(p)

    def _check_reference(self, p: int) -> None:
        check("reference", self.reference, -p <= self.reference < p, f"in [-{p}, {p}), the ranks of p = {p} gradients")

    def for_rows(self, rows: Sequence[int], p: int) -> "MoNNA":
        """Return the rule with the trusted worker's rank among the rows.

        Args:
            rows: Ranks of the workers whose gradients remain, in ascending order.
            p: Number of all workers.

        Raises:
            TooFewWorkersError: The trusted worker's gradient is not among them.
        """
        self._check_reference(p)
        reference = self.reference % p
        if reference not in rows:
            raise TooFewWorkersError(f"reference must be a worker with a finite gradient, got {reference}")
        return replace(self, reference=list(rows).index(reference))

    def decide(self, gram: Gram) -> ColumnDecision:
        """Decide the set of the p - f gradients nearest the trusted one; the lower row comes first at equal distances.

        Args:
            gram: Gram matrix of p gradients, of which row `reference` is the trusted worker's.

        Returns:
            The weights (p,), which are equal in the set and 0 outside of it. The trusted gradient is in the set.
        """
        distances = gram.D2[self.reference].copy()
        distances[self.reference] = -1.0
        rows = np.sort(np.argsort(distances, kind="stable")[: max(1, gram.p - self.f)])
        return ColumnDecision.mean_of(rows, gram.p, "far from the trusted gradient")
