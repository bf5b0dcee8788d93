"""Tests of paired differences: whether they exceed a margin, and whether they are equivalent to zero within it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fa.utils.validation import check

LEVEL = 0.05
"""Significance level of tests over seeds."""

HELPS, EQUIVALENT, UNDECIDED = "helps", "equivalent", "open"
"""Results of `PairedDifferences.result`."""

_EQUAL = 1e-9  # Differences closer than this are equal; the t statistic would divide by zero.


@dataclass(frozen=True)
class PairedDifferences:
    """Differences of two rules' accuracies, one for each seed, as a sample of a normal distribution.

    Attributes:
        values: The differences, at least one.
    """

    values: tuple[float, ...]

    @classmethod
    def between(cls, first: Sequence[float], second: Sequence[float]) -> PairedDifferences:
        """Subtract the second from the first, seed by seed.

        Args:
            first: Accuracies, one per seed.
            second: Accuracies with the same seeds.

        Returns:
            The differences, in the order of the seeds.

        Raises:
            ValueError: Unequal numbers of seeds, or none.
        """
        check("the seeds", (len(first), len(second)), len(first) == len(second) > 0, "the same for both, at least one")
        return cls(tuple(a - b for a, b in zip(first, second, strict=True)))

    @property
    def mean(self) -> float:
        """Mean difference."""
        return sum(self.values) / len(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation of the differences, with the divisor n - 1; 0 for one seed."""
        squares = sum((value - self.mean) ** 2 for value in self.values)
        return math.sqrt(squares / max(1, len(self.values) - 1))

    def p_above(self, bound: float) -> float | None:
        """Return the one-sided p-value of Student's t test of "the mean exceeds `bound`"; None for one seed.

        Args:
            bound: Bound of the mean.

        Returns:
            The p-value.
        """
        from scipy.stats import t

        n = len(self.values)
        if n < 2:
            return None
        if max(self.values) - min(self.values) < _EQUAL:
            return 0.0 if self.mean > bound else 1.0
        return float(t.sf((self.mean - bound) / (self.deviation / math.sqrt(n)), n - 1))

    def p_below(self, bound: float) -> float | None:
        """Return the one-sided p-value of Student's t test of "the mean is less than `bound`"; None for one seed.

        Args:
            bound: Bound of the mean.

        Returns:
            The p-value.
        """
        return PairedDifferences(tuple(-value for value in self.values)).p_above(-bound)

    def p_equivalent(self, margin: float) -> float | None:
        """Return the p-value of "the mean is within the margin of 0": the larger of two one-sided t tests'.

        Args:
            margin: Bound of the absolute mean.

        Returns:
            The p-value; None for one seed.
        """
        above, below = self.p_above(-margin), self.p_below(margin)
        return None if above is None or below is None else max(above, below)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Return the interval that both one-sided tests at `level` leave: of 90% for the level 0.05.

        The mean is equivalent to 0 at this level if the interval lies within the margin. One seed gives a point.

        Args:
            level: Level of each one-sided test.

        Returns:
            The lower and the upper end.
        """
        from scipy.stats import t

        n = len(self.values)
        if n < 2:
            return self.mean, self.mean
        half = float(t.isf(level, n - 1)) * self.deviation / math.sqrt(n)
        return self.mean - half, self.mean + half

    def result(self, margin: float, level: float) -> str:
        """Apply the rule of docs/claims.md.

        Args:
            margin: Differences within it are equivalent to 0.
            level: Level of the one-sided test of "the mean exceeds the margin". Both tests of equivalence have LEVEL.

        Returns:
            HELPS, EQUIVALENT or UNDECIDED.
        """
        above, equivalent = self.p_above(margin), self.p_equivalent(margin)
        if above is not None and above < level:
            return HELPS
        if equivalent is not None and equivalent < LEVEL:
            return EQUIVALENT
        return UNDECIDED
