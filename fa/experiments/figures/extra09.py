"""Extra 9: the options of FA that the paper names: priors, norms, pairs, hints, nested subspaces and other starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fa.experiments.figures.extras_common import SHORT, by_attack, by_label, draw_dot_panels, make_extra, several_seeds
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import Claim, Lead, comparison_verdict, describe_leads, learned
from fa.experiments.reporting.equivalence import LEVEL
from fa.experiments.runs.profiles import MARGIN
from fa.experiments.runs.study import Case, OutDir, Seeds, Study
from fa.experiments.runs.variants import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "extra09_options_of_the_paper"
F = 3
ATTACKS = {"random": "random in [0, 1)"}
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

ARMS = {DEFAULT: {}, **PRIORS, **STARTS}


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
    case_seeds = several_seeds(profile)
    grid = [
        Case("fa_default", F, {"attack": attack}, options, case_seeds, name)
        for attack in ATTACKS
        for name, options in ARMS.items()
    ]
    return make_extra(NAME, profile, grid, out, seeds, SHORT.get(profile), **overrides)


def draw(table: DataFrame, title: str) -> Figure:
    """Draw a panel per attack: every option, a mark for each seed.

    Args:
        table: The curves, one row a point, with the columns label, attack, seed, iteration and test_accuracy.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure, with a panel for each of `ATTACKS`.
    """
    looks = dict.fromkeys(ARMS, style.LOOKS["fa_default"])
    figure = draw_dot_panels(by_attack(table, ATTACKS), looks, (8, 4.4), bold=(DEFAULT,))
    style.set_heading(figure, f"f = {F} Byzantine workers; options of FA, this package's default\n{title}")
    return figure


def claims(table: DataFrame, chance: float, margin: float = MARGIN) -> list[Claim]:
    """Judge E9: whether a prior or regularizer, and whether hints or a flag, are better than FA's default.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.
        margin: Accuracies that differ by less are equal.
    """
    final = {attack: by_label(table[table["attack"] == attack]) for attack in ATTACKS}
    testable = any(learned(reached, chance) for reached in final.values())
    words = "a prior or a regularizer of the paper is better than FA's default"
    second = "hints, another start or nested subspaces are better than FA's default"
    return [
        _claim(words, final, PRIORS, testable, margin),
        _claim(second, final, STARTS, testable, margin),
    ]


def _claim(
    words: str,
    final: Mapping[str, Mapping[str, Sequence[float]]],
    arms: Mapping[str, Any],
    testable: bool,
    margin: float,
) -> Claim:
    """Compare each arm with the default; one attack is a case, in which one arm is enough."""
    level = LEVEL / len(arms)  # Bonferroni correction.
    leads = []
    for attack, reached in final.items():
        every = [Lead(ATTACKS[attack], reached[name], DEFAULT, reached[DEFAULT], name) for name in arms]
        leads.append(max(every, key=lambda lead: (lead.better(margin, level), lead.difference)))
    measured = f"best of {len(arms)}, p < {level:.2g} required: "
    return Claim("E9", words, measured + describe_leads(leads), comparison_verdict(leads, testable, level, margin))
