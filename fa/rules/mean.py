"""The mean: the rule without defence, and the baseline for the cost of the others."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fa.gradients.gram import Gram
from fa.rules.base import Rule
from fa.rules.decision import ColumnDecision


@dataclass(frozen=True, kw_only=True)
class Mean(Rule):
    """d = (1/p) sum_i g_i."""

    name: ClassVar[str] = "mean"
    reads_gram: ClassVar[bool] = False

    def decide(self, gram: Gram) -> ColumnDecision:
        return ColumnDecision(weights=np.full(gram.p, 1 / gram.p))
