"""Extra 4: how each rule weighs every worker, and how well that detects Byzantine workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fa.experiments.figures.extra03 import ATTACKS, SEEDS_BY_PROFILE
from fa.experiments.figures.extras_common import SHORT, Arms, arm_cases, make_extra
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import Claim, verdict
from fa.experiments.reporting.curves import draw_kinds
from fa.experiments.reporting.heatmap import draw_heat
from fa.experiments.runs.recording import MIN_MINIBATCHES
from fa.experiments.runs.results import Results
from fa.experiments.runs.study import OutDir, Seeds, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "extra04_who_was_trusted"
NO_RULES = "its detectors belong to certain rules; fa plot shows the decisions of any rule"
NO_ATTACK = "it compares attacks that it has names for"
F = 3
MIN_DETECTION = 0.9  # Precision or recall from which Byzantine workers count as detected.
UNIT_MEAN = "Mean of unit gradients"
CASES: Arms = {
    "FA": ("fa", {}),
    UNIT_MEAN: ("mean_unit", {}),
    "Multi-Krum": ("multi_krum", {}),
    "Bulyan": ("bulyan", {}),
    "Krum's choice, FA": ("fa", {"preaggregators": ("krum", "unit")}),
}
"""Rules that decide about whole gradients."""

DETECTORS = {
    "FA, smallest v": ("FA", "value"),
    "FA, smallest weight": ("FA", "weight"),
    f"{UNIT_MEAN}, smallest weight": (UNIT_MEAN, "weight"),
    "Multi-Krum, excluded": ("Multi-Krum", "status"),
    "Bulyan, excluded": ("Bulyan", "status"),
    "Krum's choice, excluded": ("Krum's choice, FA", "status"),
}
"""Detectors: a rule and a column of workers.csv.

