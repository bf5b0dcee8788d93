"""Figure 4: the rules with f = 1, 2, 3 faulty workers that send random gradients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fa.experiments import style
from fa.experiments.claims import CHANCE_MARGIN, Claim, accuracies, lead, learned, mean, shown, verdict
from fa.experiments.curves import draw_curves
from fa.experiments.study import Case, Study, make_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "fig04_byzantine_workers"
FAULTY = (1, 2, 3)
TOP = (*style.PAPER_RULES, "mean")
SEEDS = {("cpu", 3): (2021, 2022, 2023)}  # where a profile has one seed, by f: the paper's usual f has three
MUCH = 0.15  # of accuracy: what still counts as about 20%


def study(profile: str, out: str | Path | None = None, seeds: Sequence[int] | None = None, **given: Any) -> Study:
    """The runs of Figure 4; settings that are given, and not None, replace the profile's."""
    variants = dict.fromkeys((*TOP, *style.READINGS))
    grid = [Case(key, f, seeds=SEEDS.get((profile, f), ())) for f in FAULTY for key in variants]
    return make_study(NAME, profile, grid, out, seeds, **given)


def draw(table: DataFrame, title: str) -> Figure:
    """Above the paper's arrangement, one panel for each f; below, the readings of FA and the controls."""
    style.use()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.6), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    seeds = table.groupby("f")["seed"].nunique()
    for row, variants in zip(panels, (TOP, style.READINGS), strict=True):
        for axes, f in zip(row, FAULTY, strict=True):
            draw_curves(axes, table[table["f"] == f], variants)
            axes.set_title(f"f = {f}" if seeds.nunique() == 1 else f"f = {f}, seeds: {seeds[f]}")
            axes.label_outer()
    for row, heading in zip(panels, ("rules", "readings of FA, and controls"), strict=True):
        row[-1].legend(*row[-1].get_legend_handles_labels(), title=heading, loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.suptitle(f"Faulty workers send random gradients; FA is the released code's reading\n{title}", fontsize=10)
    return figure


def claims(table: DataFrame, chance: float) -> list[Claim]:
    """C3 in its two halves, and C4; `chance` is the accuracy of guessing."""
    final = accuracies(table)
    testable = learned(final, chance)
    leads = [lead(final, f, "f") for f in FAULTY]
    trimmed = final["trimmed_mean", 1]
    return [
        Claim(
            "C3",
            "FA remains more robust compared to other approaches, for f = 1, 2, 3",
            "final accuracy " + "; ".join(map(str, leads)),
            verdict([lead.better() for lead in leads], testable),
        ),
        Claim(
            "C3",
            "for Trimmed Mean, even a single faulty worker has a catastrophic impact",
            f"f = 1: final accuracy {shown(trimmed)}",
            verdict([mean(trimmed) < chance + CHANCE_MARGIN], testable),
        ),
        Claim(
            "C4",
            "significantly (about 20%) better accuracy",
            "FA's accuracy less the best other rule's: " + ", ".join(lead.tested for lead in leads),
            verdict([lead.better(MUCH) for lead in leads], testable),
        ),
    ]
