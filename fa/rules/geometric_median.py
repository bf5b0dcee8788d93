"""The geometric median: the point with the smallest sum of distances to the gradients."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fa.gradients.gram import Gram
from fa.rules.base import Rule
from fa.rules.decision import ColumnDecision
from fa.rules.span import centred_points
from fa.utils.validation import check_integer, check_real

_SMOOTHING = 1e-9
"""Default smoothing, relative to the smallest radius around a gradient that holds a majority."""


@dataclass(frozen=True, kw_only=True)
class GeometricMedian(Rule):
    """d = argmin_z sum_i ||g_i - z||, by Weiszfeld's iteration from z = 0 on the p x p Gram matrix.

    Each step replaces z by the mean of the gradients with weights 1/max(nu, ||g_i - z||). Without `nu`, the first
    step leaves gradients of norm 0 that are not the median, as Vardi and Zhang describe.

    Attributes:
        nu: Distance below which a gradient's weight does not grow. None: 1e-9 times the smallest radius around a
            gradient that holds a majority of the gradients.
        max_iter: Maximum number of steps.
        tol: Largest change of a weight at which the iteration stops. 0: take `max_iter` steps.

    Source: Weiszfeld, Tohoku Mathematical Journal 43, 1937; for learning, Pillutla, Kakade and Harchaoui, Robust
    Aggregation for Federated Learning, IEEE Transactions on Signal Processing 70, 2022. Vardi and Zhang, The
    multivariate L1-median and associated data depth, PNAS 97, 2000.

    Example:
        >>> import numpy as np, fa
        >>> fa.aggregate(np.array([[1.0, 0.0], [2.0, 0.0], [9e9, 0.0]]), "geometric_median").round(6)
        array([2., 0.])
    """

    nu: float | None = None
    max_iter: int = 1000
    tol: float = 1e-12

    name: ClassVar[str] = "geometric_median"
    min_workers: ClassVar[tuple[int, int]] = (2, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nu is not None:
            check_real("nu", self.nu, 0)
        check_integer("max_iter", self.max_iter, 1)
        check_real("tol", self.tol, 0)

    def decide(self, gram: Gram) -> ColumnDecision:
        """Decide the weights of the geometric median.

        Args:
            gram: Gram matrix of p gradients. `nu` is in the unit of their norms.

        Returns:
            The weights (p,), which are not negative and sum to 1, apart from the weight of a gradient over 1e150 times
            as long as usual. If a majority of the gradients is equal and `nu` is None, d is their mean.
        """
        radii = np.sqrt(np.sort(gram.D2, axis=1)[:, gram.p // 2])
        nu = _SMOOTHING * float(radii.min()) if self.nu is None else self.nu / gram.scale
        if self.nu is None and nu == 0:  # A majority agrees.
            same = gram.D2[int(np.argmin(radii))] == 0
            return ColumnDecision(weights=same / same.sum())
        X = centred_points(gram)
        weights = _leave_zeros(X, gram.scaled_norms <= nu) if self.nu is None else None
        if weights is None:
            weights = _inverse(gram.scaled_norms, nu)
        for _ in range(self.max_iter - 1):
            previous, weights = weights, _inverse(np.linalg.norm(X - weights @ X, axis=1), nu)
            if np.abs(weights - previous).max() <= self.tol:
                break
        return ColumnDecision(weights=gram.unclipped_weights(weights))


def _leave_zeros(X: np.ndarray, zeros: np.ndarray) -> np.ndarray | None:
    """Return the weights after a step from 0 away from gradients near 0; None if there are none, or 0 is the median.

    0 is the median if the unit vectors towards the other gradients sum to a vector no longer than the number of
    gradients near 0.
    """
    if not zeros.any():
        return None
    start = zeros / zeros.sum()
    differences = X - start @ X
    inverse = np.where(zeros, 0.0, 1 / np.where(zeros, 1.0, np.linalg.norm(differences, axis=1)))
    pull = float(np.linalg.norm(inverse @ differences))
    if pull <= zeros.sum():
        return None
    stay = int(zeros.sum()) / pull
    weights: np.ndarray = stay * start + (1 - stay) * inverse / inverse.sum()
    return weights


def _inverse(distances: np.ndarray, nu: float) -> np.ndarray:
    """Return weights proportional to the inverse distances, which sum to 1; a distance of 0 takes all the weight."""
    floored = np.maximum(distances, nu)
    if not floored.all():
        floored = np.where(floored > 0, np.inf, 1.0)
    inverse = floored.min() / floored
    weights: np.ndarray = inverse / inverse.sum()
    return weights
