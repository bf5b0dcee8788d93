"""Centered clipping: a mean of differences from a point, of which long ones are shortened."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fa.gradients.gram import Gram
from fa.rules.base import Rule
from fa.rules.decision import ColumnDecision
from fa.rules.span import points
from fa.utils.validation import check_integer, check_one_of, check_positive


@dataclass(frozen=True, kw_only=True)
class CenteredClipping(Rule):
    """Repeat v = v + (1/p) sum_i (g_i - v) min(1, tau/||g_i - v||), and return v.

    In the paper, v starts at the previous iteration's direction. Rules have no state, so it starts at `start`.

    Attributes:
        tau: Largest length of a difference. None: the median of the lengths, in each step.
        max_iter: Number of steps.
        start: First v: "zero" or "mean".

    Source: Karimireddy, He and Jaggi, Learning from History for Byzantine Robust Optimization, ICML 2021.

    Example:
        >>> import numpy as np, fa
        >>> fa.aggregate(np.array([[3.0, 4.0], [0.0, 0.0]]), "centered_clipping", tau=1.0, max_iter=1)
        array([0.3, 0.4])
    """

    tau: float | None = None
    max_iter: int = 10
    start: str = "zero"

    name: ClassVar[str] = "centered_clipping"
    min_workers: ClassVar[tuple[int, int]] = (2, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau is not None:
            check_positive("tau", self.tau)
        check_integer("max_iter", self.max_iter, 1)
        check_one_of("start", self.start, ("zero", "mean"))

    def decide(self, gram: Gram) -> ColumnDecision:
        """Decide the weights of the gradients in v after `max_iter` steps.

        Args:
            gram: Gram matrix of p gradients. `tau` is in the unit of their norms.

        Returns:
            The weights (p,). They sum to 1 with start="mean", and may sum to less with start="zero". A gradient over
            1e150 times as long as usual is shortened to that first, and its weight is lower.
        """
        X = points(gram)
        weights = np.full(gram.p, 0.0 if self.start == "zero" else 1 / gram.p)
        for _ in range(self.max_iter):
            lengths = np.linalg.norm(X - weights @ X, axis=1)
            tau = float(np.median(lengths)) if self.tau is None else self.tau / gram.scale
            factors = np.divide(tau, lengths, out=np.ones(gram.p), where=lengths > tau) / gram.p
            weights = weights * (1 - factors.sum()) + factors
        return ColumnDecision(weights=gram.unclipped_weights(weights))
