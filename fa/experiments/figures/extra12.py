"""Extra 12: random vectors in all coordinates, or only in those that some honest gradient reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fa.experiments.figures.extras_common import make_extra
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import MISSING, Claim, Lead, comparison_claim, describe_leads, learned, mean
from fa.experiments.runs.profiles import MARGIN, PROFILES, for_profile
from fa.experiments.runs.results import final_accuracies
from fa.experiments.runs.study import Case, OutDir, Seeds, Study
from fa.experiments.runs.variants import VARIANTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "extra12_unreached_coordinates"
NO_RULES = "it compares two attacks on the paper's rules"
NO_ATTACK = "it compares two attacks"
F = 3
ATTACKS = EVERYWHERE, REACHED = "random", "random_reached"
ORDER_STATISTICS = ("median", "meamed", "phocas", "trimmed_mean")
RULES = ("fa", "mean_unit", "multi_krum", *ORDER_STATISTICS)
SEEDS_BY_PROFILE = {"smoke": (2021,), "quick": (2021, 2022, 2023), "cpu": (2021, 2022, 2023), "paper": (2021,)}


def study(profile: str, out: OutDir = None, seeds: Seeds = None, **overrides: Any) -> Study:
    """Create the study of Extra 12: random vectors in all coordinates, or where an honest gradient is not 0.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: those of `SEEDS_BY_PROFILE`.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, with f = 3, for each of `RULES` under both attacks. Unlike other extras, it uses the profile's model.

    Raises:
        ValueError: Unknown profile or setting, an invalid value, or empty `seeds`.
    """
    case_seeds = for_profile(SEEDS_BY_PROFILE, profile)
    grid = [Case(rule, F, {"attack": attack}, seeds=case_seeds) for rule in RULES for attack in ATTACKS]
    return make_extra(NAME, profile, grid, out, seeds, PROFILES[profile], **overrides)


def accuracies_by_rule(table: DataFrame) -> dict[str, dict[str, list[float]]]:
    """Return final test accuracies by rule and attack, with the seeds that have both.

    Args:
        table: The curves, one row a point.

    Returns:
        A dictionary from attack to accuracies, one per seed, for each rule.
    """
    final = final_accuracies(table, "attack", "variant")
    pairs = {rule: {one: final[one, rule] for one in ATTACKS if (one, rule) in final} for rule in RULES}
    return {rule: pair for rule, pair in pairs.items() if len(pair) == len(ATTACKS)}


def draw(table: DataFrame, title: str) -> Figure:
    """Draw one line per rule, from the accuracy under vectors in all coordinates to that under the confined ones.

    Args:
        table: The curves, one row a point, with the columns variant, attack, seed, iteration and test_accuracy.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure. A rule is omitted if no seed has runs under both attacks.
    """
    final = accuracies_by_rule(table)
    figure = style.new_figure(7.5, 1.6 + 0.45 * len(final))
    axes = figure.subplots()
    for y, (rule, pair) in enumerate(reversed(final.items())):
        look = style.LOOKS[rule]
        everywhere, reached = mean(pair[EVERYWHERE]), mean(pair[REACHED])
        axes.plot([everywhere, reached], [y, y], color=look.color, linewidth=2)
        axes.plot(pair[EVERYWHERE], [y] * len(pair[EVERYWHERE]), "o", markersize=6, color=look.color, fillstyle="none")
        axes.plot(pair[REACHED], [y] * len(pair[REACHED]), "o", markersize=4, color=look.color)
        change = f"{reached - everywhere:+.3f}"
        axes.text(1.02, y, change, va="center", fontsize=8, transform=axes.get_yaxis_transform())
    axes.set_yticks(range(len(final)), [VARIANTS[rule].label for rule in reversed(final)])
    axes.set(ylim=(-0.6, len(final) - 0.4))
    axes.set_xlabel("test accuracy (fraction); line: between the means; at the right: their difference")
    for marks, label in (("none", "vectors in all coordinates"), ("full", "where an honest gradient is not 0")):
        axes.plot([], [], "o", color="0.3", fillstyle=marks, label=label)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    style.set_heading(figure, f"f = {F} Byzantine workers send random gradients\n{title}")
    return figure


def claims(table: DataFrame, chance: float, margin: float = MARGIN) -> list[Claim]:
    """Judge E12: whether rules lose accuracy if the random vectors are confined.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.
        margin: Accuracies that differ by less are equal.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    final = accuracies_by_rule(table)
    testable = learned({rule: pair[EVERYWHERE] for rule, pair in final.items()}, chance)
    judged = []
    for words, rules in (("FA loses", ("fa",)), ("order statistics lose", ORDER_STATISTICS)):
        leads = [_loss(rule, final[rule]) for rule in rules if rule in final]
        text = f"{words} accuracy if random vectors are 0 where all honest gradients are"
        if len(leads) == len(rules):
            judged.append(comparison_claim("E12", text, leads, testable, margin, difference="loss"))
            continue
        missing = ", ".join(VARIANTS[rule].label for rule in rules if rule not in final)
        parts = [describe_leads(leads, "loss")] if leads else []
        judged.append(Claim("E12", text, "; ".join([*parts, f"without runs: {missing}"]), MISSING))
    return judged


def _loss(rule: str, pair: dict[str, list[float]]) -> Lead:
    """The accuracy under vectors in all coordinates beside that under the confined ones."""
    return Lead(VARIANTS[rule].label, pair[EVERYWHERE], "confined", pair[REACHED], "everywhere")
