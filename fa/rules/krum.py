"""Krum and Multi-Krum, which select the gradients that have the nearest neighbours.

Source: Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, NIPS 2017.
"""

from dataclasses import dataclass
from typing import ClassVar

from fa.gradients.gram import Gram
from fa.rules.base import Rule
from fa.rules.decision import ColumnDecision
from fa.rules.krum_scores import DISTANCES, NEIGHBOURS, lowest_scores
from fa.utils.validation import check_integer, check_one_of


@dataclass(frozen=True, kw_only=True)
class ScoredRule(Rule):
    """A rule that selects gradients by their Krum scores.

    Attributes:
        neighbours: Number of neighbours in a score: "p-f-2", the paper's, or "p-f-1". At least one.
        distance: "squared" for sums of squared distances, the paper's, or "plain" for sums of distances.
    """

    neighbours: str = "p-f-2"
    distance: str = "squared"

    min_workers: ClassVar[tuple[int, int]] = (2, 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("neighbours", self.neighbours, NEIGHBOURS)
        check_one_of("distance", self.distance, DISTANCES)

    def _mean_of_lowest(self, gram: Gram, count: int) -> ColumnDecision:
        columns = lowest_scores(gram, self.f, count, self.neighbours, self.distance)
        return ColumnDecision.mean_of(columns, gram.p, f"not among the {count} best scores")


@dataclass(frozen=True, kw_only=True)
class Krum(ScoredRule):
    """The gradient with the least sum of squared distances to its p - f - 2 nearest neighbours."""

    name: ClassVar[str] = "krum"
    uses_f: ClassVar[bool] = True

    def decide(self, gram: Gram) -> ColumnDecision:
        return self._mean_of_lowest(gram, 1)


@dataclass(frozen=True, kw_only=True)
class MultiKrum(ScoredRule):
    """The mean of the gradients with the lowest Krum scores.

    Attributes:
        keep: Number of gradients. None: p - f - 2, at least one.
    """

    keep: int | None = None

    name: ClassVar[str] = "multi_krum"
    uses_f: ClassVar[bool] = True
    column_count_option: ClassVar[str] = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep is not None:
            check_integer("keep", self.keep, 1)

    def decide(self, gram: Gram) -> ColumnDecision:
        return self._mean_of_lowest(gram, self.keep or max(1, gram.p - self.f - 2))
