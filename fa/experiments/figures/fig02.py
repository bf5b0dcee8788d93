"""Figure 2: the mean with f = 0, 1, 2, 3 Byzantine workers that send random gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fa.experiments.reporting import style
from fa.experiments.reporting.claims import MISSING, Claim, format_mean_range, learned, mean, verdict
from fa.experiments.reporting.curves import draw_line, finish
from fa.experiments.runs.results import final_accuracies
from fa.experiments.runs.study import Case, OutDir, Seeds, Study, make_study
from fa.experiments.runs.user_rules import attack_heading

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "fig02_mean_tolerance"
NO_RULES = "it shows the mean alone"
F_VALUES = (0, 1, 2, 3)
MAX_RELATIVE_ACCURACY = 0.5  # Share of the accuracy without Byzantine workers: at or below it, the impact is heavy.


def study(profile: str, out: OutDir = None, seeds: Seeds = None, **overrides: Any) -> Study:
    """Create the study of Figure 2: the mean with 0 to 3 Byzantine workers.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: the profile's.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, with a case for each of `F_VALUES`.

    Raises:
        ValueError: Unknown profile or setting, an invalid value, or empty `seeds`.
    """
    return make_study(NAME, profile, [Case("mean", f) for f in F_VALUES], out, seeds, **overrides)


def draw(table: DataFrame, title: str) -> Figure:
    """Draw one line for each number of Byzantine workers.

    Args:
        table: The curves, one row a point, with the columns f, seed, iteration and test_accuracy.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure.
    """
    figure = style.new_figure(6.4, 4.2)
    axes = figure.subplots()
    colors = style.sequential_colors(len(F_VALUES))[::-1]
    for f, color, marker, dashes in zip(F_VALUES, colors, "os^D", ((), (), (6, 4), (1, 3)), strict=True):
        look = style.Look(f"f = {f}", color, marker, dashes)  # Lines of f > 0 coincide.
        draw_line(axes, table[table["f"] == f], look)
    finish(axes)
    axes.legend(title="Byzantine workers", loc="center right")
    style.set_heading(figure, f"The mean; Byzantine workers send {attack_heading(table)}\n{title}", size=9)
    return figure


def claims(table: DataFrame, chance: float) -> list[Claim]:
    """Judge C1: whether one Byzantine worker or more cost at least half of the accuracy, once all runs are finished.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    final = final_accuracies(table, "f")
    found = MISSING
    if set(final) == set(F_VALUES):
        heavy = [mean(final[f]) <= MAX_RELATIVE_ACCURACY * mean(final[0]) for f in F_VALUES[1:]]
        found = verdict(heavy, learned(final, chance))
    measured = "final accuracy " + ", ".join(f"f = {f}: {format_mean_range(final[f])}" for f in F_VALUES if f in final)
    return [
        Claim(
            "C1",
            "f > 0 heavily impacts the accuracy of the mean",
            f"{measured}; chance is {chance:g}; threshold: {MAX_RELATIVE_ACCURACY:g} of the accuracy at f = 0",
            found,
        )
    ]
