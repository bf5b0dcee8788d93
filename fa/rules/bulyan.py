"""Bulyan: a selection by repeated Krum, then the mean of the values nearest the median of each coordinate.

Source: El Mhamdi, Guerraoui and Rouault, The Hidden Vulnerability of Distributed Learning in Byzantium, ICML 2018;
the paper, section 2.3; aggregators/bulyan.py in the authors' released code.
"""

from dataclasses import dataclass
from typing import ClassVar

from fa.gradients.gram import Gram
from fa.irls import FORMULATIONS, Formulation
from fa.rules.application import OrderStatistic
from fa.rules.coordinate import median_range
from fa.rules.decision import ColumnDecision
from fa.rules.krum import ScoredRule
from fa.rules.krum_scores import bulyan_selection, released_bulyan_averages
from fa.rules.preaggregators import column_counts
from fa.utils.validation import check, check_min_workers, check_one_of


@dataclass(frozen=True, kw_only=True)
class Bulyan(ScoredRule):
    """The mean of each coordinate's values nearest the median of a selection of gradients.

    Attributes:
        formulation: "paper" selects theta = p - 2f gradients one by one with Krum. It uses the theta - 2f values
            nearest their median. "released" computes the paper's curves: p - 2f - 2 averages of the gradients of
            lowest score. It uses the p - 4f - 2 values nearest their lower median.
    """

    formulation: Formulation = "paper"

    name: ClassVar[str] = "bulyan"
    uses_f: ClassVar[bool] = True
    min_workers: ClassVar[tuple[int, int]] = (4, 3)
    least_workers: ClassVar[tuple[int, int]] = (4, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("formulation", self.formulation, FORMULATIONS)
        default = self.formulation == "paper" or (self.neighbours, self.distance) == ("p-f-2", "squared")
        check("formulation", self.formulation, default, "'paper' with other neighbours or distance than the default")

    def check_workers(self, p: int, remark: str = "") -> None:
        """Check p; the released formulation uses p - 4f - 2 values, also with `strict` false.

        Args:
            p: Number of gradients.
            remark: As for `RuleOptions.check_workers`.

        Raises:
            TooFewWorkersError: p is too small.
        """
        super().check_workers(p, remark)
        if self.formulation == "released":
            q = column_counts(self.preaggregator_names, p, self.f)[-1]
            check_min_workers(self.name, q, self.f, *self.min_workers, remark)

    def decide(self, gram: Gram) -> ColumnDecision:
        if self.formulation == "released":
            averages = released_bulyan_averages(gram, self.f)
            count = averages.shape[1]
            middle = (count - 1) // 2
            statistic = OrderStatistic(middle, middle + 1, nearest=count - 2 * self.f)
            return ColumnDecision(statistic=statistic, combinations=averages, reason="not among the best scores")
        columns = bulyan_selection(gram, self.f, self.neighbours, self.distance)
        theta = len(columns)
        statistic = OrderStatistic(*median_range(theta), nearest=theta - 2 * self.f)
        return ColumnDecision(statistic=statistic, columns=columns, reason=f"not among the {theta} that Krum picked")
