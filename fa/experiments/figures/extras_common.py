"""What the extras share: their sizes, their rules, and how a statement of ours is judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fa.experiments.reporting.claims import LEVEL, OPEN, Lead, mean, verdict
from fa.experiments.reporting.style import Look
from fa.experiments.runs.profiles import MARGIN
from fa.experiments.runs.study import Case, Study, last_points, make_study
from fa.experiments.runs.variants import PAPER_RULES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

RULES = (*PAPER_RULES, "mean", "mean_unit")
"""The paper's seven, no defence, and the control: the mean of unit gradients."""

SAME_LENGTH = "FA, factor 1/p"
UNIT_OPTIONS = {"preaggregators": ("unit",)}
"""FA's subspace on unit gradients with the factor 1/p: `fa_default` with UNIT_OPTIONS, the other half of the control.

The released code's FA sums over m in place of p, so that at one learning rate its steps are p/m = 1.9 times as long as
those of the mean of unit gradients: a difference between those two may be the length's. (Steps of rules that take
gradients as they are have the gradients' length, and are no part of this comparison.)
"""

SEEDS = (2021, 2022, 2023)
"""Where a statement says "better", in a profile that has one seed."""

MIN_GAIN = 0.05  # of accuracy: what counts as a difference where there is one seed

SHORT = {"quick": {"iterations": 24, "evaluate_every": 24}}
"""Settings of the extras with the most runs, by profile: so short that all extras together take ten minutes."""

# Extras have many runs of a small model: at "cpu" that of MNIST, at "paper" the paper's own.
_OWN = MappingProxyType(
    {
        "cpu": {
            "dataset": "mnist",
            "model": "convnet",
            "sampling": "random",
            "batch": 32,
            "iterations": 300,
            "evaluate_every": None,
        }
    }
)


def make_extra(
    name: str,
    profile: str,
    grid: Iterable[Case],
    out: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    own: Mapping[str, Any] | None = None,
    **given: Any,
) -> Study:
    """The study of an extra at a profile's size: see `make_study`. Its figures say themselves how they show seeds."""
    study = make_study(name, profile, grid, out, seeds, {**_OWN.get(profile, {}), **(own or {})}, **given)
    return replace(study, seed_caption="")


def comparison_verdict(
    leads: Sequence[Lead], testable: bool = True, level: float = LEVEL, margin: float = MARGIN
) -> str:
    """Return the verdict on the statement that each of `leads` is one.

    It is OPEN where some exceed the margin but none passes the test at `level`.
    """
    holds = [lead.better(margin, level) for lead in leads]
    if testable and not any(holds) and any(lead.margin > margin for lead in leads):
        return OPEN
    return verdict(holds, testable)


def by_label(table: DataFrame) -> dict[str, list[float]]:
    """Final test accuracies by label, one a seed, in the seeds' order; labels in the table's."""
    groups = last_points(table).sort_values("seed", kind="stable").groupby("label", sort=False)["test_accuracy"]
    found = {str(label): group.tolist() for label, group in groups}
    return {label: found[label] for label in dict.fromkeys(table["label"])}


def best_label(final: Mapping[str, Sequence[float]], among: Iterable[str]) -> str:
    """Which of them has the best mean accuracy."""
    return max((name for name in among if name in final), key=lambda name: mean(final[name]))


def seed_caption(table: DataFrame) -> str:
    """Whose runs a panel shows, for its title: some of an extra's panels have one seed, and others three."""
    seeds = sorted(set(table["seed"]))
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def draw_dots(
    axes: Axes, final: Mapping[str, Sequence[float]], looks: Mapping[str, Look], bold: Sequence[str] = ()
) -> None:
    """A line for each entry: a mark for each seed, a bar at their mean, and the mean in figures; names of `bold` so."""
    names = list(final)[::-1]
    for place, name in enumerate(names):
        look, reached = looks[name], final[name]
        axes.plot(reached, [place] * len(reached), look.marker, color=look.colour, alpha=0.6, markersize=5)
        axes.plot([mean(reached)] * 2, [place - 0.35, place + 0.35], color=look.colour)
        axes.text(1.02, place, f"{mean(reached):.3f}", va="center", fontsize=8, transform=axes.get_yaxis_transform())
    axes.set_yticks(range(len(names)), names)
    for text in axes.get_yticklabels():
        text.set_fontweight("bold" if text.get_text() in bold else "normal")
    axes.set(xlabel="test accuracy (fraction); bar: mean over seeds", xlim=(0, 1), ylim=(-0.6, len(names) - 0.4))
