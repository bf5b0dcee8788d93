"""The mean: the rule without defence, and the yardstick of what an aggregation may cost."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fa.gradients.gram import Gram
from fa.rules.base import Choice, Rule


@dataclass(frozen=True, kw_only=True)
class Mean(Rule):
    """d = (1/p) sum_i g_i."""

    name: ClassVar[str] = "mean"
    looks: ClassVar[bool] = False

    def decide(self, gram: Gram) -> Choice:
        return Choice(weights=np.full(gram.p, 1 / gram.p))
