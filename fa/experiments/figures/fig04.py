"""Figure 4: the rules with f = 1, 2, 3 Byzantine workers that send random gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fa.experiments.paths import figures_dir
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import (
    CHANCE_MARGIN,
    LEARNED,
    MISSING,
    NOT,
    Claim,
    comparison_verdict,
    format_mean_range,
    lead,
    learned,
    mean,
    verdict,
)
from fa.experiments.reporting.curves import draw_curves, draw_legend
from fa.experiments.runs.profiles import MARGIN
from fa.experiments.runs.results import final_accuracies
from fa.experiments.runs.study import Case, OutDir, RuleNames, Seeds, Study, make_study
from fa.experiments.runs.user_rules import attack_heading, builtin_rows, register_rules, user_rules_in
from fa.experiments.runs.variants import PAPER_RULES, PAPER_RULES_AND_MEAN
from fa.utils.validation import check, check_one_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "fig04_byzantine_workers"
F_VALUES = (1, 2, 3)
# Three seeds for the paper's usual f, in a profile with one.
SEEDS_BY_PROFILE_AND_F = {("cpu", 3): (2021, 2022, 2023)}
MIN_RELATIVE_LEAD = 0.15  # Relative lead over the best other rule that still counts as about 20%.


def study(
    profile: str,
    out: OutDir = None,
    seeds: Seeds = None,
    variants: Sequence[str] | None = None,
    byzantine: Sequence[int] | None = None,
    rules: RuleNames = None,
    **overrides: Any,
) -> Study:
    """Create the study of Figure 4; see `make_study`.

    Args:
        profile: Name of the profile.
        out: Folder of the figure; default: the profile's.
        seeds: Seeds to use instead of the profile's.
        variants: Curves to draw; default: all.
        byzantine: Numbers of Byzantine workers; default: 1, 2 and 3.
        rules: The user's rules to add.
        **overrides: Settings instead of the profile's.

    Returns:
        The study, whose cells are the runs.
    """
    everything = tuple(dict.fromkeys((*PAPER_RULES_AND_MEAN, *style.FA_VARIANTS)))
    for name, chosen in (("variants", variants), ("byzantine", byzantine)):
        check(name, chosen, chosen is None or isinstance(chosen, list | tuple), "a list")
    for key in variants or ():
        check_one_of("a variant", key, everything)
    for f in byzantine or ():
        check("a number of Byzantine workers", f, f in F_VALUES, "1, 2 or 3")
    keys = (*(variants or everything), *register_rules(rules))
    grid = [
        Case(key, f, seeds=SEEDS_BY_PROFILE_AND_F.get((profile, f), ())) for f in byzantine or F_VALUES for key in keys
    ]
    if out is None and (variants or byzantine):
        out = figures_dir(profile, custom=True)
    study = make_study(NAME, profile, grid, out, seeds, **overrides)
    return replace(study, command_options=None) if variants or byzantine else study


def draw(table: DataFrame, title: str) -> Figure:
    """Draw one panel for each f, as in the paper (above); formulations of FA and controls, if any (below).

    Args:
        table: The curves, one row a point, with the columns variant, label, f, seed, iteration and test_accuracy.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure, with one or two rows of panels.
    """
    users, f_values = user_rules_in(table), sorted(set(table["f"]))
    rows: dict[str, tuple[str, ...]] = {"rules": (*PAPER_RULES_AND_MEAN, *users)}
    if set(table["variant"]) - {*PAPER_RULES_AND_MEAN, *users}:
        rows["formulations and controls"] = style.FA_VARIANTS
    figure = style.new_figure(max(7, 2 + 3 * len(f_values)), 3.3 * len(rows))
    panels = figure.subplots(len(rows), len(f_values), sharex=True, sharey=True, squeeze=False)
    seeds = table.groupby(["f", "variant"])["seed"].nunique()
    for row, (heading, variants) in zip(panels, rows.items(), strict=True):
        for axes, f in zip(row, f_values, strict=True):
            draw_curves(axes, table[table["f"] == f], variants)
            counts = " to ".join(map(str, sorted({seeds[f].min(), seeds[f].max()})))
            axes.set_title(f"f = {f}" if seeds.nunique() == 1 else f"f = {f}, seeds: {counts}")
            axes.label_outer()
        draw_legend(row, heading)
    style.set_heading(figure, f"Byzantine workers send {attack_heading(table)}; {style.FA_FORMULATION}\n{title}")
    return figure


def claims(table: DataFrame, chance: float, margin: float = MARGIN) -> list[Claim]:
    """Judge both parts of C3, and C4.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.
        margin: Accuracies that differ by less are equal.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    table = builtin_rows(table)
    table = table[table["variant"].isin(PAPER_RULES_AND_MEAN)]  # The seeds of controls do not matter.
    final, single = final_accuracies(table, "variant", "f"), final_accuracies(table, "variant", "f", paired=False)
    testable = learned(single, chance)
    judged = [*_of_leads(final, testable, margin), *_of_trimmed_mean(single, chance, testable)]
    return sorted(judged, key=lambda claim: claim.number)


def _of_leads(final: Mapping[tuple[str, Any], Sequence[float]], testable: bool, margin: float) -> list[Claim]:
    """Judge FA's leads.

    If rules or numbers of Byzantine workers are missing, a claim can fail but not hold.
    """
    finished = {f: [key for key in PAPER_RULES[1:] if (key, f) in final] for f in F_VALUES if ("fa", f) in final}
    leads = [lead(final, f, "f") for f, others in finished.items() if others]
    complete = sum(map(len, finished.values())) == len(F_VALUES) * len(PAPER_RULES[1:])

    def complete_verdict(min_relative_lead: float = 0.0) -> str:
        found = comparison_verdict(leads, testable, margin=margin, min_relative_lead=min_relative_lead)
        fails = len(leads) == len(F_VALUES) and found == NOT  # A missing rule could not change that.
        return found if complete or fails or not testable else MISSING

    return [
        Claim(
            "C3",
            "FA remains more robust compared to other approaches, for f = 1, 2, 3",
            "final accuracy " + ("; ".join(map(str, leads)) or "without a seed that all finished rules share"),
            complete_verdict(),
        ),
        Claim(
            "C4",
            "significantly (about 20%) better accuracy",
            "FA's lead over the best other rule: "
            + (", ".join(lead.difference_text for lead in leads) or "none")
            + f"; threshold: {MIN_RELATIVE_LEAD:.0%} of that rule's accuracy",
            complete_verdict(MIN_RELATIVE_LEAD),
        ),
    ]


def _of_trimmed_mean(final: Mapping[tuple[str, Any], Sequence[float]], chance: float, testable: bool) -> list[Claim]:
    if ("trimmed_mean", 1) not in final:
        return []
    reached, threshold = final["trimmed_mean", 1], min(chance + CHANCE_MARGIN, LEARNED * chance)
    return [
        Claim(
            "C3",
            "for Trimmed Mean, even a single Byzantine worker has a catastrophic impact",
            f"final accuracy f = 1: {format_mean_range(reached)}; threshold: {threshold:g}",
            verdict([mean(reached) < threshold], testable),
        )
    ]
