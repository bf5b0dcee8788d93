"""Figures 6b to 6d: more and more workers, f = 2 of them faulty."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fa.experiments.claims import CLOSE, Claim, accuracies, lead, learned, lengths, mean, shown, verdict
from fa.experiments.curves import draw_panels
from fa.experiments.own import enter, known, sent
from fa.experiments.study import Case, Names, Place, Seeds, Study, make_study
from fa.experiments.style import FA_FORMULATION, PAPER_RULES

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "fig06bcd_more_workers"
WORKERS = (11, 13, 15)
_PAPER = {11: 1080, 13: 915, 15: 1050}  # iterations, in the released code


def study(profile: str, out: Place = None, seeds: Seeds = None, rules: Names = None, **given: Any) -> Study:
    """The runs of Figures 6b to 6d, and of `rules` that are not the paper's; settings that are given, and not None,
    replace the profile's.
    """
    keys = (*PAPER_RULES, *enter(rules))
    iterations = {p: {"iterations": _PAPER[p]} if profile == "paper" else {} for p in WORKERS}
    grid = [Case(key, 2, {"workers": p} | iterations[p]) for p in WORKERS for key in keys]
    return make_study(NAME, profile, grid, out, seeds, **given)


def draw(table: DataFrame, title: str) -> Figure:
    """One panel for each number of workers, as in the paper."""
    return draw_panels(table, "workers", "p", f"f = 2 faulty workers send {sent(table)}; {FA_FORMULATION}\n{title}")


def claims(table: DataFrame, chance: float) -> list[Claim]:
    """C7: whether FA keeps up with the best other rule at every p, and does not lose by more workers.

    As in Figure 5, the second is shown in part at the most where the runs are not of one length.
    """
    table = known(table)
    final = accuracies(table, "workers")
    counts = sorted(set(table["workers"]))
    leads = [lead(final, p, "p") for p in counts]
    ours = [mean(final["fa", p]) for p in counts]
    keeps = [after > before - CLOSE for before, after in pairwise(ours)]
    testable = learned(final, chance)
    alike, told = lengths(table, "workers")
    return [
        Claim(
            "C7",
            "FA possesses strong resilience for reasonable choices of p: none of the other rules is better",
            "final accuracy " + "; ".join(map(str, leads)),
            verdict([lead.margin > -CLOSE for lead in leads], testable),
        ),
        Claim(
            "C7",
            "marginal utility of additional workers: FA loses nothing as p grows with f fixed",
            "FA's final accuracy: "
            + ", ".join(f"p = {p}: {shown(final['fa', p])}" for p in counts)
            + ("" if alike else f"; {told}"),
            verdict(keeps if alike else [*keeps, False], testable),
        ),
    ]
