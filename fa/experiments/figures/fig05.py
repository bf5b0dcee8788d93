"""Figure 5: the rules with f = 3 Byzantine workers, at three sizes of the workers' minibatches."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fa.experiments.reporting.claims import (
    LEARNED,
    MISSING,
    NOT,
    Claim,
    Lead,
    comparison_verdict,
    lead,
    mean,
    same_iterations,
    verdict,
)
from fa.experiments.reporting.curves import draw_panels
from fa.experiments.reporting.style import FA_FORMULATION
from fa.experiments.runs.profiles import MARGIN
from fa.experiments.runs.results import final_accuracies
from fa.experiments.runs.study import Case, OutDir, RuleNames, Seeds, Study, make_study
from fa.experiments.runs.user_rules import attack_heading, builtin_rows, register_rules
from fa.experiments.runs.variants import PAPER_RULES

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "fig05_batch_size"
# Images of a worker's minibatch, and iterations: fewer with larger minibatches, as in the released code. The profile
# paper has its numbers. The other profiles keep its proportions of about 3 to 2 to 1.
SIZES = {
    "smoke": ((4, 4), (8, 4), (16, 4)),
    "quick": ((16, 90), (32, 60), (64, 30)),
    "cpu": ((8, 150), (16, 100), (32, 50)),
    "paper": ((64, 1600), (128, 1050), (192, 530)),
}


def study(profile: str, out: OutDir = None, seeds: Seeds = None, rules: RuleNames = None, **overrides: Any) -> Study:
    """Create the study of Figure 5: the paper's rules with f = 3 and three batch sizes.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: the profile's.
        rules: Names of the user's rules that are added, such as "FILE.py:NAME". None: no rules.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, with the batch sizes and iterations of `SIZES`.

    Raises:
        ValueError: Unknown profile, rule or setting, an invalid value, or empty `seeds`.
    """
    keys = (*PAPER_RULES, *register_rules(rules))
    sizes = SIZES.get(profile, ())  # `make_study` reports an unknown profile.
    grid = [Case(key, 3, {"batch": batch, "iterations": iterations}) for batch, iterations in sizes for key in keys]
    return make_study(NAME, profile, grid, out, seeds, **overrides)


def draw(table: DataFrame, title: str) -> Figure:
    """Draw one panel for each batch size, as in the paper.

    Args:
        table: The curves, one row a point, with the columns variant, label, batch, seed, iteration and test_accuracy.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure.
    """
    return draw_panels(
        table, "batch", "B", f"f = 3 Byzantine workers send {attack_heading(table)}; {FA_FORMULATION}\n{title}"
    )


def claims(table: DataFrame, chance: float, margin: float = MARGIN, *, profile: str) -> list[Claim]:
    """Judge C5: FA's lead over the best other rule with larger minibatches, and its growth with the batch size.

    Sizes at which neither FA nor the other rule learned are excluded. If the numbers of iterations differ, the batch
    size is not the only change, and growth is not testable. If rules or sizes are missing, the first part can fail
    but not hold.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.
        margin: Accuracies that differ by less are equal.
        profile: Name of the profile, a key of `SIZES`.

    Returns:
        The claims with their measurements and verdicts, one for each part; none until FA and another rule are
        finished with a common seed and size.
    """
    table = builtin_rows(table)
    final = final_accuracies(table, "variant", "batch")
    sizes = [batch for batch, _ in SIZES[profile]]
    finished = {batch: [key for key in PAPER_RULES if (key, batch) in final] for batch in sizes}
    leads = {batch: lead(final, batch, "B") for batch in sizes if "fa" in finished[batch] and len(finished[batch]) > 1}
    if not leads:
        return []
    comparable = {
        batch: one
        for batch, one in leads.items()
        if max(mean(one.accuracies), mean(one.other_accuracies)) > LEARNED * chance
    }
    larger = [comparable[batch] for batch in sizes[1:] if batch in comparable]
    complete = [len(finished[batch]) == len(PAPER_RULES) for batch in sizes]
    found = comparison_verdict(larger, bool(larger), margin=margin)
    fails = found == NOT and len(larger) == len(sizes) - 1  # With these seeds, another rule could only lower the leads.
    grows = [after.difference > before.difference + margin for before, after in pairwise(comparable.values())]
    same, counts = same_iterations(table, "batch")
    sizes_text = "" if len(comparable) == len(leads) else f"; above {LEARNED:g} times chance: {_cases(comparable)}"
    return [
        Claim(
            "C5",
            "with larger batch sizes FA achieves a significantly better accuracy than the other rules",
            "final accuracy " + "; ".join(map(str, leads.values())) + sizes_text,
            found if all(complete[1:]) or fails else MISSING,
        ),
        Claim(
            "C5",
            "marginal utility of larger batch sizes: FA's lead grows with the batch size",
            "FA's lead over the best other rule: "
            + ", ".join(one.difference_text for one in leads.values())
            + f"; {counts}{sizes_text}",
            verdict(grows, same and bool(grows)) if all(complete) or not same else MISSING,
        ),
    ]


def _cases(leads: Mapping[int, Lead]) -> str:
    return ", ".join(one.case for one in leads.values()) or "none"
