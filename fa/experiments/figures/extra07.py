"""Extra 7: whether FA's lead over Multi-Krum is due to the learning rate, the length of a step, or the subspace."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fa.experiments.figures.extras_common import make_extra
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import Claim, Lead, comparison_verdict, format_mean_range, learned, mean, verdict
from fa.experiments.reporting.curves import draw_line, finish
from fa.experiments.runs.profiles import MARGIN, profile_settings
from fa.experiments.runs.results import final_accuracies
from fa.experiments.runs.study import Case, OutDir, Seeds, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "extra07_rate_or_subspace"
NO_RULES = "it compares FA with Multi-Krum and its controls"
NO_ATTACK = "two of its curves have an attack of their own"
F = 3
SEED = 2021
RATE_FACTOR = 0.25  # Factor of the profile's learning rate.
STEP_RATIO = 15 / 8  # p/m: largest ratio of the released FA's step to that of the mean of unit gradients.

FA, KRUM, KRUM_SLOWER = "FA", "Multi-Krum", "Multi-Krum, a quarter of the rate"
UNIT, CEILING = "Mean of unit gradients, p/m times the rate", "Mean, f = 0"
FA_SLOWER, CHOSEN = "FA, a quarter of the rate", "Krum's choice, then FA"
DEFAULT, DEFAULT_SLOWER = "FA, this package's default", "FA, this package's default, a quarter of the rate"
FA_EARLIER, KRUM_EARLIER = "FA, earlier settings", "Multi-Krum, earlier settings"

CURVES = {"quick": {"evaluate_every": 5}}
"""Settings by profile of this extra, which draws curves."""

EARLIER = {"sampling": "cycled", "attack": "random"}
"""Settings of the two runs at the paper's size that are older than the rules of judgement."""

LOOKS = {
    FA: ("fa", ()),
    FA_SLOWER: ("fa", (5, 2)),
    KRUM: ("multi_krum", ()),
    KRUM_SLOWER: ("multi_krum", (5, 2)),
    UNIT: ("mean_unit", (5, 2)),
    CEILING: ("mean", (1, 1)),
    DEFAULT: ("fa_default", ()),
    DEFAULT_SLOWER: ("fa_default", (5, 2)),
    CHOSEN: ("fa", (2, 2)),
    FA_EARLIER: ("fa", (1, 2)),
    KRUM_EARLIER: ("multi_krum", (1, 2)),
}
"""The variant of each curve, which has its color and marker, and the curve's dashes."""


def study(profile: str, out: OutDir = None, seeds: Seeds = None, **overrides: Any) -> Study:
    """Create the study of Extra 7: FA and Multi-Krum at several learning rates.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: 2021.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, with f = 3, and f = 0 for one curve. The two runs with earlier settings are part of "paper" only.

    Raises:
        ValueError: Unknown profile or setting, an invalid value, or empty `seeds`.
    """
    rate = profile_settings(profile)["lr"]
    settings: dict[str, dict[str, Any]] = {
        KRUM_SLOWER: {"lr": RATE_FACTOR * rate},
        FA_SLOWER: {"lr": RATE_FACTOR * rate},
        DEFAULT_SLOWER: {"lr": RATE_FACTOR * rate},
        UNIT: {"lr": STEP_RATIO * rate},
        FA_EARLIER: EARLIER,
        KRUM_EARLIER: EARLIER,
    }
    options: dict[str, dict[str, Any]] = {CHOSEN: {"preaggregators": ("krum",)}}
    grid = [
        Case(variant, 0 if name == CEILING else F, settings.get(name, {}), options.get(name, {}), (SEED,), name)
        for name, (variant, _) in LOOKS.items()
        if profile == "paper" or name not in (FA_EARLIER, KRUM_EARLIER)
    ]
    return make_extra(NAME, profile, grid, out, seeds, CURVES.get(profile), **overrides)


def draw(table: DataFrame, title: str) -> Figure:
    """Draw one panel with all curves.

    Args:
        table: The curves, one row a point, with the columns label, seed, iteration and test_accuracy. Curves without
            rows are omitted.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure.
    """
    figure = style.new_figure(9.5, 4.6)
    axes = figure.subplots()
    for label, (key, dashes) in LOOKS.items():
        rows = table[table["label"] == label]
        if len(rows):
            draw_line(axes, rows, replace(style.LOOKS[key], label=label, dashes=dashes))
    finish(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    style.set_heading(figure, f"f = {F} Byzantine workers send random gradients\n{title}")
    return figure


def claims(table: DataFrame, chance: float, margin: float = MARGIN) -> list[Claim]:
    """Judge E7: whether Multi-Krum at a lower rate equals FA, and whether FA is better than its control.

    A third statement compares FA and Multi-Krum, each at the better of two rates. A statement is judged once all of
    its runs are finished.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.
        margin: Accuracies that differ by less are equal.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    final = final_accuracies(table, "label")
    testable = learned(final, chance)
    others = [name for name in (KRUM, KRUM_SLOWER, UNIT) if FA in final and name in final]
    leads = {name: Lead(f"f = {F}", final[FA], name, final[name]) for name in others}
    ceiling = f"; {CEILING} {format_mean_range(final[CEILING])}" if CEILING in final else ""
    krum = "; ".join(leads[name].describe() for name in (KRUM, KRUM_SLOWER) if name in leads)
    judged = []
    if KRUM_SLOWER in leads:
        words = "at a quarter of the learning rate Multi-Krum is equal to FA or better"
        equal = verdict([leads[KRUM_SLOWER].difference < margin], testable)
        judged.append(Claim("E7", words, f"final accuracy {krum}{ceiling}", equal))
    if UNIT in leads:
        words = "FA is better than the mean of unit gradients with steps of the same length"
        measured = f"final accuracy {leads[UNIT].describe()}; lead {leads[UNIT].difference_text}"
        judged.append(Claim("E7", words, measured, comparison_verdict([leads[UNIT]], testable, margin=margin)))
    if {FA, FA_SLOWER, KRUM, KRUM_SLOWER} <= final.keys():
        ours, other = (max(pair, key=lambda name: mean(final[name])) for pair in ((FA, FA_SLOWER), (KRUM, KRUM_SLOWER)))
        words = "FA is better than Multi-Krum, each at the better of two rates"
        best = Lead(f"f = {F}", final[ours], other, final[other], ours)
        measured = f"final accuracy {best.describe()}; lead {best.difference_text}"
        judged.append(Claim("E7", words, measured, comparison_verdict([best], testable, margin=margin)))
    return judged
