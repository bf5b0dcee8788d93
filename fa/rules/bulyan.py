"""Bulyan: Krum again and again for a selection, then the values nearest the median, coordinate by coordinate.

Source: El Mhamdi, Guerraoui and Rouault, The Hidden Vulnerability of Distributed Learning in Byzantium, ICML 2018;
the paper, section 2.3.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fa.gram import Gram
from fa.mixing import krum_scores
from fa.rules.base import Choice, Rule, Statistic
from fa.rules.coordinate import median


def select(gram: Gram, f: int) -> tuple[int, ...]:
    """The theta = p - 2f columns that Krum picks one after another, scoring anew what is left with p' - f - 2
    neighbours, at least one.
    """
    left = list(range(gram.p))
    chosen: list[int] = []
    for _ in range(gram.p - 2 * f):
        scores = krum_scores(gram.D2[np.ix_(left, left)], max(1, len(left) - f - 2))
        chosen.append(left.pop(int(np.argmin(scores))))
    return tuple(sorted(chosen))


@dataclass(frozen=True, kw_only=True)
class Bulyan(Rule):
    """The mean of each coordinate's theta - 2f values nearest the median of the theta = p - 2f selected gradients."""

    name: ClassVar[str] = "bulyan"
    condition: ClassVar[tuple[int, int]] = (4, 3)

    def decide(self, gram: Gram) -> Choice:
        columns = select(gram, self.f)
        theta = len(columns)
        statistic = Statistic(*median(theta), keep=theta - 2 * self.f)
        return Choice(statistic=statistic, columns=columns, reason=f"not among the {theta} that Krum picked")
