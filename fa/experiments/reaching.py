"""Who is the first to reach an accuracy, and which accuracy that should be.

It should be one that FA and the best other rule both reach, or one of them has no time at all; and of those the
highest, since the lower ones tell of the beginning alone. So the curves themselves choose it, by a rule that asks
nothing of who was first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fa.experiments.style import PAPER_RULES, VARIANTS

if TYPE_CHECKING:
    from pandas import DataFrame


def target(table: DataFrame) -> float:
    """The highest accuracy that both FA and the best of the paper's other rules reach, by their means over seeds."""
    best = _means(table)["test_accuracy"].groupby("variant").max()
    return float(min(best["fa"], max(best[key] for key in PAPER_RULES if key != "fa" and key in best)))


def reached(table: DataFrame, accuracy: float, column: str = "iteration") -> dict[str, float]:
    """What `column` was when a variant's mean accuracy over the seeds was first so high; by variants that were."""
    means = _means(table)
    there = means[means["test_accuracy"] >= accuracy].groupby("variant").first()
    return {str(variant): float(value) for variant, value in there[column].items()}


def sooner(at: dict[str, float]) -> bool:
    """Whether FA is there before each of the paper's other rules."""
    return all(at["fa"] < at[key] for key in PAPER_RULES if key != "fa" and key in at)


def told(at: dict[str, float], form: str) -> str:
    """When each was there, the first first, in a `form` as {:.0f}; FA and rules that were not are named as well."""
    order = sorted(at, key=lambda key: at[key])
    absent = [VARIANTS[key].label for key in (*PAPER_RULES, "mean") if key not in at]
    said = ", ".join(f"{VARIANTS[key].label} {form.format(at[key])}" for key in order)
    return said + (f"; not reached by {', '.join(absent)}" if absent else "")


def _means(table: DataFrame) -> DataFrame:
    """Over the seeds, a row for each variant and iteration, in its order, with the iteration as a column too."""
    means: DataFrame = table.groupby(["variant", "iteration"]).mean(numeric_only=True).reset_index("iteration")
    return means
