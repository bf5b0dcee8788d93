"""Who is the first to reach an accuracy, and which accuracies these should be.

They should be some that FA and the best other rule both reach, or one of them has no time at all: so shares of the way
from chance to the lower one's best. At the whole of it whoever ends lower is late by the choice alone, and a small
share tells of the beginning; so there are three, and a claim that holds at some of them holds in part. An accuracy at
which nothing is learned yet is none of them. The same accuracy is asked of all rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fa.experiments.reporting.claims import LEARNED
from fa.experiments.runs.variants import RIVALS, VARIANTS

if TYPE_CHECKING:
    from pandas import DataFrame

SHARES = (0.5, 0.75, 0.9)


class Race(NamedTuple):
    """When FA had reached an accuracy, and which other rule had it first, and when; None for who never did."""

    accuracy: float
    ours: float | None
    rival: str | None
    theirs: float | None

    def told(self, form: str, times: float) -> str:
        """Both in a `form` as {:.0f}, `times` what was measured."""
        ours = "never" if self.ours is None else form.format(times * self.ours)
        theirs = "no rival"
        if self.rival is not None and self.theirs is not None:
            theirs = f"first rival {VARIANTS[self.rival].label} {form.format(times * self.theirs)}"
        return f"{self.accuracy:.3f}: FA {ours}, {theirs}"


def told(races: Sequence[Race], form: str, times: float = 1.0) -> str:
    """The races in words; in a `form` as {:.0f}, `times` what was measured."""
    return "; ".join(race.told(form, times) for race in races) or f"no accuracy above {LEARNED:g} times chance"


def won(races: Sequence[Race], margin: float = 1.0) -> list[bool]:
    """Whether FA was there before each of the others, in each race: they took more than `margin` times as long."""
    return [race.ours is not None and (race.theirs is None or margin * race.ours < race.theirs) for race in races]


def targets(table: DataFrame, chance: float) -> list[float]:
    """SHARES of the way from chance to the highest accuracy that both FA and the best other rule reach, by their means
    over seeds; those above LEARNED times chance, which may be none.
    """
    best = _means(table)["test_accuracy"].groupby("variant").max()
    common = float(min(best["fa"], max(best[key] for key in RIVALS if key in best)))
    aims = [chance + share * (common - chance) for share in SHARES]
    return [aim for aim in aims if aim > LEARNED * chance]


def races(table: DataFrame, chance: float, column: str = "iteration") -> list[Race]:
    """One to each of the `targets`, by what `column` was when a variant was there."""
    return [_race(table, accuracy, column) for accuracy in targets(table, chance)]


def reached(table: DataFrame, accuracy: float, column: str = "iteration") -> dict[str, float]:
    """What `column` was when a variant's mean accuracy over the seeds was first so high; by variants that were."""
    means = _means(table)
    there = means[means["test_accuracy"] >= accuracy].groupby("variant").first()
    return {str(variant): float(value) for variant, value in there[column].items()}


def _race(table: DataFrame, accuracy: float, column: str) -> Race:
    times = reached(table, accuracy, column)
    rival = min((key for key in RIVALS if key in times), key=lambda key: times[key], default=None)
    ours = times.get("fa")
    return Race(accuracy, ours, rival, None if rival is None else times[rival])


def _means(table: DataFrame) -> DataFrame:
    """Over the seeds, a row for each variant and iteration, in its order, with the iteration as a column too."""
    means: DataFrame = table.groupby(["variant", "iteration"]).mean(numeric_only=True).reset_index("iteration")
    return means
