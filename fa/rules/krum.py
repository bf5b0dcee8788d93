"""Krum and Multi-Krum, which select the gradients that have the nearest neighbours.

Source: Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, NIPS 2017.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fa.gradients.gram import Gram
from fa.rules.base import Rule
from fa.rules.decision import ColumnDecision
from fa.rules.krum_scores import lowest_scores
from fa.utils.validation import check_integer


def _mean_of_lowest(gram: Gram, f: int, count: int) -> ColumnDecision:
    columns = lowest_scores(gram, f, count)
    weights = np.zeros(gram.p)
    weights[columns] = 1 / columns.size
    return ColumnDecision(weights=weights, columns=tuple(columns.tolist()), reason=f"not among the {count} best scores")


@dataclass(frozen=True, kw_only=True)
class Krum(Rule):
    """The gradient with the least sum of squared distances to its p - f - 2 nearest neighbours."""

    name: ClassVar[str] = "krum"
    uses_f: ClassVar[bool] = True
    min_workers: ClassVar[tuple[int, int]] = (2, 3)

    def decide(self, gram: Gram) -> ColumnDecision:
        return _mean_of_lowest(gram, self.f, 1)


@dataclass(frozen=True, kw_only=True)
class MultiKrum(Rule):
    """The mean of the gradients with the lowest Krum scores.

    Attributes:
        keep: Number of gradients. None: p - f - 2, at least one.
    """

    keep: int | None = None

    name: ClassVar[str] = "multi_krum"
    uses_f: ClassVar[bool] = True
    min_workers: ClassVar[tuple[int, int]] = (2, 3)
    column_count_option: ClassVar[str] = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep is not None:
            check_integer("keep", self.keep, 1)

    def decide(self, gram: Gram) -> ColumnDecision:
        return _mean_of_lowest(gram, self.f, self.keep or max(1, gram.p - self.f - 2))
