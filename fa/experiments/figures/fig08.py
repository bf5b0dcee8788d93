"""Figure 8: effect of the pairwise regularizer's weight lambda on FA, with p = 7 workers and f = 1 Byzantine worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import torch

from fa.experiments.reporting import style
from fa.experiments.reporting.claims import HOLDS, MISSING, Claim, format_mean_range, learned, mean, verdict
from fa.experiments.reporting.curves import draw_line, finish, label_ends
from fa.experiments.runs.profiles import MARGIN
from fa.experiments.runs.recording import MIN_MINIBATCHES, sampling_interval, watch
from fa.experiments.runs.results import final_accuracies
from fa.experiments.runs.study import Case, OutDir, Seeds, Study, make_study
from fa.experiments.runs.user_rules import attack_heading
from fa.experiments.runs.variants import VARIANTS
from fa.rules import make_rule
from fa.training.config import TrainConfig
from fa.training.loop import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "fig08_lambda"
NO_RULES = "it varies FA's lambda"
LAMBDAS = (0, 1, 2, 4, 8, 16, 32, 64)
OTHERS = ("multi_krum", "bulyan")
FORMULATIONS = {"released": "FA as released", "paper": "FA, this package's default"}
MIN_COSINE_GAIN = 0.05  # Least gain of a cosine that counts.


def study(profile: str, out: OutDir = None, seeds: Seeds = None, **overrides: Any) -> Study:
    """Create the study of Figure 8: FA's lambda, with f = 1 of 7 workers.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: the profile's.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, with FA for each of `LAMBDAS`, and each of `OTHERS`.

    Raises:
        ValueError: Unknown profile or setting, an invalid value, or empty `seeds`.
    """
    grid = [Case("fa", 1, options={"lam": float(lam)}) for lam in LAMBDAS] + [Case(key, 1) for key in OTHERS]
    settings = {"workers": 7} | ({"iterations": 1120} if profile == "paper" else {})
    return make_study(NAME, profile, grid, out, seeds, settings, **overrides)


def cosines(study: Study) -> DataFrame:
    """Compute cosines between FA's direction and those of OTHERS, for each lambda.

    All directions use the gradients of FA's run with lambda = 0.

    Args:
        study: The study of this figure.

    Returns:
        One row for each formulation of FA, lambda, other rule, seed and recorded iteration.
    """
    import pandas

    rows = []
    for config in study.configs:
        if config.options.get("lam") == 0:
            rows += watch(config, partial(_compare, config), sampling_interval(config.iterations))[0]
    return pandas.DataFrame(rows)


def _compare(config: TrainConfig, progress: Progress) -> Iterator[dict[str, Any]]:
    """Yield the cosines of one iteration, unless a gradient has NaN or Inf."""
    if not torch.isfinite(progress.G).all():
        return
    others = {key: VARIANTS[key].make_rule(config.rule_f)(progress.G) for key in OTHERS}
    for formulation, lam in product(FORMULATIONS, LAMBDAS):
        d = make_rule("fa", f=config.rule_f, formulation=formulation, lam=lam)(progress.G)
        for other, direction in others.items():
            about = {"formulation": formulation, "lam": lam, "other": other, "seed": config.seed}
            cosine = float(torch.nn.functional.cosine_similarity(d, direction, dim=0))
            yield about | {"iteration": progress.iteration, "cosine": cosine}


def draw(table: DataFrame, cosines: DataFrame | None, title: str) -> Figure:
    """Draw the curves, as in the paper (left), and FA's cosine with Multi-Krum and Bulyan by lambda (right).

    Args:
        table: The curves, one row a point, with the columns variant, lam, seed, iteration and test_accuracy.
        cosines: Cosines of directions, as `cosines` returns them; None to draw the curves only.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure, with one or two panels.
    """
    ratios = (1,) if cosines is None else (1.1, 1)
    figure = style.new_figure(7 if cosines is None else 11, 4.8)
    left, *right = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
    ours = table[table["variant"] == "fa"]
    for lam, color in zip(LAMBDAS, style.sequential_colors(len(LAMBDAS)), strict=True):
        if lam in set(ours["lam"]):
            draw_line(left, ours[ours["lam"] == lam], style.Look(f"FA, λ = {lam}", color, marker=""))
    for key in OTHERS:
        if key in set(table["variant"]):
            draw_line(left, table[table["variant"] == key], replace(style.LOOKS[key], dashes=(5, 2)))
    finish(left)
    label_ends(left)
    if cosines is not None:
        _draw_cosines(right[0], cosines)
    style.set_heading(figure, f"f = 1 Byzantine worker sends {attack_heading(table)}; pairwise regularizer\n{title}")
    return figure


def _draw_cosines(axes: Axes, cosines: DataFrame) -> None:
    for key in OTHERS:
        look = style.LOOKS[key]
        for (formulation, label), dashes in zip(FORMULATIONS.items(), ("-", "--"), strict=True):
            rows = cosines[(cosines["other"] == key) & (cosines["formulation"] == formulation)]
            points = rows.groupby("lam")["cosine"].agg(["mean", "min", "max"])
            line: dict[str, Any] = {"color": look.color, "marker": look.marker, "linestyle": dashes}
            axes.plot(points.index, points["mean"], label=f"{look.label}, {label}", **line)
            if formulation == "released":
                axes.fill_between(points.index, points["min"], points["max"], color=look.color, alpha=0.12, lw=0)
    axes.set_xscale("symlog", linthresh=1, base=2)
    axes.set_xticks(LAMBDAS, [str(lam) for lam in LAMBDAS])
    axes.set(xlabel=r"$\lambda$", ylabel="cosine of the directions (mean and range)", ylim=(None, 1.02))
    axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    axes.set_title("FA's direction and that of the other rule")


def claims(table: DataFrame, cosines: DataFrame | None, chance: float, margin: float = MARGIN) -> list[Claim]:
    """Judge both parts of C9.

    If some lambda are missing, the first part can hold but not fail.

    Args:
        table: The curves, one row a point.
        cosines: Cosines of directions, as `cosines` returns them; None to judge the first part only.
        chance: Accuracy of guessing.
        margin: Accuracies that differ by less are equal.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    return [_range_claim(table, chance, margin), *([] if cosines is None else [_interpolation_claim(cosines)])]


