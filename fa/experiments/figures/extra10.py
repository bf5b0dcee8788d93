"""Extra 10: accuracy against the level of noise in the data of f workers: Gaussian noise and each ODE augmentation."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fa.augment.recipes import read
from fa.experiments.figures.extras_common import SHORT, make_extra
from fa.experiments.paths import recipe_path
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import Claim, Lead, comparison_verdict, learned, mean
from fa.experiments.runs.profiles import MARGIN
from fa.experiments.runs.results import final_accuracies, last_points
from fa.experiments.runs.study import Case, OutDir, Seeds, Study
from fa.experiments.runs.variants import VARIANTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "extra10_noise_levels"
NO_RULES = "it varies the noise for four rules"
NO_ATTACK = "its workers train on augmented data and send their gradients"
F = 3
RULES = ("fa", "multi_krum", "median", "mean")
LEVELS = MappingProxyType(
    {
        "noise": ("standard deviation of Gaussian noise", "noise", (0.1, 0.3, 1.0, 3.0)),
        "lv": ("time of Lotka-Volterra's flow", "t", (0.01, 0.1, 0.5)),
        "cat": ("steps of the cat map", "t", (1, 2, 3)),
        "smooth_cat_flow": ("time of the smooth cat map's flow", "t", (0.1, 0.5, 1.0)),
    }
)
"""Recipes in data_aug: label of the axis, the key that is varied, and its levels. Other noise is omitted."""


def recipe(name: str, level: float) -> tuple[tuple[str, Any], ...]:
    """Read a recipe, and set its level.

    Args:
        name: A key of `LEVELS`, the name of a recipe in data_aug.
        level: Value of the varied key, in the unit of `LEVELS`.

    Returns:
        The recipe's options, sorted by name, as the setting `augmentation` takes them. Noise of 0 is omitted.

    Raises:
        KeyError: The recipe is not in `LEVELS`.

    Example:
        >>> recipe("lv", 0.1)
        (('system', 'lotka_volterra'), ('t', (0.1,)))
    """
    key = LEVELS[name][1]
    options = read(recipe_path(name)).options | {"noise": (0.0,)} | {key: (level,)}
    if options["noise"] == (0.0,):
        del options["noise"]
    return tuple(sorted(options.items()))


def study(profile: str, out: OutDir = None, seeds: Seeds = None, **overrides: Any) -> Study:
    """Create the study of Extra 10: three workers with augmented images, at several levels of noise.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: the profile's.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, for each recipe and level of `LEVELS` and each of `RULES`.

    Raises:
        ValueError: Unknown profile or setting, an invalid value, or empty `seeds`.
    """
    grid = [
        Case(key, F, {"attack": "none", "augmentation": recipe(name, level)})
        for name, (_, _, levels) in LEVELS.items()
        for level in levels
        for key in RULES
    ]
    return make_extra(NAME, profile, grid, out, seeds, SHORT.get(profile), **overrides)


def with_levels(table: DataFrame) -> DataFrame:
    """Return the curves with columns `scheme` and `level` instead of the recipe.

    Args:
        table: The curves, one row a point.

    Returns:
        The same rows.
    """
    places = {recipe(name, level): (name, level) for name, (_, _, levels) in LEVELS.items() for level in levels}
    found = [places[pairs] for pairs in table["augmentation"]]
    table = table.drop(columns=["attack", "augmentation"])
    table.insert(3, "level", [level for _, level in found])
    table.insert(3, "scheme", [name for name, _ in found])
    return table


def draw(table: DataFrame, title: str) -> Figure:
    """Draw a panel per scheme: final accuracy of each rule against the level.

    Args:
        table: The curves of `with_levels`.
        title: Settings, for the figure's title.

    Returns:
        The figure.
    """
    figure = style.new_figure(12, 3.6)
    panels = figure.subplots(1, len(LEVELS), sharey=True)
    last = last_points(table)
    for axes, (scheme, (text, _, levels)) in zip(panels, LEVELS.items(), strict=True):
        for key in RULES:
            look = style.LOOKS[key]
            rows = last[(last["scheme"] == scheme) & (last["variant"] == key)]
            points = rows.groupby("level")["test_accuracy"].mean()
            axes.plot(points.index, points, color=look.color, marker=look.marker, label=look.label)
        axes.set(xlabel=text, ylim=(0, 1))
        if max(levels) > 10 * min(levels):
            axes.set_xscale("log")
    panels[0].set_ylabel("test accuracy (fraction)")
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    style.set_heading(figure, f"f = {F} workers train on augmented data; {style.FA_FORMULATION}\n{title}")
    return figure


def claims(table: DataFrame, chance: float, margin: float = MARGIN) -> list[Claim]:
    """Judge E10: FA against the best other rule at the highest level of each scheme.

    Args:
        table: The curves of `with_levels`.
        chance: Accuracy of guessing.
        margin: Accuracies that differ by less are equal.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    final = final_accuracies(table, "variant", "scheme", "level")
    leads = []
    for scheme, (text, _, levels) in LEVELS.items():
        reached = {key: final[key, scheme, max(levels)] for key in RULES}
        other = max((mean(reached[key]), key) for key in RULES[1:])[1]
        leads.append(Lead(f"{text} {max(levels):g}", reached["fa"], other, reached[other]))
    falls = []
    for scheme, (_, _, levels) in LEVELS.items():
        ends = [mean(final["fa", scheme, level]) for level in (min(levels), max(levels))]
        falls.append(f"{scheme} {ends[0]:.3f} to {ends[1]:.3f}")
    testable = learned(final, chance)
    measured = "; ".join(map(str, leads)) + f"; {VARIANTS['fa'].label} from the lowest to the highest level: "
    words = "at the highest level of noise FA is better than the best other rule"
    return [Claim("E10", words, measured + ", ".join(falls), comparison_verdict(leads, testable, margin=margin))]
