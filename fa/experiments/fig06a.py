"""Figure 6a: three links that lose a tenth of their packets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fa.experiments.claims import Claim, accuracies, lead, learned, shown, verdict
from fa.experiments.curves import draw_curves
from fa.experiments.study import Case, Study, make_study
from fa.experiments.style import PAPER_RULES, use

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "fig06a_packet_loss"
RULES = (*PAPER_RULES, "mean")
FAULTY = 3


def study(profile: str, out: str | Path | None = None, seeds: Sequence[int] | None = None, **given: Any) -> Study:
    """The runs of Figure 6a, under chunk loss; settings that are given, and not None, replace the profile's."""
    own = {"attack": "chunk_loss"} | ({"iterations": 660} if profile == "paper" else {})
    return make_study(NAME, profile, [Case(key, FAULTY) for key in RULES], out, seeds, own, **given)


def draw(table: DataFrame, title: str, links: DataFrame | None = None) -> Figure:
    """Chunk loss: accuracy by iterations; link loss: an iteration's time, from `links` as `measured` returns it."""
    use()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    draw_curves(left, table, RULES)
    left.set_title("chunk loss: 10% of each of three gradients")
    left.legend(title="rule", loc="lower right")
    _draw_links(right, links)
    figure.suptitle(f"f = 3 links lose 10% of their packets\n{title}", fontsize=10)
    return figure


def _draw_links(axes: Axes, links: DataFrame | None) -> None:
    axes.set_title("link loss: TCP sends again")
    if links is None or not len(links):
        axes.text(0.5, 0.5, "not measured here", ha="center", va="center")
        axes.set_axis_off()
        return
    bars = axes.bar([f"{loss:.0%} lost" for loss in links["loss"]], links["seconds"] * 1000, color="#7c7b78")
    axes.bar_label(bars, fmt="%.0f", padding=2)
    axes.margins(y=0.08)
    first = links.iloc[0]
    axes.set_xlabel(f"FA, p = {first['workers']:.0f} processes, {first['lossy']:.0f} lossy links")
    axes.set_ylabel("time of an iteration (ms)")
    axes.grid(visible=False, axis="x")


def claims(table: DataFrame, chance: float) -> list[Claim]:
    """C6 in its two halves: FA's final accuracy, and its lead over the best other rule at each evaluation before."""
    final = accuracies(table)
    testable = learned(final, chance)
    at = {iteration: lead(accuracies(rows), FAULTY) for iteration, rows in table.groupby("iteration")}
    leads = [replace(its, where=f"after {iteration}") for iteration, its in at.items()]
    last = replace(leads[-1], where=f"f = {FAULTY}")
    return [
        Claim(
            "C6",
            "under 10% packet loss FA converges to a significantly higher accuracy than other aggregators",
            f"final accuracy, {last}; Mean {shown(final['mean', FAULTY])}",
            verdict([last.better()], testable),
        ),
        Claim(
            "C6",
            "FA reaches a similar accuracy in less iterations: it leads at every evaluation",
            "; ".join(map(str, leads)),
            verdict([its.better() for its in leads], testable),
        ),
    ]
