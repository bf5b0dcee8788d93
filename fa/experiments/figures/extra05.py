"""Extra 5: combinations of Krum's choice, nearest-neighbour mixing (NNM) and FA's subspace, against every rule alone.

Section 2 of the paper ends with the remark that right and left multiplications could be combined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fa.experiments.figures.extras_common import (
    RULE_ARMS,
    RULES,
    SAME_LENGTH,
    SHORT,
    Arms,
    arm_cases,
    arm_looks,
    by_attack,
    compare_best,
    draw_dot_panels,
    make_extra,
    several_seeds,
)
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import Claim, Lead, comparison_claim, learned
from fa.experiments.reporting.equivalence import LEVEL
from fa.experiments.reporting.style import looks
from fa.experiments.runs.profiles import MARGIN
from fa.experiments.runs.results import final_accuracies
from fa.experiments.runs.study import Case, OutDir, RuleNames, Seeds, Study
from fa.experiments.runs.user_rules import builtin_rows, register_rules, user_rules_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "extra05_combined"
NO_ATTACK = "it compares two attacks"
F = 3
ATTACKS = {"random": "random in [0, 1)", "collude": "colluding"}
PAIRS = {
    f"Krum's choice, then {SAME_LENGTH}": "Krum's choice, then mean of unit gradients",
    f"NNM, then {SAME_LENGTH}": "NNM, then mean of unit gradients",
}
"""Combinations with FA's subspace, and their counterparts without it, with steps of equal length."""

COMBINED: Arms = {
    "Krum's choice, then FA": ("fa", {"preaggregators": ("krum", "unit")}),
    f"Krum's choice, then {SAME_LENGTH}": ("fa_default", {"preaggregators": ("krum", "unit")}),
    "NNM, then FA": ("fa", {"preaggregators": ("unit", "nnm", "unit")}),
    f"NNM, then {SAME_LENGTH}": ("fa_default", {"preaggregators": ("unit", "nnm", "unit")}),
    "Krum's choice, then mean of unit gradients": ("mean", {"preaggregators": ("krum", "unit")}),
    "NNM, then mean of unit gradients": ("mean", {"preaggregators": ("unit", "nnm", "unit")}),
    "Krum's choice, then Median": ("median", {"preaggregators": ("krum",)}),
    "Krum's choice, then Trimmed Mean": ("trimmed_mean", {"preaggregators": ("krum",)}),
    "FA's subspace, then Median": ("median", {"preaggregators": ("unit", "subspace")}),
    "FA's subspace, then MeaMed": ("meamed", {"preaggregators": ("unit", "subspace")}),
}
"""Combinations: label, and the last rule with the steps before it."""

OURS = [name for name in COMBINED if "FA" in name]


def study(profile: str, out: OutDir = None, seeds: Seeds = None, rules: RuleNames = None, **overrides: Any) -> Study:
    """Create the study of Extra 5: rules alone and in combination, under two attacks.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: 2021, 2022 and 2023, and at "smoke" the profile's.
        rules: Names of the user's rules that are added, such as "FILE.py:NAME". None: no rules.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, with f = 3, for each attack, rule and combination.

    Raises:
        ValueError: Unknown profile, rule or setting, an invalid value, or empty `seeds`.
    """
    case_seeds = several_seeds(profile)
    alone, grid = (*RULES, *register_rules(rules)), []
    for attack in ATTACKS:
        grid += [Case(key, F, {"attack": attack}, seeds=case_seeds) for key in alone]
        grid += arm_cases(COMBINED, F, {"attack": attack}, case_seeds)
    return make_extra(NAME, profile, grid, out, seeds, SHORT.get(profile), **overrides)


def draw(table: DataFrame, title: str) -> Figure:
    """Draw a panel per attack: every rule and combination, a mark for each seed.

    Args:
        table: The curves, one row a point, with the columns variant, label, attack, seed, iteration and test_accuracy.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure, with two panels.
    """
    keys = (*RULES, *user_rules_in(table))
    rule_looks = looks(keys)
    by_name = {rule_looks[key].label: rule_looks[key] for key in keys} | arm_looks(COMBINED)
    figure = draw_dot_panels(by_attack(table, ATTACKS), by_name, (10.5, 4.8), bold=tuple(COMBINED))
    style.set_heading(figure, f"f = {F} Byzantine workers; {style.FA_FORMULATION}\n{title}")
    return figure


def claims(table: DataFrame, chance: float, margin: float = MARGIN) -> list[Claim]:
    """Judge E5: the best combination with FA against the best rule alone, and PAIRS.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.
        margin: Accuracies that differ by less are equal.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    panels = by_attack(builtin_rows(table), ATTACKS)
    final = {heading: final_accuracies(rows, "label") for heading, rows in panels.items()}
    testable = any(learned(reached, chance) for reached in final.values())
    level = LEVEL / len(OURS)  # Bonferroni correction: one combination is enough.
    pairs = [
        Lead(heading, reached[ours], control, reached[control], ours)
        for heading, reached in final.items()
        for ours, control in PAIRS.items()
    ]
    first = "FA combined with another rule is better than every rule alone"
    second = "after Krum's choice or NNM, the subspace is better than the mean of unit gradients, at equal length"
    top, prefix = compare_best(final, OURS, RULE_ARMS), f"best of {len(OURS)} combinations, p < {level:.2g} required: "
    return [
        comparison_claim("E5", first, top, testable, margin, level, prefix),
        comparison_claim("E5", second, pairs, testable, margin),
    ]
