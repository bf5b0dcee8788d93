"""Extra 2: each rule at the best learning rate of a grid, chosen on validation images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fa.experiments.figures.extras_common import (
    RULES,
    SEEDS,
    SHORT,
    draw_dots,
    make_extra,
    seed_caption,
)
from fa.experiments.figures.tuned_rates import TUNING_SEED, VALIDATION_SHARE, at_rates, best_rates, run_both
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import Claim, Lead, comparison_verdict, lead, learned, mean, verdict
from fa.experiments.reporting.style import looks
from fa.experiments.runs.profiles import MARGIN, for_profile
from fa.experiments.runs.results import Results, final_accuracies
from fa.experiments.runs.study import Case, OutDir, RuleNames, Seeds, Study
from fa.experiments.runs.user_rules import attack_heading, builtin_rows, label, register_rules

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "extra02_tuned_learning_rates"
F = 3
RATES = (0.05, 0.1, 0.2, 0.4, 0.8)
LONG_RATES = (0.00625, 0.0125, 0.025, *RATES)  # Longer runs need lower rates.
RATES_BY_PROFILE = {
    "smoke": (0.05, 0.1),  # too small for five
    "quick": RATES,
    "cpu": LONG_RATES,
    "paper": LONG_RATES,
}
SEEDS_BY_PROFILE = {"smoke": (2021,)}  # Seeds at the best rates, in profiles too small for three.


def study(profile: str, out: OutDir = None, seeds: Seeds = None, rules: RuleNames = None, **overrides: Any) -> Study:
    """Create the study of Extra 2: runs from which each rule's learning rate is chosen.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of these runs. None: `tuned_rates.TUNING_SEED`.
        rules: Names of the user's rules that are added, such as "FILE.py:NAME". None: no rules.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study of runs with validation images, at f = 3, for each rule and rate. `tested` creates the study of the
        best rates.

    Raises:
        ValueError: Unknown profile, rule or setting, an invalid value, or empty `seeds`.
    """
    grid = [
        Case(key, F, {"lr": rate, "validation": VALIDATION_SHARE}, seeds=(TUNING_SEED,))
        for key in (*RULES, *register_rules(rules))
        for rate in for_profile(RATES_BY_PROFILE, profile)
    ]
    return make_extra(NAME, profile, grid, out, seeds, SHORT.get(profile), **overrides)


def chosen(validation: DataFrame) -> dict[str, float]:
    """Return each rule's rate with the best mean validation accuracy over seeds; the lowest of equals.

    Args:
        validation: Curves of the runs on validation images.

    Returns:
        Learning rates by variant.
    """
    return best_rates(validation, "variant")


def tested(study: Study, table: DataFrame, seeds: Sequence[int] | None = None) -> Study:
    """Return `study` with the runs of each rule at its best rate, on all training images and with the test images.

    Args:
        study: The runs on validation images.
        table: Their curves, one row a point.
        seeds: Seeds of the new runs; default: three.

    Returns:
        The study, with cells of both kinds.
    """
    seeds = SEEDS_BY_PROFILE.get(study.profile, SEEDS) if seeds is None else seeds
    return at_rates(study, chosen(table), "variant", seeds)


def run(study: Study, jobs: int | None = None, seeds: Sequence[int] | None = None) -> Results:
    """Do the runs on validation images and then those at the best rates; see `tested`.

    Args:
        study: The runs on validation images.
        jobs: Number of runs at a time; default: one a core.
        seeds: Seeds of the runs at the best rates; default: three.

    Returns:
        The results of all runs.
    """
    return run_both(study, partial(tested, seeds=seeds), jobs)


def draw(table: DataFrame, title: str) -> Figure:
    """Draw validation accuracy by learning rate (left), and test accuracy at the best rate (right).

    Args:
        table: The curves, one row a point, with the columns variant, label, f, lr, validation, seed, iteration and
            test_accuracy. Rows with validation = 0 are runs at the best rates, whose accuracy is that on test images.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure, with two panels.
    """
    figure = style.new_figure(13, 4.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    rates = chosen(table)
    choice, test = table[table["validation"] > 0], table[table["validation"] == 0]
    _draw_choice(left, final_accuracies(choice, "variant", "lr"), rates)
    left.set_title(f"selection (ring: best rate); {seed_caption(choice)}")
    _draw_tested(right, final_accuracies(test, "variant", "f"), rates)
    right.set_title(f"each rule at its best rate; {seed_caption(test)}")
    style.set_heading(
        figure,
        f"f = {F} Byzantine workers send {attack_heading(table)}; each rule at its best learning rate; "
        f"{style.FA_FORMULATION}\n{title}",
    )
    return figure


def _draw_choice(axes: Axes, final: Mapping[tuple[str, Any], Sequence[float]], rates: Mapping[str, float]) -> None:
    grid = sorted({rate for _, rate in final})
    for key, best in rates.items():
        look = looks(rates)[key]
        line: dict[str, Any] = {"color": look.color, "marker": look.marker, "linestyle": look.linestyle}
        axes.plot(grid, [mean(final[key, rate]) for rate in grid], markersize=5, label=look.label, **line)
        axes.plot(best, mean(final[key, best]), "o", markersize=11, markerfacecolor="none", markeredgecolor=look.color)
    axes.set_xscale("log", base=2)
    axes.set_xticks(grid, [f"{rate:g}" for rate in grid])
    axes.set(
        xlabel="learning rate",
        ylabel=f"validation accuracy ({VALIDATION_SHARE:.0%} of the training images)",
        ylim=(0, 1),
    )
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))


def _draw_tested(axes: Axes, final: Mapping[tuple[str, Any], Sequence[float]], rates: Mapping[str, float]) -> None:
    names = {f"{label(key)}, {rate:g}": key for key, rate in rates.items()}
    reached = {name: final[key, F] for name, key in names.items()}
    draw_dots(axes, reached, {name: looks(rates)[key] for name, key in names.items()})


def claims(table: DataFrame, chance: float, margin: float = MARGIN) -> list[Claim]:
    """Judge E2: FA against the best other rule and its control at tuned rates, and whether one rate suits all.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.
        margin: Accuracies that differ by less are equal.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    table = builtin_rows(table)
    rates = chosen(table)
    final = final_accuracies(table[table["validation"] == 0], "variant", "f")
    testable = learned(final, chance)
    best = lead(final, F, "f")
    control = Lead(f"f = {F}", final["fa", F], "mean_unit", final["mean_unit", F])
    text = ", ".join(f"{label(key)} {rate:g}" for key, rate in rates.items() if key != "mean")
    alike = len({rates[key] for key in RULES if key != "mean"}) == 1
    return [
        Claim(
            "E2",
            "with a tuned learning rate for each rule, FA is better than every other rule",
            f"test accuracy {best}; lead {best.difference_text}",
            comparison_verdict([best], testable, margin=margin),
        ),
        Claim(
            "E2",
            "with a tuned learning rate for each rule, FA is better than the mean of unit gradients",
            f"test accuracy {control.describe()}; lead {control.difference_text}",
            comparison_verdict([control], testable, margin=margin),
        ),
        Claim("E2", "one learning rate suits all rules", f"tuned rates: {text}", verdict([alike], testable)),
    ]
