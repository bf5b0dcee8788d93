"""What the paper says against what was measured, with a verdict that follows from the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fa.experiments.study import last_points
from fa.experiments.style import PAPER_RULES

if TYPE_CHECKING:
    from pandas import DataFrame
    from pandas.io.formats.style import Styler

REPRODUCED, IN_PART, NOT, UNTESTABLE = "reproduced", "in part", "not reproduced", "not testable here"
LEARNED = 3.0  # times chance: where no run reaches it, nothing was learned, and no claim can be told
CHANCE_MARGIN = 0.05  # accuracy above chance that still counts as none
CLOSE = 0.01  # of accuracy: less is no difference


@dataclass(frozen=True)
class Claim:
    """One statement of the paper: its number here, its words in short, what was measured, the verdict."""

    number: str
    words: str
    measured: str
    verdict: str


def claims_table(claims: Sequence[Claim]) -> Styler:
    """The claims as a table for a notebook, its cells wrapped."""
    import pandas

    names = {"number": "", "words": "the paper", "measured": "measured here"}
    table = pandas.DataFrame([vars(claim) for claim in claims]).rename(columns=names)
    return table.style.hide(axis="index").set_properties(**{"text-align": "left", "white-space": "normal"})


def accuracies(table: DataFrame, by: str = "f") -> dict[tuple[str, Any], list[float]]:
    """Final test accuracies by variant and the column `by`, one a seed."""
    groups = last_points(table).groupby(["variant", by])
    return {(variant, value): list(group["test_accuracy"]) for (variant, value), group in groups}


def shown(values: Sequence[float]) -> str:
    """The mean of final accuracies, with their range where there are several seeds."""
    mean = sum(values) / len(values)
    return f"{mean:.3f}" if len(values) == 1 else f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})"


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def learned(final: Mapping[Any, Sequence[float]], chance: float) -> bool:
    """Whether any run learned enough for rules to be told apart."""
    return max(mean(values) for values in final.values()) > LEARNED * chance


def best_other(final: Mapping[tuple[str, Any], Sequence[float]], where: Any) -> str:
    """Of the paper's rules besides FA, the one with the best mean accuracy at `where`."""
    others = [key for key in PAPER_RULES if key != "fa" and (key, where) in final]
    return max(others, key=lambda key: mean(final[key, where]))


def verdict(holds: Sequence[bool], testable: bool = True) -> str:
    """Of a statement about several cases: whether it holds in all, some or none of them."""
    if not testable:
        return UNTESTABLE
    return REPRODUCED if all(holds) else IN_PART if any(holds) else NOT
