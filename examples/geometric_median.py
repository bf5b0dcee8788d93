"""A custom rule in one file: the geometric median, computed from the Gram matrix by Weiszfeld's iteration.

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
    """The point with the smallest sum of distances to the gradients.

    It is a weighted mean of the gradients, so the Gram matrix K suffices. The distance of g_i to sum_j w_j g_j is the
    square root of e_i^T K e_i - 2 e_i^T K w + w^T K w. New weights are proportional to inverse distances.

    Source: Pillutla et al., Robust Aggregation for Federated Learning, 2022.

    Attributes:
        iterations: Number of Weiszfeld iterations; default 50.
    """

    iterations: int = 50
    name: ClassVar[str] = "geometric_median"
    min_workers: ClassVar[tuple[int, int]] = (2, 1)  # p >= 2f + 1

    def decide(self, gram: Gram) -> ColumnDecision:
        """Return the geometric median's weights on the gradients of the Gram matrix."""
        weights = np.full(gram.p, 1 / gram.p)
        for _ in range(self.iterations):
            # Squared distances between gradients avoid cancellation; they suffice because sum w = 1.
            squares = gram.D2 @ weights - weights @ gram.D2 @ weights / 2
            inverse = 1 / np.sqrt(np.maximum(squares, 1e-24))
            weights = inverse / inverse.sum()
        return ColumnDecision(weights=weights)
