"""Krum and Multi-Krum: the gradients that have the nearest neighbours.

Source: Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, NIPS 2017.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fa.gradients.gram import Gram
from fa.rules.base import Choice, Rule
from fa.rules.krum_scores import best_scores
from fa.utils.validation import check_integer


def _mean_of_best(gram: Gram, f: int, keep: int) -> Choice:
    columns = best_scores(gram, f, keep)
    weights = np.zeros(gram.p)
    weights[columns] = 1 / columns.size
    return Choice(weights=weights, columns=tuple(int(k) for k in columns), reason=f"not among the {keep} best scores")


@dataclass(frozen=True, kw_only=True)
class Krum(Rule):
    """The one gradient whose squared distances to its p - f - 2 nearest neighbours have the least sum."""

    name: ClassVar[str] = "krum"
    condition: ClassVar[tuple[int, int]] = (2, 3)

    def decide(self, gram: Gram) -> Choice:
        return _mean_of_best(gram, self.f, 1)


@dataclass(frozen=True, kw_only=True)
class MultiKrum(Rule):
    """The mean of the `keep` gradients of best Krum score (default p - f - 2, at least one)."""

    keep: int | None = None

    name: ClassVar[str] = "multi_krum"
    condition: ClassVar[tuple[int, int]] = (2, 3)
    count: ClassVar[str] = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep is not None:
            check_integer("keep", self.keep, 1)

    def decide(self, gram: Gram) -> Choice:
        return _mean_of_best(gram, self.f, self.keep or max(1, gram.p - self.f - 2))
