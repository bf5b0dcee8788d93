"""Extra 7: what FA's lead over Multi-Krum depends on: the learning rate, the length of a step, or the subspace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fa.experiments.figures.extras_common import by_label, comparison_verdict, make_extra
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import Claim, Lead, format_mean_range, learned, verdict
from fa.experiments.reporting.curves import draw_line, finish
from fa.experiments.runs.profiles import MARGIN
from fa.experiments.runs.study import Case, OutDir, Seeds, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "extra07_rate_or_subspace"
FAULTY = 3
SEED = 2021
SLOWER = 0.25  # times the profile's learning rate
LONGER = 15 / 8  # p/m: by how much FA's released step is longer than the mean of unit gradients, at most

FA, KRUM, KRUM_SLOWER = "FA", "Multi-Krum", "Multi-Krum, a quarter of the rate"
UNIT, CEILING = "Mean of unit gradients, p/m times the rate", "Mean, f = 0"
FA_SLOWER, CHOSEN = "FA, this package's default, a quarter of the rate", "Krum's choice, then FA"


def study(profile: str, out: OutDir = None, seeds: Seeds = None, **given: Any) -> Study:
    """Return the runs of Extra 7; settings that are given, and not None, replace the profile's."""
    rate = make_extra(NAME, profile, [Case("fa", FAULTY)], out).cells[0].config.lr
    slower, longer = {"lr": SLOWER * rate}, {"lr": LONGER * rate}
    cases: tuple[tuple[str, str, int, dict[str, Any], dict[str, Any]], ...] = (
        (FA, "fa", FAULTY, {}, {}),
        (KRUM, "multi_krum", FAULTY, {}, {}),
        (KRUM_SLOWER, "multi_krum", FAULTY, slower, {}),
        (UNIT, "mean_unit", FAULTY, longer, {}),
        (CEILING, "mean", 0, {}, {}),
        (FA_SLOWER, "fa_default", FAULTY, slower, {}),
        (CHOSEN, "fa", FAULTY, {}, {"preaggregators": ("krum",)}),
    )
    grid = [Case(key, f, settings, options, (SEED,), label) for label, key, f, settings, options in cases]
    return make_extra(NAME, profile, grid, out, seeds, **given)


LOOKS = {
    FA: ("fa", ()),
    KRUM: ("multi_krum", ()),
    KRUM_SLOWER: ("multi_krum", (5, 2)),
    UNIT: ("mean_unit", (5, 2)),
    CEILING: ("mean", (1, 1)),
    FA_SLOWER: ("fa_default", (5, 2)),
    CHOSEN: ("fa", (2, 2)),
}
"""The variant whose colour and marker a curve has, and its dashes."""


def draw(table: DataFrame, title: str) -> Figure:
    """Draw one panel with all the curves."""
    style.apply_theme()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    axes = figure.subplots()
    for label, (key, dashes) in LOOKS.items():
        rows = table[table["label"] == label]
        if len(rows):
            draw_line(axes, rows, label, style.LOOKS[key].colour, style.LOOKS[key].marker, dashes)
    finish(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.suptitle(f"f = {FAULTY} Byzantine workers send random gradients\n{title}", fontsize=10)
    return figure


def claims(table: DataFrame, chance: float, margin: float = MARGIN) -> list[Claim]:
    """Judge E7: whether Multi-Krum at a lower rate is level with FA, and whether FA is ahead of its control.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.
        margin: Accuracies closer than this are equal.
    """
    final = by_label(table)
    testable = learned(final, chance)
    leads = {name: Lead("f = 3", final[FA], name, final[name]) for name in (KRUM, KRUM_SLOWER, UNIT)}
    ceiling = f"; {CEILING} {format_mean_range(final[CEILING])}"
    return [
        Claim(
            "E7",
            "at a quarter of the learning rate Multi-Krum is equal to FA or better",
            f"final accuracy {leads[KRUM].told()}; {leads[KRUM_SLOWER].told()}{ceiling}",
            verdict([leads[KRUM_SLOWER].margin < margin], testable),
        ),
        Claim(
            "E7",
            "FA is better than the mean of unit gradients with steps of the same length",
            f"final accuracy {leads[UNIT].told()}; lead {leads[UNIT].tested}",
            comparison_verdict([leads[UNIT]], testable, margin=margin),
        ),
    ]
