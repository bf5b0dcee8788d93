"""What the paper says against what was measured, with a verdict that follows from the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fa.experiments.runs.profiles import MARGIN
from fa.experiments.runs.study import last_points
from fa.experiments.runs.variants import RIVALS, VARIANTS

if TYPE_CHECKING:
    from pandas import DataFrame
    from pandas.io.formats.style import Styler

HOLDS, IN_PART, NOT, UNTESTABLE = "holds", "in part", "does not hold", "not testable"
OPEN = "not established"
"""Some margins are large enough, but the test over seeds does not bear them out."""

LEARNED = 3.0  # times chance: where no run reaches it, nothing was learned, and no claim can be told
CHANCE_MARGIN = 0.05  # accuracy above chance that still counts as none
NEAR = 0.05  # accuracy below the mean's without Byzantine workers that still counts as near it
LEVEL = 0.05  # of a test over seeds


@dataclass(frozen=True)
class Claim:
    """One statement of the paper: its number here, its words in short, what was measured, the verdict."""

    number: str
    words: str
    measured: str
    verdict: str


@dataclass(frozen=True)
class Lead:
    """How far FA's final accuracy is above that of the best of the other rules, in one part of a figure."""

    where: str  # as in f = 3
    ours: Sequence[float]  # final accuracies, one a seed
    rival: str  # the best other rule's variant, or what else it is called
    theirs: Sequence[float]  # of the same seeds
    name: str = "FA"  # of ours

    @property
    def margin(self) -> float:
        """The difference of the means."""
        return mean(self.ours) - mean(self.theirs)

    @property
    def p_value(self) -> float | None:
        """Student's paired t test over the seeds, of FA being no better; None where one seed allows none."""
        from scipy.stats import ttest_rel

        differences = [a - b for a, b in zip(self.ours, self.theirs, strict=True)]
        if len(differences) < 2:
            return None
        if max(differences) - min(differences) < 1e-9:  # no spread to divide by
            return 0.0 if self.margin > 0 else 1.0
        return float(ttest_rel(self.ours, self.theirs, alternative="greater").pvalue)

    def better(self, by: float = MARGIN, level: float = LEVEL) -> bool:
        """Whether FA leads by more than `by`, and by more than the seeds' spread explains where there are several."""
        return self.margin > by and (self.p_value is None or self.p_value < level)

    def __str__(self) -> str:
        return self.told("best rival ")

    def told(self, rival: str = "") -> str:
        """Both final accuracies; `rival` is said before the other rule's name."""
        other = VARIANTS[self.rival].label if self.rival in VARIANTS else self.rival
        return (
            f"{self.where}: {self.name} {format_mean_range(self.ours)}, {rival}{other} {format_mean_range(self.theirs)}"
        )

    @property
    def tested(self) -> str:
        """The margin, with the test's p where there is one."""
        test = "" if self.p_value is None else f" (p = {self.p_value:.2g})"
        return f"{self.where}: {self.margin:+.3f}{test}"


def claims_table(claims: Sequence[Claim]) -> Styler:
    """The claims as a table for a notebook, its cells wrapped."""
    import pandas

    names = {"number": "", "words": "the paper", "measured": "measured here"}
    table = pandas.DataFrame([vars(claim) for claim in claims]).rename(columns=names)
    return table.style.hide(axis="index").set_properties(**{"text-align": "left", "white-space": "normal"})


def accuracies(table: DataFrame, by: str = "f") -> dict[tuple[str, Any], list[float]]:
    """Final test accuracies by variant and the column `by`, one a seed, in the seeds' order; Python's own numbers."""
    last = last_points(table).sort_values("seed", kind="stable")
    found: dict[tuple[str, Any], list[float]] = {}
    for variant, value, accuracy in zip(
        *(last[name].tolist() for name in ("variant", by, "test_accuracy")), strict=True
    ):
        found.setdefault((variant, value), []).append(accuracy)
    return found


def format_mean_range(values: Sequence[float]) -> str:
    """The mean of final accuracies, with their range where there are several seeds."""
    middle = f"{mean(values):.3f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3f} to {max(values):.3f})"


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def learned(final: Mapping[Any, Sequence[float]], chance: float) -> bool:
    """Whether any run learned enough for rules to be told apart."""
    return max(mean(values) for values in final.values()) > LEARNED * chance


def lead(final: Mapping[tuple[str, Any], Sequence[float]], where: Any, name: str = "") -> Lead:
    """FA against the best other rule at `where`, which is told as `name` = `where`."""
    rival = best_other(final, where)
    return Lead(f"{name} = {where}" if name else str(where), final["fa", where], rival, final[rival, where])


def best_other(final: Mapping[tuple[str, Any], Sequence[float]], where: Any) -> str:
    """Of the paper's rules besides FA, and the mean where it was run, the one with the best accuracy at `where`."""
    others = [key for key in RIVALS if (key, where) in final]
    return max(others, key=lambda key: mean(final[key, where]))


def same_iterations(table: DataFrame, by: str) -> tuple[bool, str]:
    """Whether runs have as many iterations at every value of the column `by`, and their numbers in words."""
    counts = list(table.groupby(by)["iteration"].max())
    alike = len(set(counts)) == 1
    told = "/".join(map(str, counts)) + " iterations"
    return alike, told if alike else f"{told}: {by} is not the only change"


def verdict(holds: Sequence[bool], testable: bool = True) -> str:
    """Of a statement about several cases: whether it holds in all, some or none of them."""
    if not testable:
        return UNTESTABLE
    return HOLDS if all(holds) else IN_PART if any(holds) else NOT
