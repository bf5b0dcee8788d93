"""Bulyan: Krum again and again for a selection, then the values nearest the median, coordinate by coordinate.

Source: El Mhamdi, Guerraoui and Rouault, The Hidden Vulnerability of Distributed Learning in Byzantium, ICML 2018;
the paper, section 2.3.
"""

from dataclasses import dataclass
from typing import ClassVar

from fa.gram import Gram
from fa.rules.base import Choice, Rule, Statistic
from fa.rules.coordinate import median
from fa.selection import bulyan_selection


@dataclass(frozen=True, kw_only=True)
class Bulyan(Rule):
    """The mean of each coordinate's theta - 2f values nearest the median of the theta = p - 2f selected gradients."""

    name: ClassVar[str] = "bulyan"
    condition: ClassVar[tuple[int, int]] = (4, 3)

    def decide(self, gram: Gram) -> Choice:
        columns = bulyan_selection(gram, self.f)
        theta = len(columns)
        statistic = Statistic(*median(theta), keep=theta - 2 * self.f)
        return Choice(statistic=statistic, columns=columns, reason=f"not among the {theta} that Krum picked")
