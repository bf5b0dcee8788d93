"""Figure 9: FA with up to 60 workers, 14 of them Byzantine, on the MNIST CNN, and the time of an aggregation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from fa.augment.recipes import read
from fa.experiments.paths import recipe_path
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import MAX_LOSS, MISSING, Claim, format_mean_range, learned, mean, verdict
from fa.experiments.reporting.curves import draw_line, finish
from fa.experiments.runs.profiles import for_profile
from fa.experiments.runs.recording import record
from fa.experiments.runs.results import common_final_accuracies
from fa.experiments.runs.study import Case, OutDir, Seeds, Study, make_study
from fa.experiments.runs.user_rules import attack_heading
from fa.experiments.runs.variants import VARIANTS
from fa.utils.timing import call_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "fig09_scaling"
NO_RULES = "it shows FA alone, at several sizes"
CROWDS = ((15, 3), (30, 6), (60, 12), (60, 14))  # Pairs (p, f); the last has the largest f of the paper's text.
ITERATIONS = {"smoke": (4, 4, 4), "quick": (120, 60, 30), "cpu": (625, 313, 157), "paper": (625, 313, 157)}
TIMED_CALLS = 20  # Number of timed calls per rule.
RULES = ("fa", "mean")
CEILING = "Mean, p = 15, f = 0"
_ZOOMED_FROM = 0.9


def study(profile: str, out: OutDir = None, seeds: Seeds = None, **overrides: Any) -> Study:
    """Create the study of Figure 9: FA with 15, 30 and 60 workers.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: the profile's.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, with FA for each (p, f) of `CROWDS`, and the mean without Byzantine workers (p = 15).

    Raises:
        ValueError: Unknown profile or setting, an invalid value, or empty `seeds`.
    """
    iterations = dict(zip((15, 30, 60), for_profile(ITERATIONS, profile), strict=True))
    grid = [Case("fa", f, {"workers": p, "iterations": iterations[p]}) for p, f in CROWDS]
    grid.append(Case("mean", 0, {"workers": 15, "iterations": iterations[15]}, label_override=CEILING))
    settings: dict[str, Any] = {"dataset": "mnist", "model": "convnet"} if profile in ("cpu", "paper") else {}
    # As in the released code: the paper's text does not state the attack of this figure.
    if profile == "paper" and overrides.get("attack") is None:
        settings |= {"attack": "none", "augmentation": read(recipe_path("lv")).options}
    return make_study(NAME, profile, grid, out, seeds, settings, **overrides)


def server_times(study: Study) -> DataFrame:
    """Measure the time of one aggregation on this machine, with the gradients of a run's first iteration.

    Args:
        study: The study of this figure.

    Returns:
        One row for each number of workers and rule (FA and the mean), with the median of TIMED_CALLS in milliseconds.
    """
    import pandas

    rows = []
    for cell in {cell.case.columns["workers"]: cell for cell in study.cells if cell.variant == "fa"}.values():
        G = record(cell.config, at=(1,))[1]
        for name in RULES:
            rule = VARIANTS[name].make_rule(cell.config.rule_f)
            milliseconds = 1000 * median(call_seconds(partial(rule, G), TIMED_CALLS))
            rows.append({"workers": len(G), "n": G.shape[1], "rule": name, "milliseconds": milliseconds})
    return pandas.DataFrame(rows, columns=["workers", "n", "rule", "milliseconds"])


def draw(table: DataFrame, times: DataFrame, title: str) -> Figure:
    """Draw the curves, as in the paper (left), and the time of an aggregation (right).

    Args:
        table: The curves, one row a point.
        times: Milliseconds of one aggregation; see `server_times`.
        title: Settings, for the figure's title.

    Returns:
        The figure. Sizes without runs are omitted.
    """
    figure = style.new_figure(9.5, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    for (p, f), color, marker in zip(CROWDS, style.sequential_colors(len(CROWDS)), "osD^", strict=True):
        rows = table[(table["workers"] == p) & (table["f"] == f)]
        if len(rows):
            draw_line(left, rows, style.Look(f"p = {p}, f = {f}", color, marker))
    ceiling = replace(style.LOOKS["mean"], label=CEILING, dashes=(1, 1))
    if "mean" in set(table["variant"]):
        draw_line(left, table[table["variant"] == "mean"], ceiling)
    finish(left)
    if table.groupby(["workers", "f", "variant"])["test_accuracy"].max().min() > _ZOOMED_FROM:
        left.set_ylim(_ZOOMED_FROM, 1.005)  # The lines would lie on one another.
    left.legend(title="FA, and the mean", loc="lower right")
    if times.empty:
        right.set_axis_off()  # No run of FA is finished.
    else:
        _draw_times(right, times)
    style.set_heading(figure, f"Byzantine workers send {attack_heading(table)}; {style.FA_FORMULATION}\n{title}")
    return figure


def _draw_times(axes: Axes, times: DataFrame) -> None:
    for name in RULES:
        look, rows = style.LOOKS[name], times[times["rule"] == name]
        axes.plot(rows["workers"], rows["milliseconds"], color=look.color, marker=look.marker, label=look.label)
    axes.set(xlabel="workers p", ylabel="one aggregation (ms)", ylim=(0, None), xticks=sorted(set(times["workers"])))
    axes.legend(title=f"n = {times['n'].iloc[0]:,}")


def claims(table: DataFrame, times: DataFrame, chance: float) -> list[Claim]:
    """Judge C10: whether FA comes near the mean without Byzantine workers at every size.

    Args:
        table: The curves, one row a point.
        times: Milliseconds of one aggregation by number of workers and rule, which are added to the text.
        chance: Accuracy of guessing.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    every = common_final_accuracies(table, "variant", "workers", "f")
    final = {(p, f): every["fa", p, f] for p, f in CROWDS if ("fa", p, f) in every}
    ceiling = every.get(("mean", 15, 0), [])
    costs = times[times["rule"] == "fa"].set_index("workers")["milliseconds"]
    measured = ", ".join(f"p = {p}, f = {f}: {format_mean_range(values)}" for (p, f), values in final.items())
    durations = ", ".join(f"p = {p}: {cost:.1f} ms" for p, cost in costs.items())
    ceiling_text = format_mean_range(ceiling) if ceiling else "not finished"
    found = MISSING
    if ceiling and len(final) == len(CROWDS):
        near = [mean(values) >= mean(ceiling) - MAX_LOSS for values in final.values()]
        found = verdict(near, learned({"mean": ceiling}, chance))
    return [
        Claim(
            "C10",
            "FA is feasible for larger setups, with up to 60 workers and 14 Byzantine ones",
            f"final accuracy {measured}; {CEILING}: {ceiling_text}; threshold: {MAX_LOSS:g} below; one"
            f" aggregation {durations}",
            found,
        )
    ]