By "value" and "weight" a detector reports the f workers with the smallest; by "status" the excluded ones.
"""

COURSES = {"value": "FA's explained variance $v_i$", "share": "FA's weight, of the sum of sizes"}
"""Columns that are drawn over time."""


def study(profile: str, out: OutDir = None, seeds: Seeds = None, **overrides: Any) -> Study:
    """Create the study of Extra 4: decisions about workers under every attack of Extra 3.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: the profile's, and at "paper" 2021.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, with f = 3, for each attack and each of `CASES`.

    Raises:
        ValueError: Unknown profile or setting, an invalid value, or empty `seeds`.
    """
    seeds_of_cases = SEEDS_BY_PROFILE.get(profile, ())
    grid = [case for attack in ATTACKS for case in arm_cases(CASES, F, {"attack": attack}, seeds_of_cases)]
    return make_extra(NAME, profile, grid, out, seeds, SHORT.get(profile), **overrides)


def workers(results: Results) -> DataFrame:
    """Read the workers.csv of every run.

    Args:
        results: Results of this figure's study.

    Returns:
        One row for each run, iteration and worker, with the columns rule (a label), attack, seed, iteration, worker,
        value, weight, status, share and reason, as in `fa.experiments.runs.store.Record.workers`.
    """
    import pandas

    rows = []
    for cell in results.study.cells:
        rows_of_run = results.record(cell).workers()
        about = {"rule": cell.case.label, "attack": cell.config.attack, "seed": cell.config.seed}
        rows.append(rows_of_run.assign(**about)[[*about, *rows_of_run.columns]])
    return pandas.concat(rows, ignore_index=True)


def detection(workers: DataFrame, f: int = F) -> DataFrame:
    """Return precision and recall of each detector under each attack, over all iterations and seeds.

    Ties are broken towards the higher rank, so that they never favour a detector.

    Args:
        workers: Rows of `workers`.
        f: Number of Byzantine workers, which have the lowest ranks.

    Returns:
        Columns detector, attack, precision, recall, and guess: the recall of reporting as many workers at random.
    """
    import pandas

    rows = []
    for name, (rule, column) in DETECTORS.items():
        for attack, group in workers[workers["rule"] == rule].groupby("attack", sort=False):
            reported = _reported(group, column, f)
            byzantine = group["worker"] < f
            right = int((reported & byzantine).sum())
            precision = right / int(reported.sum()) if reported.any() else float("nan")
            recall, guess = right / int(byzantine.sum()), float(reported.mean())
            rows.append({"detector": name, "attack": attack, "precision": precision, "recall": recall, "guess": guess})
    return pandas.DataFrame(rows)


def _reported(workers: DataFrame, column: str, f: int) -> Any:
    """Return a mask of the rows that the detector reports."""
    if column == "status":
        return workers["reason"] != ""
    order = workers.sort_values([column, "worker"], ascending=[True, False], kind="stable")
    place = order.groupby(["seed", "iteration"]).cumcount()
    return (place < f).reindex(workers.index)


def draw(workers: DataFrame, detections: DataFrame, title: str) -> Figure:
    """Draw FA's explained variances and weights over time (above), and the detectors (below).

    Args:
        workers: Rows of `workers`.
        detections: Rows of `detection`.
        title: Settings, for the figure's title.

    Returns:
        The figure.
    """
    figure = style.new_figure(15, 9)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.35, 1))
    above, below = halves
    grid = above.subplots(2, len(ATTACKS), sharex=True, sharey="row")
    ours = workers[workers["rule"] == "FA"]
    for column, (attack, heading) in zip(grid.T, ATTACKS.items(), strict=True):
        rows = ours[ours["attack"] == attack]
        for axes, (name, label) in zip(column, COURSES.items(), strict=True):
            draw_kinds(axes, rows, rows["worker"] < F, name)
            axes.set(xlabel="iteration", ylabel=label)
            axes.label_outer()
        column[0].set_title(heading)
    grid[0, 0].set_ylim(0, 1.02)
    grid[0, -1].legend(title="workers", loc="upper left", bbox_to_anchor=(1.02, 1))
    for axes, column in zip(below.subplots(1, 2, sharey=True), ("precision", "recall"), strict=True):
        image = draw_heat(axes, cells(detections, column), f"{column} of detecting Byzantine workers")
    below.colorbar(image, ax=below.axes, label="share")
    p = workers["worker"].nunique()
    guess = f"guessing {F} has precision and recall {F / p:.2g}"
    style.set_heading(figure, f"f = {F} Byzantine workers of {p}; {guess}\n{title}")
    return figure


def cells(detections: DataFrame, column: str) -> DataFrame:
    """Return precision or recall, with detectors as rows and attacks as columns.

    Args:
        detections: Rows of `detection`.
        column: "precision" or "recall".

    Returns:
        The shares.
    """
    grid = detections.pivot(index="detector", columns="attack", values=column)
    return grid.reindex(index=list(DETECTORS), columns=list(ATTACKS)).rename(columns=ATTACKS)


def claims(workers: DataFrame, detections: DataFrame) -> list[Claim]:
    """Judge E4: whether values, weights and selection detect Byzantine workers.

    Args:
        workers: Rows of `workers`.
        detections: Rows of `detection`.

    Returns:
        The claims.
    """
    testable = workers["iteration"].nunique() >= MIN_MINIBATCHES
    recall = detections.set_index(["detector", "attack"])["recall"]
    guess = detections.groupby("detector")["guess"].mean()
    selected = ["Multi-Krum, excluded", "Bulyan, excluded", "Krum's choice, excluded"]
    return [
        _claim("a low explained variance identifies Byzantine workers", recall, guess, ["FA, smallest v"], testable),
        _claim(
            "a low weight in FA identifies Byzantine workers",
            recall,
            guess,
            ["FA, smallest weight"],
            testable,
        ),
        _claim("rules that select workers exclude the Byzantine ones", recall, guess, selected, testable),
    ]


def _claim(words: str, recall: Any, guess: Any, detectors: Sequence[str], testable: bool) -> Claim:
    texts = [
        f"{name} (guessing as many: {guess[name]:.2f}): "
        + ", ".join(f"{ATTACKS[attack]} {recall[name, attack]:.2f}" for attack in ATTACKS)
        for name in detectors
    ]
    holds = [bool(recall[name, attack] >= MIN_DETECTION) for name in detectors for attack in ATTACKS]
    return Claim(
        "E4", words, "recall " + "; ".join(texts) + f"; threshold: {MIN_DETECTION:g}", verdict(holds, testable)
    )