def _range_claim(table: DataFrame, chance: float, margin: float) -> Claim:
    final = final_accuracies(table[table["variant"] == "fa"], "lam")
    others = final_accuracies(table[table["variant"] != "fa"], "variant", "f")
    gains = {lam: mean(final[lam]) - mean(final[0]) for lam in LAMBDAS if {0, lam} <= final.keys()}
    harmless = {lam for lam, gain in gains.items() if gain >= -margin}
    found = verdict([any(harmless.issuperset(both) for both in pairwise(LAMBDAS[1:]))], learned(final, chance))
    better = ", ".join(str(lam) for lam, gain in gains.items() if gain > margin) or "none"
    ours = ", ".join(f"{lam}: {format_mean_range(final[lam])}" for lam in LAMBDAS if lam in final) or "not finished"
    known = [key for key in OTHERS if (key, 1) in others]
    theirs = ", ".join(f"{VARIANTS[key].label} {format_mean_range(others[key, 1])}" for key in known) or "no other rule"
    return Claim(
        "C9",
        "FA improves or performs similarly for a range of lambda",
        f"final accuracy by lambda {ours}; {theirs}; better than at 0 by more than {margin:g}: {better};"
        " threshold: two neighbouring lambda that lose no more",
        MISSING if found != HOLDS and len(gains) < len(LAMBDAS) else found,
    )


def _interpolation_claim(cosines: DataFrame) -> Claim:
    released = cosines[cosines["formulation"] == "released"].groupby(["other", "lam"])["cosine"].mean()
    nears = {key: float(max(released[key][lam] for lam in LAMBDAS[1:]) - released[key][0]) for key in OTHERS}
    courses = [
        f"{VARIANTS[key].label}: {released[key][0]:.3f} at lambda = 0, {released[key][LAMBDAS[-1]]:.3f} at lambda ="
        f" {LAMBDAS[-1]}, largest gain {nears[key]:+.3f}"
        for key in OTHERS
    ]
    return Claim(
        "C9",
        "varying lambda can interpolate Bulyan and Multi-Krum",
        "mean cosine of FA's direction with " + "; ".join(courses) + f"; threshold: a gain of {MIN_COSINE_GAIN:g}",
        verdict([near > MIN_COSINE_GAIN for near in nears.values()], cosines["iteration"].nunique() >= MIN_MINIBATCHES),
    )
