"""The tests that Extras 6 and 13 share: arms against controls, paired by seed, with steps of equal length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fa.experiments.reporting import style
from fa.experiments.reporting.claims import HOLDS, IN_PART, MISSING, NOT, OPEN, UNTESTABLE, Claim, learned
from fa.experiments.reporting.equivalence import EQUIVALENT, HELPS, LEVEL, PairedDifferences
from fa.experiments.runs.results import final_accuracies

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

ATTACKS = {
    ("random", 2): "random in [0, 1), f = 2",
    ("random", 3): "random in [0, 1), f = 3",
    ("collude", 4): "colluding, f = 4",
    ("none", 0): "no attack",
}
"""Attacks with their numbers of Byzantine workers, and their names."""

SEEDS = tuple(range(3001, 3021))
"""Seeds of the tests, which no earlier run used."""

SEEDS_BY_PROFILE = {"smoke": SEEDS[:1], "quick": SEEDS[:5], "cpu": SEEDS, "paper": SEEDS[:3]}
"""Seeds by profile. The tests have all of them, at profile "cpu". The profile "paper" confirms their results."""

EQUIVALENT_WITHIN = 0.02
"""Margin of the tests at every profile."""

LENGTH = {"direction_norm": "unit_mean"}
"""The setting that gives steps of all rules one length: that of the mean of unit gradients."""

Pairs = Mapping[str, tuple[str, str]]
"""Labels of an arm and of its control, by the name of the comparison."""


@dataclass(frozen=True)
class Comparison:
    """An arm against its control under one attack.

    Attributes:
        attack: Name of the attack, with f.
        name: Name of the comparison.
        differences: Differences of final accuracy, paired by seed.
        level: Level of the test that the arm helps, corrected for the number of tests.
    """

    attack: str
    name: str
    differences: PairedDifferences
    level: float

    @property
    def result(self) -> str:
        """The result of the test; see `PairedDifferences.result`."""
        return self.differences.result(EQUIVALENT_WITHIN, self.level)

    def describe(self) -> str:
        """Return the mean difference, its 90% interval and the result."""
        low, high = self.differences.interval()
        below = self.differences.p_below(-EQUIVALENT_WITHIN)
        lower = ", lower by more than the margin" if below is not None and below < self.level else ""
        return f"{self.attack}: {self.differences.mean:+.3f} ({low:+.3f} to {high:+.3f}), {self.result}{lower}"


def compare(table: DataFrame, pairs: Pairs, level: float) -> list[Comparison]:
    """Compare arms with their controls under each attack, over the seeds that both have.

    Args:
        table: The curves, one row a point.
        pairs: The comparisons.
        level: Level of each test.

    Returns:
        One comparison for each attack and pair that has runs.
    """
    compared = []
    for (attack, f), heading in ATTACKS.items():
        rows = table[(table["attack"] == attack) & (table["f"] == f)]
        for name, (arm, control) in pairs.items():
            final = final_accuracies(rows[rows["label"].isin((arm, control))], "label")
            if len(final) == 2:
                differences = PairedDifferences.between(final[arm], final[control])
                compared.append(Comparison(heading, name, differences, level))
    return compared


def judge(
    number: str, words: Mapping[str, str], table: DataFrame, compared: Sequence[Comparison], chance: float
) -> list[Claim]:
    """Judge the statements that an arm is better than its control.

    A statement holds if the arm helps under all attacks, and in part under some. It does not hold if the arm is
    equivalent under all. Otherwise it is open. With two seeds or more under some attacks only, runs are missing.

    Args:
        number: Number of the statements.
        words: Statement by the name of the comparison.
        table: The curves, one row a point.
        compared: The comparisons.
        chance: Accuracy of guessing.

    Returns:
        One claim for each statement that has runs.
    """
    final = final_accuracies(table, "label", paired=False)
    prefix = f"{subset}; " if (subset := _subset(table)) else ""
    judged = []
    for name in dict.fromkeys(one.name for one in compared):
        ours = [one for one in compared if one.name == name]
        measured = prefix + "; ".join(one.describe() for one in ours)
        results = [one.result for one in ours if len(one.differences.values) > 1]  # One seed allows no test.
        found = _verdict(results, learned(final, chance) and bool(results))
        judged.append(Claim(number, words[name], measured, found))
    return judged


def _verdict(results: Sequence[str], testable: bool) -> str:
    if not testable:
        return UNTESTABLE
    if len(results) < len(ATTACKS):
        return MISSING
    if HELPS in results:
        return HOLDS if set(results) == {HELPS} else IN_PART
    return NOT if set(results) == {EQUIVALENT} else OPEN


def subset_caption(table: DataFrame) -> str:
    """Describe which share of the tests' seeds the runs have, in brackets.

    Args:
        table: The curves, with a column `seed`.

    Returns:
        The number of seeds of `SEEDS` in the table; empty for all of them.
    """
    return f" ({subset})" if (subset := _subset(table)) else ""


def _subset(table: DataFrame) -> str:
    count = len(set(table["seed"]) & set(SEEDS))
    return "" if count == len(SEEDS) else f"a subset, {count} of {len(SEEDS)} seeds"


def draw_differences(
    panels: Sequence[Axes], compared: Sequence[Comparison], looks: Mapping[str, style.Look], one_scale: bool = True
) -> None:
    """Draw one line per comparison: a tick for each seed, a mark at the mean, and both intervals.

    Args:
        panels: One axes for each of `ATTACKS`, which share the vertical axis.
        compared: The comparisons.
        looks: Color and marker by the name of the comparison, from top to bottom.
        one_scale: True for one scale of differences in all panels; False where one attack's would hide the others.
    """
    places = {name: place for place, name in enumerate(looks)}
    for axes, heading in zip(panels, ATTACKS.values(), strict=True):
        axes.axvspan(-EQUIVALENT_WITHIN, EQUIVALENT_WITHIN, color="#e6e6e6", zorder=0)
        axes.axvline(0, color=style.LOOKS["mean_unit"].color, zorder=1)
        for one in compared:
            if one.attack == heading:
                _draw_comparison(axes, one, places[one.name], looks[one.name])
        axes.set(xlabel="difference of test accuracy", title=heading)
    limits = [limit for axes in panels for limit in axes.get_xlim()]
    for axes in panels if one_scale else ():
        axes.set_xlim(min(limits), max(limits))
    panels[0].set_yticks(range(len(looks)), list(looks))
    panels[0].set_ylim(len(looks) - 0.5, -0.5)


def _draw_comparison(axes: Axes, one: Comparison, place: int, look: style.Look) -> None:
    values = one.differences.values
    axes.plot(values, [place + 0.25] * len(values), "|", color=look.color, alpha=0.5)
    for level, width in ((one.level, 1), (LEVEL, 3)):
        axes.plot(one.differences.interval(level), [place, place], color=look.color, linewidth=width)
    axes.plot(
        one.differences.mean, place, look.marker, color=look.color, markersize=6, markeredgecolor="white", mew=0.5
    )


def interval_caption(level: float) -> str:
    """Describe what the lines of `draw_differences` are.

    Args:
        level: Level of the tests.
    """
    return (
        f"grey: margin; thick: {1 - 2 * LEVEL:.0%} interval (equivalent: within the margin);"
        f" thin: {1 - 2 * level:.2%} (helps: above it)"
    )
