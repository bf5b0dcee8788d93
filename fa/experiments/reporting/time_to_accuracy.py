"""Time to accuracy: which rule is the first to reach target accuracies.

Targets must be reached by both FA and the best other rule. They are 50%, 75% and 90% of the way from chance to the
lower of their highest accuracies. All rules have the same targets. Targets at which nothing is learned yet are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fa.experiments.reporting.claims import LEARNED
from fa.experiments.runs.variants import OTHER_RULES, VARIANTS

if TYPE_CHECKING:
    from pandas import DataFrame

SHARES = (0.5, 0.75, 0.9)
"""Targets, as shares of the way from chance to the highest accuracy that FA and another rule reach."""


class Race(NamedTuple):
    """The times at which FA and the first of the other rules reached an accuracy.

    Attributes:
        accuracy: The target.
        fa_time: FA's time; None if it never reached the target.
        other: Variant of the first other rule; None if no other rule reached the target.
        other_time: The other rule's time.
    """

    accuracy: float
    fa_time: float | None
    other: str | None
    other_time: float | None

    def describe(self, form: str, factor: float) -> str:
        """Return both times, multiplied by a factor, in a format such as "{:.0f}".

        Args:
            form: Format of a time.
            factor: Number that the times are multiplied by.

        Returns:
            The text.
        """
        fa_time = "never" if self.fa_time is None else form.format(factor * self.fa_time)
        other = "no other rule"
        if self.other is not None and self.other_time is not None:
            other = f"first other rule {VARIANTS[self.other].label} {form.format(factor * self.other_time)}"
        return f"{self.accuracy:.3f}: FA {fa_time}, {other}"


def describe_races(races: Sequence[Race], form: str, factor: float = 1.0) -> str:
    """Return all races in words; see `Race.describe`.

    Args:
        races: The races.
        form: Format of a time.
        factor: As for `Race.describe`.

    Returns:
        The text.
    """
    return "; ".join(race.describe(form, factor) for race in races) or f"no accuracy above {LEARNED:g} times chance"


def fa_first(races: Sequence[Race], factor: float = 1.0) -> list[bool]:
    """Return for each race whether every other rule took more than `factor` times as long as FA.

    Args:
        races: The races.
        factor: Least ratio of another rule's time to FA's.

    Returns:
        One value for each race.
    """
    return [
        race.fa_time is not None and (race.other_time is None or factor * race.fa_time < race.other_time)
        for race in races
    ]


def targets(table: DataFrame, chance: float) -> list[float]:
    """Return the target accuracies, from means over seeds; none where nothing is learned.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.

    Returns:
        Accuracies in ascending order.
    """
    best = _means(table)["test_accuracy"].groupby("variant").max()
    common = float(min(best["fa"], max(best[key] for key in OTHER_RULES if key in best)))
    accuracies = [chance + share * (common - chance) for share in SHARES]
    return [accuracy for accuracy in accuracies if accuracy > LEARNED * chance]


def races(table: DataFrame, chance: float, column: str = "iteration") -> list[Race]:
    """Return a race to each of the `targets`, with times in a column of the table.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.
        column: Column with the times.

    Returns:
        One race for each target.
    """
    return [_race(table, accuracy, column) for accuracy in targets(table, chance)]


def times_to(table: DataFrame, accuracy: float, column: str = "iteration") -> dict[str, float]:
    """Return by variant the time at which its mean over seeds reached an accuracy, if it did.

    Args:
        table: The curves, one row a point.
        accuracy: Accuracy to reach.
        column: Column with the times.

    Returns:
        Times by variant.
    """
    means = _means(table)
    first = means[means["test_accuracy"] >= accuracy].groupby("variant").first()
    return {str(variant): float(value) for variant, value in first[column].items()}


def _race(table: DataFrame, accuracy: float, column: str) -> Race:
    times = times_to(table, accuracy, column)
    other = min((key for key in OTHER_RULES if key in times), key=lambda key: times[key], default=None)
    return Race(accuracy, times.get("fa"), other, None if other is None else times[other])


def _means(table: DataFrame) -> DataFrame:
    """Return means over seeds by variant, with the iteration as a column."""
    means: DataFrame = table.groupby(["variant", "iteration"]).mean(numeric_only=True).reset_index("iteration")
    return means
