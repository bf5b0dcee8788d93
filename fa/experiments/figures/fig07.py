"""Figure 7: the rules with f = 3 workers that train honestly, but on augmented data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fa.augment.recipes import read
from fa.experiments.paths import recipe_path
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import (
    LEARNED,
    Claim,
    comparison_verdict,
    format_mean_range,
    lead,
    learned,
    mean,
    verdict,
)
from fa.experiments.reporting.curves import draw_curves, draw_kinds
from fa.experiments.runs.profiles import MARGIN
from fa.experiments.runs.results import Results, final_accuracies
from fa.experiments.runs.study import Case, OutDir, RuleNames, Seeds, Study, make_study
from fa.experiments.runs.user_rules import builtin_rows, register_rules, user_rules_in
from fa.experiments.runs.variants import OTHER_RULES, PAPER_RULES_AND_MEAN, VARIANTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "fig07_augmented_data"
NO_ATTACK = "its workers train on augmented data and send their gradients"
SCHEMES = {
    "lv": "Lotka-Volterra, all images",
    "half": "Lotka-Volterra, half",
    "onethird": "Lotka-Volterra, a third",
    "cat": "cat map",
    "smooth_cat": "smooth cat map",
}
"""Augmentation schemes: recipes in data_aug, and titles."""

CONTROL = "fa_default"
"""FA with steps as long as gradients, like those of other rules. All steps of the released code have one length."""

F = 3
# Fewer iterations than in the profile: the paper has 800 (Figure 4: 1050), and quick has no time for that proportion.
_SETTINGS: dict[str, dict[str, Any]] = {
    "quick": {"iterations": 30},
    "cpu": {"iterations": 75},
    "paper": {"iterations": 800},
}
MIN_DIFFERENCE = 0.02  # Least difference between mean explained variances that counts.
MIN_POINTS = 4  # Least number of points of a curve for a verdict on its falls.


def study(profile: str, out: OutDir = None, seeds: Seeds = None, rules: RuleNames = None, **overrides: Any) -> Study:
    """Create the study of Figure 7: three of the workers train on augmented images.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: the profile's.
        rules: Names of the user's rules that are added, such as "FILE.py:NAME". None: no rules.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, with the setting `augmentation` of each scheme, for each rule and the control.

    Raises:
        ValueError: Unknown profile, rule or setting, an invalid value, or empty `seeds`.
    """
    keys = (*PAPER_RULES_AND_MEAN, CONTROL, *register_rules(rules))
    cases = [{"attack": "none", "augmentation": pairs} for pairs in _augmentations()]
    grid = [Case(key, F, settings) for settings in cases for key in keys]
    return make_study(NAME, profile, grid, out, seeds, _SETTINGS.get(profile), **overrides)


def _augmentations() -> dict[tuple[tuple[str, Any], ...], str]:
    """Return names of schemes by their recipes, in the form of a configuration."""
    return {tuple(sorted(read(recipe_path(name)).options.items())): name for name in SCHEMES}


def tables(results: Results) -> tuple[DataFrame, DataFrame]:
    """Return the curves with a column `scheme`, and FA's explained variances by scheme, seed, iteration and worker.

    Args:
        results: Results of this figure's study.

    Returns:
        Both tables.
    """
    import pandas

    names = _augmentations()
    curves = results.table()
    curves.insert(3, "scheme", curves.pop("augmentation").map(names))
    values = []
    for cell in results.study.cells:
        if cell.variant == "fa":
            rows = results.record(cell).workers()[["iteration", "worker", "value"]]
            about = {"scheme": names[cell.case.settings["augmentation"]], "seed": cell.config.seed}
            values.append(rows.assign(**about, augmented=rows["worker"] < F))
    return curves.drop(columns="attack"), pandas.concat(values, ignore_index=True)


def draw(table: DataFrame, values: DataFrame, title: str) -> Figure:
    """Draw a panel of curves for each scheme, the paper's three first (above), and explained variances (below).

    Args:
        table: The curves, with a column `scheme`.
        values: FA's explained variances; see `tables`.
        title: Settings, for the figure's title.

    Returns:
        The figure.
    """
    figure = style.new_figure(9.5, 11)
    halves: Any = figure.subfigures(2, 1)
    keys = (*PAPER_RULES_AND_MEAN, CONTROL, *user_rules_in(table))
    for half, heading in zip(halves, ("rule", "FA's values, workers' data"), strict=True):
        *panels, empty = half.subplots(2, 3, sharex=True, sharey=True).flat
        for axes, (scheme, name) in zip(panels, SCHEMES.items(), strict=True):
            if half is halves[0]:
                draw_curves(axes, table[table["scheme"] == scheme], keys)
            else:
                _draw_values(axes, values[values["scheme"] == scheme])
            axes.set_title(name)
            axes.label_outer()
        empty.set_axis_off()
        empty.legend(*panels[0].get_legend_handles_labels(), title=heading, loc="center")
        panels[2].xaxis.set_tick_params(labelbottom=True)  # The panel below it is the legend's.
        panels[2].set_xlabel("iteration")
    style.set_heading(figure, f"f = {F} workers train on augmented data; {style.FA_FORMULATION}\n{title}")
    return figure


def _draw_values(axes: Axes, values: DataFrame) -> None:
    """Draw v_i of both kinds of workers, with iterations grouped to about 40 points."""
    step = max(1, int(values["iteration"].max()) // 40)
    values = values.assign(iteration=-(-values["iteration"] // step) * step)
    draw_kinds(axes, values, values["augmented"], "value", ("clean", "augmented"))
    axes.set(xlabel="iteration", ylabel="explained variance $v_i$", xlim=(0, None), ylim=(0, 1.02))


def claims(table: DataFrame, values: DataFrame, chance: float, margin: float = MARGIN) -> list[Claim]:
    """Judge C8 by final accuracies, by falls of the curves, and by the explained variances of both kinds of workers.

    Args:
        table: The curves, with a column `scheme`.
        values: FA's explained variances; see `tables`.
        chance: Accuracy of guessing.
        margin: Accuracies that differ by less are equal.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    table = builtin_rows(table)
    final = final_accuracies(table, "variant", "scheme")
    testable = learned(final, chance)
    leads = {scheme: lead(final, scheme) for scheme in SCHEMES}
    control = VARIANTS[CONTROL].label
    parts = [f"{lead}, {control} {format_mean_range(final[CONTROL, scheme])}" for scheme, lead in leads.items()]
    falls = {scheme: _falls(table[table["scheme"] == scheme]) for scheme in SCHEMES}
    learning = {s: [key for key in OTHER_RULES if mean(final[key, s]) > LEARNED * chance] for s in SCHEMES}
    others = {s: min((falls[s][key] for key in keys), default=0.0) for s, keys in learning.items()}
    # In the other schemes no fall could be smaller, or FA's curve has nothing to fall from.
    unsteady = [s for s in SCHEMES if others[s] > margin and mean(final["fa", s]) > LEARNED * chance]
    worth = values.groupby(["scheme", "augmented"])["value"].mean()
    gaps = {scheme: float(worth[scheme, False] - worth[scheme, True]) for scheme in SCHEMES}
    return [
        Claim(
            "C8",
            "FA can handle nonlinear data augmentation in a much more stable fashion",
            "final accuracy " + "; ".join(parts),
            comparison_verdict(list(leads.values()), testable, margin=margin),
        ),
        Claim(
            "C8",
            "more stable: FA's accuracy falls less during training than every other rule's",
            "largest fall between two points of a curve: "
            + "; ".join(
                f"{scheme}: FA {falls[scheme]['fa']:.3f}, least of the other rules {others[scheme]:.3f}"
                for scheme in SCHEMES
            ),
            verdict(
                [falls[scheme]["fa"] < others[scheme] - margin for scheme in unsteady],
                testable and bool(unsteady) and table["iteration"].nunique() >= MIN_POINTS,
            ),
        ),
        Claim(
            "C8",
            "explained variances are the quality of workers: lower with augmented data",
            "mean v_i of clean workers minus that of augmented workers: "
            + ", ".join(f"{scheme} {gap:+.3f}" for scheme, gap in gaps.items())
            + f"; threshold: {MIN_DIFFERENCE:g}",
            verdict([gap > MIN_DIFFERENCE for gap in gaps.values()], testable),
        ),
    ]


def _falls(table: DataFrame) -> dict[str, float]:
    """Return each rule's largest fall of accuracy between consecutive points, over all seeds; 0 without a fall."""
    curves = table.sort_values("iteration").groupby(["variant", "seed"])["test_accuracy"]
    falls = curves.apply(lambda curve: max(0.0, float((-curve.diff()).max()))).groupby("variant").max()
    return {str(rule): float(fall) for rule, fall in falls.items()}
