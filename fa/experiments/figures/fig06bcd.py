"""Figures 6b to 6d: p = 11, 13 and 15 workers, f = 2 of them Byzantine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fa.experiments.reporting.claims import (
    MAX_LOSS,
    MISSING,
    Claim,
    format_mean_range,
    lead,
    learned,
    mean,
    same_iterations,
    verdict,
)
from fa.experiments.reporting.curves import draw_panels
from fa.experiments.reporting.style import FA_FORMULATION
from fa.experiments.runs.profiles import MARGIN
from fa.experiments.runs.results import common_final_accuracies, final_accuracies
from fa.experiments.runs.study import Case, OutDir, RuleNames, Seeds, Study, make_study
from fa.experiments.runs.user_rules import attack_heading, builtin_rows, register_rules
from fa.experiments.runs.variants import OTHER_RULES, PAPER_RULES

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "fig06bcd_more_workers"
WORKERS = (11, 13, 15)
CEILING = "Mean, f = 0"
_PAPER = {11: 1080, 13: 915, 15: 1050}  # Iterations in the released code.


def study(profile: str, out: OutDir = None, seeds: Seeds = None, rules: RuleNames = None, **overrides: Any) -> Study:
    """Create the study of Figures 6b to 6d: the paper's rules with f = 2 of 11, 13 and 15 workers.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: the profile's.
        rules: Names of the user's rules that are added, such as "FILE.py:NAME". None: no rules.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, with the mean without Byzantine workers (p = 15) as its last case.

    Raises:
        ValueError: Unknown profile, rule or setting, an invalid value, or empty `seeds`.
    """
    keys = (*PAPER_RULES, *register_rules(rules))
    iterations = {p: {"iterations": _PAPER[p]} if profile == "paper" else {} for p in WORKERS}
    grid = [Case(key, 2, {"workers": p} | iterations[p]) for p in WORKERS for key in keys]
    grid.append(Case("mean", 0, {"workers": 15} | iterations[15], label_override=CEILING))
    return make_study(NAME, profile, grid, out, seeds, **overrides)


def draw(table: DataFrame, title: str) -> Figure:
    """Draw one panel for each number of workers, as in the paper.

    Args:
        table: The curves, one row a point, with the columns variant, label, workers, seed, iteration and test_accuracy.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure.
    """
    return draw_panels(
        table, "workers", "p", f"f = 2 Byzantine workers send {attack_heading(table)}; {FA_FORMULATION}\n{title}"
    )


def claims(table: DataFrame, chance: float, margin: float = MARGIN) -> list[Claim]:
    """Judge C7: whether FA stays near the mean without Byzantine workers at every p, and loses nothing as p grows.

    As in Figure 5, the second part is not testable if the numbers of iterations differ. Both parts need FA at every p,
    with a common seed, and the first also needs the mean without Byzantine workers.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.
        margin: Accuracies that differ by less are equal.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    table = builtin_rows(table)
    judged = common_final_accuracies(table[(table["variant"] == "fa") | (table["f"] == 0)], "variant", "workers")
    ceiling = judged.get(("mean", 15), [])
    table = table[table["f"] > 0]
    final = final_accuracies(table, "variant", "workers")
    counts = [p for p in WORKERS if ("fa", p) in judged]
    ours = [mean(judged["fa", p]) for p in counts]
    complete = len(counts) == len(WORKERS)
    keeps = [after > before - margin for before, after in pairwise(ours)]
    testable = learned(final, chance)
    results = "; ".join(_result(final, p, judged["fa", p]) for p in counts) or "FA: not finished"
    by_p = ", ".join(f"p = {p}: {format_mean_range(judged['fa', p])}" for p in counts) or "not finished"
    alike, iterations = same_iterations(table, "workers")
    return [
        Claim(
            "C7",
            "FA possesses strong resilience for reasonable choices of p",
            f"final accuracy {results}; {CEILING}, p = 15:"
            f" {format_mean_range(ceiling) if ceiling else 'not finished'}; threshold: {MAX_LOSS:g} below that",
            verdict([accuracy >= mean(ceiling) - MAX_LOSS for accuracy in ours], testable)
            if complete and ceiling
            else MISSING,
        ),
        Claim(
            "C7",
            "marginal utility of additional workers: FA's accuracy does not fall as p grows with f fixed",
            f"FA's final accuracy: {by_p}" + ("" if alike else f"; {iterations}"),
            verdict(keeps, testable and alike) if complete else MISSING,
        ),
    ]


def _result(final: Mapping[tuple[str, Any], Sequence[float]], p: int, ours: Sequence[float]) -> str:
    """Describe FA's final accuracy at p, beside that of the best other rule if one is finished with the same seed."""
    if ("fa", p) in final and any((key, p) in final for key in OTHER_RULES):
        return str(lead(final, p, "p"))
    return f"p = {p}: FA {format_mean_range(ours)}"
