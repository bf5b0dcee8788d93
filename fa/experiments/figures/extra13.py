"""Extra 13: Krum's choice or NNM, then FA or the mean, with steps of equal length and tuned learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fa.experiments.figures.equal_length import (
    ATTACKS,
    LENGTH,
    SEEDS_BY_PROFILE,
    compare,
    draw_differences,
    interval_caption,
    judge,
    subset_caption,
)
from fa.experiments.figures.extras_common import Arms, arm_cases, draw_dots, make_extra
from fa.experiments.figures.tuned_rates import TUNING_SEED, VALIDATION_SHARE, at_rates, best_rates, run_both
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import Claim
from fa.experiments.reporting.equivalence import LEVEL
from fa.experiments.runs.profiles import for_profile
from fa.experiments.runs.results import Results, final_accuracies
from fa.experiments.runs.study import OutDir, Seeds, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "extra13_tuned_combinations"
NO_RULES = "it compares combinations with FA"
NO_ATTACK = "its test is specified for four attacks"

CHOICE_FA, MIXING_FA = "Krum's choice, then FA", "NNM, then FA"
CHOICE_MEAN, MIXING_MEAN = "Krum's choice, then mean of unit gradients", "NNM, then mean of unit gradients"
KRUM = "Multi-Krum"
_CHOICE, _MIXING = ("krum", "unit"), ("unit", "nnm", "unit")
_ONE_DIMENSION = {"m": 1, "a": 1.0}

ARMS: Arms = {
    CHOICE_FA: ("fa_default", {"preaggregators": _CHOICE, **_ONE_DIMENSION}),
    CHOICE_MEAN: ("mean", {"preaggregators": _CHOICE}),
    MIXING_FA: ("fa_default", {"preaggregators": _MIXING, **_ONE_DIMENSION}),
    MIXING_MEAN: ("mean", {"preaggregators": _MIXING}),
    KRUM: ("multi_krum", {}),
}

PAIRS = {
    "Krum's choice, then FA less mean": (CHOICE_FA, CHOICE_MEAN),
    "NNM, then FA less mean": (MIXING_FA, MIXING_MEAN),
    "Krum's choice, then FA; less Multi-Krum": (CHOICE_FA, KRUM),
    "NNM, then FA; less Multi-Krum": (MIXING_FA, KRUM),
}
"""The comparisons of the test."""

TEST_LEVEL = LEVEL / (len(PAIRS) * len(ATTACKS))
"""Level of the test that an arm helps, with Bonferroni's correction."""

RATES = (0.0125, 0.025, 0.05, 0.1, 0.2)
RATES_BY_PROFILE = {"smoke": (0.025, 0.05), "quick": RATES, "cpu": (*RATES, 0.4), "paper": RATES}


LOOKS = {
    CHOICE_FA: style.LOOKS["fa_default"],
    CHOICE_MEAN: style.LOOKS["mean_unit"],
    MIXING_FA: replace(style.LOOKS["fa_default"], marker="s"),
    MIXING_MEAN: replace(style.LOOKS["mean_unit"], marker="s"),
    KRUM: style.LOOKS["multi_krum"],
}
"""Looks of the arms by their labels."""


def study(profile: str, out: OutDir = None, seeds: Seeds = None, **overrides: Any) -> Study:
    """Create the study of Extra 13: runs from which each arm's learning rate is chosen, in steps of equal length.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of these runs. None: `tuned_rates.TUNING_SEED`.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study of runs with validation images, for each of `ATTACKS`, `ARMS` and `RATES`. Its records are in the
        folder "records-many". `run` adds the runs at the best rates.

    Raises:
        ValueError: Unknown profile or setting, an invalid value, or empty `seeds`.
    """
    rates = for_profile(RATES_BY_PROFILE, profile)
    grid = [
        case
        for attack, f in ATTACKS
        for rate in rates
        for case in arm_cases(ARMS, f, {"attack": attack, "lr": rate, "validation": VALIDATION_SHARE}, (TUNING_SEED,))
    ]
    return replace(make_extra(NAME, profile, grid, out, seeds, LENGTH, **overrides), records="records-many")


def tested(study: Study, table: DataFrame, seeds: Sequence[int] | None = None) -> Study:
    """Return `study` with the runs of each arm at its best rate, the same under all attacks.

    Args:
        study: The runs on validation images.
        table: Their curves, one row a point.
        seeds: Seeds of the new runs; default: those of `equal_length.SEEDS_BY_PROFILE`.

    Returns:
        The study, with cells of both kinds.
    """
    seeds = for_profile(SEEDS_BY_PROFILE, study.profile) if seeds is None else seeds
    return at_rates(study, best_rates(table, "label"), "label", seeds)


def run(study: Study, jobs: int | None = None, seeds: Sequence[int] | None = None) -> Results:
    """Do the runs on validation images and then those at the best rates; see `tested`.

    Args:
        study: The runs on validation images.
        jobs: Number of runs at a time; default: one a core.
        seeds: Seeds of the runs at the best rates; default: as for `tested`.

    Returns:
        The results of all runs.
    """
    return run_both(study, partial(tested, seeds=seeds), jobs)


def draw(table: DataFrame, title: str) -> Figure:
    """Draw paired differences with intervals for each attack (above), and the accuracy of each arm (below).

    Args:
        table: The curves, one row a point, with the columns label, attack, f, lr, validation, seed, iteration and
            test_accuracy. Rows with validation = 0 are runs at the best rates.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure, with a column of two panels for each of `ATTACKS`.
    """
    rates, test = best_rates(table, "label"), table[table["validation"] == 0]
    figure = style.new_figure(14, 6.8)
    grid = figure.subplots(2, len(ATTACKS), sharey="row")
    by_comparison = {name: LOOKS[arm] for name, (arm, _) in PAIRS.items()}
    draw_differences(grid[0], compare(test, PAIRS, TEST_LEVEL), by_comparison, one_scale=False)
    looks = {f"{arm}, {rate:g}": LOOKS[arm] for arm, rate in rates.items()}
    for axes, (attack, f) in zip(grid[1], ATTACKS, strict=True):
        final = final_accuracies(test[(test["attack"] == attack) & (test["f"] == f)], "label", paired=False)
        draw_dots(axes, {f"{arm}, {rates[arm]:g}": values for arm, values in final.items()}, looks)
        axes.set_xlabel("test accuracy; bar: mean")
    style.set_heading(
        figure,
        f"Steps of equal length, each arm at its best learning rate: differences, paired by seed{subset_caption(test)};"
        f" below: accuracies and rates\n{interval_caption(TEST_LEVEL)}\n{title}",
    )
    return figure


def claims(table: DataFrame, chance: float) -> list[Claim]:
    """Judge E13: whether FA helps after Krum's choice and after NNM, and whether the two are better than Multi-Krum.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.

    Returns:
        The claims with their measurements and verdicts, one for each of `PAIRS`.
    """
    test = table[table["validation"] == 0]
    words = {
        name: f"at equal length and tuned rates, {arm} is better than {control}"
        for name, (arm, control) in PAIRS.items()
    }
    return judge("E13", words, test, compare(test, PAIRS, TEST_LEVEL), chance)
