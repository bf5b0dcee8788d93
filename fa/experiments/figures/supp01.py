"""The supplement's experiment: Figure 4's rules at learning rate 0.1 on the user's folder of Tiny ImageNet."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fa.experiments.figures import fig04
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import Claim
from fa.experiments.runs.profiles import MARGIN
from fa.experiments.runs.study import Case, OutDir, RuleNames, Seeds, Study, make_study
from fa.experiments.runs.user_rules import register_rules
from fa.experiments.runs.variants import PAPER_RULES_AND_MEAN

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "supp01_tiny_imagenet"
_SETTINGS = {"dataset": "tiny-imagenet", "lr": 0.1}


def study(profile: str, out: OutDir = None, seeds: Seeds = None, rules: RuleNames = None, **overrides: Any) -> Study:
    """Create the study of the supplement: Figure 4's rules on Tiny ImageNet, at learning rate 0.1.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: the profile's.
        rules: Names of the user's rules that are added, such as "FILE.py:NAME". None: no rules.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, with f = 1, 2 and 3 for each rule and formulation of FA.

    Raises:
        ValueError: Unknown profile, rule or setting, an invalid value, or empty `seeds`.
    """
    variants = dict.fromkeys((*PAPER_RULES_AND_MEAN, *style.FA_VARIANTS, *register_rules(rules)))
    grid = [Case(key, f) for f in fig04.F_VALUES for key in variants]
    return make_study(NAME, profile, grid, out, seeds, _SETTINGS, **overrides)


def draw(table: DataFrame, title: str) -> Figure:
    """Draw Figure 4 for these runs.

    Args:
        table: The curves; see `fig04.draw`.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure.
    """
    return fig04.draw(table, title)


def claims(table: DataFrame, chance: float, margin: float = MARGIN) -> list[Claim]:
    """Judge Figure 4's claims for these runs, and name the data set in them.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.
        margin: Accuracies that differ by less are equal.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    return [
        replace(claim, measured=f"Tiny ImageNet, {claim.measured}") for claim in fig04.claims(table, chance, margin)
    ]
