"""Settings, rules and drawings that the extras share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fa.experiments.reporting.claims import Lead, mean
from fa.experiments.reporting.style import LOOKS, Look, literal, new_figure
from fa.experiments.runs.descriptions import seeds_text
from fa.experiments.runs.results import final_accuracies
from fa.experiments.runs.study import Case, OutDir, Seeds, Study, make_study
from fa.experiments.runs.variants import PAPER_RULES_AND_MEAN, VARIANTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

RULES = (*PAPER_RULES_AND_MEAN, "mean_unit")
"""The paper's seven rules, the mean, and the control: the mean of unit gradients."""

Arms = Mapping[str, tuple[str, dict[str, Any]]]
"""Arms of an extra: the variant and its options by label."""

RULE_ARMS: Arms = {VARIANTS[key].label: (key, {}) for key in RULES}
"""The arms without options."""

# FA's subspace on unit gradients with the factor 1/p: the variant "fa_default" with these options. The released FA
# sums over m instead of p. Its steps are p/m = 1.9 times as long as those of the mean of unit gradients, and a
# difference between these two may be due to the length of a step.
SAME_LENGTH = "FA, factor 1/p"
UNIT_OPTIONS = {"preaggregators": ("unit",)}

SEEDS = (2021, 2022, 2023)
"""Seeds of statements that a rule is better, in profiles with one seed."""

MIN_GAIN = 0.05  # Least difference between accuracies that counts with one seed.

SHORT = {"quick": {"iterations": 24, "evaluate_every": 24}}
"""Settings, by profile, of the extras with the most runs."""

# Extras have many runs of a small model: at "cpu" that of MNIST, at "paper" the paper's. Most compare final accuracies.
_SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "quick": {"evaluate_every": 0},
        "cpu": {
            "dataset": "mnist",
            "model": "convnet",
            "sampling": "random",
            "batch": 32,
            "iterations": 300,
        },
    }
)


def make_extra(
    name: str,
    profile: str,
    grid: Iterable[Case],
    out: OutDir = None,
    seeds: Seeds = None,
    figure_settings: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Study:
    """Create the study of an extra; see `make_study`. Its panels have their own captions of seeds.

    Args:
        name: Name of the extra.
        profile: Name of the profile.
        grid: Cases of the extra.
        out: Folder of the extra; default: the profile's.
        seeds: Seeds to use instead of the cases' and the profile's.
        figure_settings: Settings of this extra, instead of those that all extras share.
        **overrides: Settings that replace all others, unless they are None.

    Returns:
        The study.

    Raises:
        ValueError: As for `make_study`.
    """
    settings = {**_SETTINGS.get(profile, {}), **(figure_settings or {})}
    return replace(make_study(name, profile, grid, out, seeds, settings, **overrides), seed_caption="")


def several_seeds(profile: str) -> tuple[int, ...]:
    """Return `SEEDS` for the cases of a study; none at "smoke", where the profile's seed is enough.

    Args:
        profile: Name of the profile.
    """
    return () if profile == "smoke" else SEEDS


def arm_cases(arms: Arms, f: int, settings: Mapping[str, Any], seeds: Sequence[int]) -> list[Case]:
    """Return the case of each arm.

    Args:
        arms: Variant and options by label.
        f: Number of Byzantine workers.
        settings: Settings of all these cases.
        seeds: Seeds of all these cases; empty for the profile's.

    Returns:
        The cases, in the order of the arms.
    """
    return [Case(variant, f, settings, options, seeds, label) for label, (variant, options) in arms.items()]


def arm_looks(arms: Arms) -> dict[str, Look]:
    """Return the look of each arm's variant, by label.

    Args:
        arms: Variant and options by label.
    """
    return {label: LOOKS[variant] for label, (variant, _) in arms.items()}


def best_label(final: Mapping[str, Sequence[float]], labels: Iterable[str]) -> str:
    """Return the label with the best mean accuracy.

    Args:
        final: Final accuracies by label, one per seed.
        labels: Labels to choose from; those without accuracies are ignored.

    Returns:
        The label.
    """
    return max((name for name in labels if name in final), key=lambda name: mean(final[name]))


def compare_best(
    panels: Mapping[str, Mapping[str, Sequence[float]]], ours: Iterable[str], others: Iterable[str]
) -> list[Lead]:
    """Compare the best of some arms with the best of others in each panel.

    Args:
        panels: Final accuracies by label, one per seed, by heading of the panel.
        ours: Labels of the arms that a claim is about.
        others: Labels of the arms that they are compared with.

    Returns:
        One comparison for each panel.
    """
    ours, others, leads = list(ours), list(others), []
    for heading, final in panels.items():
        best, other = best_label(final, ours), best_label(final, others)
        leads.append(Lead(heading, final[best], other, final[other], best))
    return leads


def seed_caption(table: DataFrame) -> str:
    """Describe the seeds of a panel for its title, since the panels of an extra may have different ones.

    Args:
        table: The rows of the panel, with a column `seed`.

    Returns:
        A phrase such as "seeds 2021, 2022".
    """
    return seeds_text(sorted(set(table["seed"])))


def draw_dots(
    axes: Axes, final: Mapping[str, Sequence[float]], looks: Mapping[str, Look], bold: Sequence[str] = ()
) -> None:
    """Draw one line per label: a mark for each seed, a bar at their mean, and its number.

    Args:
        axes: Axes to draw on.
        final: Final accuracies by label, one per seed.
        looks: Color and marker by label.
        bold: Labels in bold type.
    """
    names = list(final)[::-1]
    for y, name in enumerate(names):
        look, values = looks[name], final[name]
        axes.plot(values, [y] * len(values), look.marker, color=look.color, alpha=0.6, markersize=5)
        axes.plot([mean(values)] * 2, [y - 0.35, y + 0.35], color=look.color)
        axes.text(1.02, y, f"{mean(values):.3f}", va="center", fontsize=8, transform=axes.get_yaxis_transform())
    axes.set_yticks(range(len(names)), [literal(name) for name in names])
    for text in axes.get_yticklabels():
        text.set_fontweight("bold" if text.get_text() in bold else "normal")
    axes.set(xlabel="test accuracy (fraction); bar: mean over seeds", xlim=(0, 1), ylim=(-0.6, len(names) - 0.4))


def by_attack(table: DataFrame, attacks: Mapping[str, str]) -> dict[str, DataFrame]:
    """Return the rows of each attack, by its heading.

    Args:
        table: The curves, one row a point.
        attacks: Heading by attack.
    """
    return {heading: table[table["attack"] == attack] for attack, heading in attacks.items()}


def draw_dot_panels(
    tables: Mapping[str, DataFrame], looks: Mapping[str, Look], size: tuple[float, float], bold: Sequence[str] = ()
) -> Figure:
    """Draw a panel of `draw_dots` for each table.

    Args:
        tables: Curves, one row a point, by heading of the panel.
        looks: As for `draw_dots`.
        size: Width and height of the figure, in inches.
        bold: As for `draw_dots`.

    Returns:
        The figure, without a title.
    """
    figure = new_figure(*size)
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, (heading, table) in zip(panels, tables.items(), strict=True):
        draw_dots(axes, final_accuracies(table, "label", paired=False), looks, bold)
        axes.set_title(heading)
    return figure
