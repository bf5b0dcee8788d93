"""Extra 3: every rule under seven attacks beyond the paper, with f = 1 to 6 Byzantine workers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fa.experiments.figures.extras_common import MIN_GAIN, RULES, SAME_LENGTH, SHORT, UNIT_OPTIONS, make_extra
from fa.experiments.paths import figures_dir
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import Claim, learned, mean, verdict
from fa.experiments.reporting.heatmap import draw_heat
from fa.experiments.runs.profiles import for_profile
from fa.experiments.runs.results import final_accuracies, last_points
from fa.experiments.runs.study import Case, OutDir, RuleNames, Seeds, Study
from fa.experiments.runs.user_rules import builtin_rows, label, register_rules, resolve_attack, user_rules_in
from fa.experiments.runs.variants import VARIANTS
from fa.utils import plugins

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "extra03_attacks"
F_BY_PROFILE = {"smoke": (4,), "quick": (1, 2, 3, 4, 5, 6), "cpu": (1, 2, 3, 4, 5, 6), "paper": (1, 2, 3, 4, 5, 6)}
ATTACKS = {
    "random_symmetric": "random in [-1, 1)",
    "random_honest_norm": "random, honest norm",
    "sign_flip": "sign flip",
    "collude": "colluding",
    "alie": "A Little Is Enough",
    "ipm": "inner product",
    "mimic": "mimic",
}
"""Attacks: names in `fa.attacks`, and names in the figure."""

SEEDS_BY_PROFILE = {"paper": (2021,)}  # One seed, because there are many runs.


def study(
    profile: str,
    out: OutDir = None,
    seeds: Seeds = None,
    rules: RuleNames = None,
    attack: str | None = None,
    **overrides: Any,
) -> Study:
    """Create the study of Extra 3: every rule under every attack of `ATTACKS`.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: the profile's, and at "paper" 2021.
        rules: Names of the user's rules that are added, such as "FILE.py:NAME". None: no rules.
        attack: Attack that is added to `ATTACKS`, such as "FILE.py:NAME". The default folder is then the custom one.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, with f from 1 to 6 (4 at "smoke"). Its records are in the folder "records-many".

    Raises:
        ValueError: Unknown profile, rule, attack or setting, an invalid value, or empty `seeds`.
    """
    case_seeds, grid = SEEDS_BY_PROFILE.get(profile, ()), []
    keys = (*RULES, *register_rules(rules))
    attacks = dict.fromkeys((*ATTACKS, *([] if attack is None else [resolve_attack(attack)])))
    for f in for_profile(F_BY_PROFILE, profile):
        for name in attacks:
            grid += [Case(key, f, {"attack": name}, seeds=case_seeds) for key in keys]
            grid.append(Case("fa_default", f, {"attack": name}, UNIT_OPTIONS, case_seeds, SAME_LENGTH))
    added = [word for name in attacks if name not in ATTACKS for word in ("--attack", name)]
    folder = figures_dir(profile, out, custom=True) if added else out
    made = make_extra(NAME, profile, grid, folder, seeds, SHORT.get(profile), **overrides)
    study = replace(made, records="records-many")
    return study if study.command_options is None else replace(study, command_options=(*study.command_options, *added))


def cells(table: DataFrame, f: int) -> DataFrame:
    """Return final test accuracies: rules as rows, attacks as columns, NaN where a rule is not defined.

    Args:
        table: The curves, one row a point.
        f: Number of Byzantine workers.

    Returns:
        The accuracies, with labels of rules and attacks.
    """
    last = last_points(table[table["f"] == f])
    grid = last.pivot_table(index="label", columns="attack", values="test_accuracy", aggfunc="mean")
    names = [*(label(key) for key in (*RULES, *user_rules_in(table))), SAME_LENGTH]
    attacks = {attack: ATTACKS.get(attack) or plugins.display_name(attack) for attack in (*ATTACKS, *table["attack"])}
    return grid.reindex(index=names, columns=list(attacks)).rename(columns=attacks)


def draw(table: DataFrame, title: str) -> Figure:
    """Draw one heat map per f, with rules as rows and attacks as columns.

    Args:
        table: The curves, one row a point, with the columns variant, label, f, attack, seed, iteration and
            test_accuracy.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure, with at most three panels in a row.
    """
    counts = sorted(set(table["f"]))
    columns = min(3, len(counts))
    figure = style.new_figure(4 + 3 * columns, 7.6)
    panels = figure.subplots(-(-len(counts) // columns), columns, sharex=True, sharey=True, squeeze=False)
    for axes, f in zip(panels.flat, counts, strict=True):
        image = draw_heat(axes, cells(table, f), f"f = {f}")
    figure.colorbar(image, ax=panels, label="final test accuracy (fraction)", shrink=0.6)
    style.set_heading(figure, f"Every rule under every attack; {style.FA_FORMULATION}\n{title}")
    return figure


def claims(table: DataFrame, chance: float) -> list[Claim]:
    """Judge E3: which rule has the best worst case, and whether FA is better than its control.

    The user's rules and attacks do not count.

    Args:
        table: The curves, one row a point, with the columns variant, label, f, attack, seed, iteration and
            test_accuracy.
        chance: Accuracy of guessing (a fraction).

    Returns:
        Two claims. Differences of at most `MIN_GAIN` count as equal.
    """
    table = builtin_rows(table)
    final = {
        (rule, attack, f): mean(values)
        for attack in ATTACKS
        for (rule, f), values in final_accuracies(table[table["attack"] == attack], "variant", "f").items()
    }
    testable = learned(final_accuracies(table[table["attack"].isin(ATTACKS)], "variant", "f"), chance)
    counts = sorted(set(table["f"]))
    worst = {f: _worst(final, f) for f in counts}
    least = [worst[f]["fa"][0] - max(value for rule, (value, _) in worst[f].items() if rule != "fa") for f in counts]
    gaps = [final["fa_default", attack, f] - final["mean_unit", attack, f] for attack in ATTACKS for f in counts]
    ahead, behind = (sum(sign * gap > MIN_GAIN for gap in gaps) for sign in (1, -1))
    return [
        Claim(
            "E3",
            "FA has the highest accuracy under the worst attack",
            "accuracy under the worst attack: "
            + "; ".join(_describe(f, worst[f]) for f in counts)
            + f"; threshold: a lead of {MIN_GAIN:g}",
            verdict([margin > MIN_GAIN for margin in least], testable),
        ),
        Claim(
            "E3",
            "the subspace protects where the division by the norm alone does not",
            f"{SAME_LENGTH}, less the mean of unit gradients, {len(gaps)} cases: ahead by more than"
            f" {MIN_GAIN:g} in {ahead}, behind in {behind}; differences from {min(gaps):+.3f} to {max(gaps):+.3f}",
            verdict([gap > MIN_GAIN for gap in gaps] if ahead > behind else [False], testable),
        ),
    ]


def _worst(final: dict[tuple[str, str, int], float], f: int) -> dict[str, tuple[float, str]]:
    """Return the least accuracy and its attack by rule, for rules that are defined for f."""
    return {
        rule: min((final[rule, attack, f], attack) for attack in ATTACKS)
        for rule in RULES
        if all((rule, attack, f) in final for attack in ATTACKS)
    }


def _describe(f: int, worst: dict[str, tuple[float, str]]) -> str:
    best = max((rule for rule in worst if rule != "fa"), key=lambda rule: worst[rule])
    fa, other = worst["fa"], worst[best]
    return (
        f"f = {f}: FA {fa[0]:.3f} ({ATTACKS[fa[1]]}), best other rule {VARIANTS[best].label} {other[0]:.3f}"
        f" ({ATTACKS[other[1]]})"
    )
