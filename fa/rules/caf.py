"""CAF, the covariance-bound agnostic filter: weights fall along the direction of largest variance."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fa.gradients.gram import Gram
from fa.rules.base import Rule
from fa.rules.decision import ColumnDecision
from fa.rules.span import Points, centred_points
from fa.utils.validation import check_one_of

_MAX_ITER = 1_000
"""Limit of steps for maximum="all", which may not end."""


@dataclass(frozen=True, kw_only=True)
class CAF(Rule):
    """The weighted mean whose covariance has the smallest largest eigenvalue, among those of a filter.

    The filter starts with weights c_i = 1. It multiplies c_i by 1 - tau_i/max_j tau_j, with tau_i the squared deviation
    from the weighted mean along the covariance's first eigenvector. It ends at sum_i c_i <= p - 2f.

    Attributes:
        maximum: Rows j of the maximum. "remaining": those with c_j > 0, so that each step removes a row. "all": all
            rows, as in the reference. A removed row with a large deviation then stops the filter.

    Source: Allouah, Guerraoui and Stephan, Towards Trustworthy Federated Learning with Untrusted Participants, ICML
    2025.

    Example:
        >>> import numpy as np, fa
        >>> fa.aggregate(np.array([[0.0], [1.0], [2.0], [1e9]]), "caf", f=1)
        array([1.])
    """

    maximum: str = "remaining"

    name: ClassVar[str] = "caf"
    uses_f: ClassVar[bool] = True
    min_workers: ClassVar[tuple[int, int]] = (2, 1)
    least_workers: ClassVar[tuple[int, int]] = (2, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("maximum", self.maximum, ("remaining", "all"))

    def decide(self, gram: Gram) -> ColumnDecision:
        """Decide the weights of the mean whose covariance has the smallest largest eigenvalue.

        Args:
            gram: Gram matrix of p >= 2f + 1 gradients.

        Returns:
            The weights (p,), which are not negative and sum to 1. Gradients that the filter removes have weight 0.
        """
        return ColumnDecision(weights=self._weights(centred_points(gram)), reason="filtered out")

    def _weights(self, X: Points) -> np.ndarray:
        p = len(X)
        c, best, least = np.ones(p), np.full(p, 1 / p), np.inf
        for _ in range(_MAX_ITER):
            if c.sum() <= p - 2 * self.f:
                break
            weights = c / c.sum()
            deviations = X - weights @ X
            used = weights > 0
            _, values, directions = np.linalg.svd(np.sqrt(weights[used])[:, None] * deviations[used])
            if values[0] < least:
                best, least = weights, values[0]
            squares = np.square(deviations @ directions[0])
            top = squares[used].max() if self.maximum == "remaining" else squares.max()
            if top == 0:
                break
            c = c * (1 - np.minimum(squares, top) / top)
        return best
