"""Extra 9: the options of FA that the paper names: priors, norms, pairs, hints, nested subspaces and other starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fa.experiments.figures.extras_common import (
    SHORT,
    Arms,
    arm_cases,
    arm_looks,
    draw_dot_panels,
    make_extra,
    several_seeds,
)
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import Claim, Lead, comparison_claim, learned
from fa.experiments.reporting.equivalence import LEVEL
from fa.experiments.runs.profiles import MARGIN
from fa.experiments.runs.results import final_accuracies
from fa.experiments.runs.study import OutDir, Seeds, Study
from fa.experiments.runs.variants import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "extra09_options_of_the_paper"
NO_RULES = "it varies FA's options"
NO_ATTACK = "it shows the paper's attack"
F = 3
ATTACK, HEADING = "random", "random in [0, 1)"
DEFAULT = VARIANTS["fa_default"].label

_STEPS = {"max_iter": 30}
PRIORS: dict[str, dict[str, Any]] = {
    "Beta(1, 1/2), 30 steps": {"prior": (1.0, 0.5), **_STEPS},
    "Beta(2, 1/2)": {"prior": (2.0, 0.5), **_STEPS},
    "Beta(1/2, 1/2)": {"prior": (0.5, 0.5), **_STEPS},
    "Beta(1, 1/4)": {"prior": (1.0, 0.25), **_STEPS},
    "l1, lambda = 0.013": {"regularizer": "l1", "lam": 0.013},
    "rows, lambda = 0.036": {"regularizer": "rows", "lam": 0.036},
    "pairs, lambda = 1": {"lam": 1.0},
    "pairs, lambda = 15": {"lam": 15.0},
    "pairs, lambda = 150": {"lam": 150.0},
}
"""Likelihoods and regularizers. lambda is at the scale of docs/rules.md for the norms, and around p for pairs."""

STARTS: dict[str, dict[str, Any]] = {
    "hints: 100 largest coordinates": {"start": "largest:100"},
    "random start": {"start": "random"},
    "nested dimensions 2, 4, 8": {"dims": (2, 4, 8)},
}
"""Starts and flags."""

ARMS: Arms = {label: ("fa_default", options) for label, options in {DEFAULT: {}, **PRIORS, **STARTS}.items()}


def study(profile: str, out: OutDir = None, seeds: Seeds = None, **overrides: Any) -> Study:
    """Create the study of Extra 9: options of FA that the paper names.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: 2021, 2022 and 2023, and at "smoke" the profile's.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, with f = 3, for each of `ARMS`.

    Raises:
        ValueError: Unknown profile or setting, an invalid value, or empty `seeds`.
    """
    grid = arm_cases(ARMS, F, {"attack": ATTACK}, several_seeds(profile))
    return make_extra(NAME, profile, grid, out, seeds, SHORT.get(profile), **overrides)


def draw(table: DataFrame, title: str) -> Figure:
    """Draw every option, a mark for each seed.

    Args:
        table: The curves, one row a point, with the columns label, attack, seed, iteration and test_accuracy.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure, with one panel.
    """
    figure = draw_dot_panels({HEADING: table}, arm_looks(ARMS), (8, 4.4), bold=(DEFAULT,))
    style.set_heading(figure, f"f = {F} Byzantine workers; options of FA, this package's default\n{title}")
    return figure


def claims(table: DataFrame, chance: float, margin: float = MARGIN) -> list[Claim]:
    """Judge E9: whether a prior or regularizer, and whether hints or a flag, are better than FA's default.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.
        margin: Accuracies that differ by less are equal.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    final = final_accuracies(table, "label")
    testable = learned(final, chance)
    first = "a prior or a regularizer of the paper is better than FA's default"
    second = "hints, another start or nested subspaces are better than FA's default"
    return [
        _claim(first, final, PRIORS, testable, margin),
        _claim(second, final, STARTS, testable, margin),
    ]


def _claim(
    words: str, final: Mapping[str, Sequence[float]], arms: Iterable[str], testable: bool, margin: float
) -> Claim:
    """Compare each arm with the default; one arm is enough."""
    every = [Lead(HEADING, final[name], DEFAULT, final[DEFAULT], name) for name in arms]
    level = LEVEL / len(every)  # Bonferroni correction.
    best = max(every, key=lambda lead: (lead.better(margin, level), lead.difference))
    prefix = f"best of {len(every)}, p < {level:.2g} required: "
    return comparison_claim("E9", words, [best], testable, margin, level, prefix)
