"""A rule of one's own, in one file: the geometric median, decided in the Gram matrix by Weiszfeld's iteration.

fa train --rule examples/geometric_median.py:GeometricMedian --iterations 60 --batch 32 --lr 0.05
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import fa
from fa.gradients.gram import Gram
from fa.rules import ColumnDecision


@dataclass(frozen=True, kw_only=True)
class GeometricMedian(fa.Rule):
    """The point with the least sum of distances to the gradients: a weighted mean of them, so K is all it takes.

    Pillutla et al., Robust Aggregation for Federated Learning, 2022. The distance of g_i to sum_j w_j g_j is
    e_i^T K e_i - 2 e_i^T K w + w^T K w under the root; weights are then inverse distances.
    """

    iterations: int = 50
    name: ClassVar[str] = "geometric_median"
    min_workers: ClassVar[tuple[int, int]] = (2, 1)  # p >= 2f + 1

    def decide(self, gram: Gram) -> ColumnDecision:
        weights = np.full(gram.p, 1 / gram.p)
        for _ in range(self.iterations):
            # From the squared distances between the gradients, which do not cancel: sum w = 1.
            squares = gram.D2 @ weights - weights @ gram.D2 @ weights / 2
            inverse = 1 / np.sqrt(np.maximum(squares, 1e-24))
            weights = inverse / inverse.sum()
        return ColumnDecision(weights=weights)
