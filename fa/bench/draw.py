"""Picture of a benchmark: time of each rule and its alternatives, and its growth with n and p."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fa.bench.cases import DEFAULT_P, OURS, PAPER, TORCH, RuleTiming
from fa.bench.table import growth, rules, slopes
from fa.experiments.reporting.style import Look, apply_theme, literal, looks, sequential_colors, three_digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMPLEMENTATIONS = {OURS: "this package", "byzfl": "byzfl", "byzpy": "byzpy", TORCH: "torch", PAPER: "FA by SVDs"}
_OTHERS = {
    "krum": Look("Krum", "#fbafe4", "p"),
    "geometric_median": Look("Geometric Median", "#117733", "H", (1, 1)),
    "centered_clipping": Look("Centered Clipping", "#442266", "<", (1, 1)),
    "minimum_diameter_averaging": Look("Minimum Diameter", "#aaeeaa", ">", (1, 1)),
    "caf": Look("CAF", "#442200", "8", (1, 1)),
    "monna": Look("MoNNA", "#44aa99", "d", (1, 1)),
}
"""Looks of the rules that no figure of the paper has."""


def draw(rows: Sequence[RuleTiming], title: str) -> Figure:
    """Draw bars at the largest n (15 workers if timed), and time against n and against p, log-log.

    Args:
        rows: Rows of all cases. A panel of growth is empty if each rule has fewer than two sizes.
        title: Title of the figure, such as the machine and the versions.

    Returns:
        The figure, with three panels and times in milliseconds.
    """
    apply_theme()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), layout="constrained")
    bars, by_n, by_p = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    _bars(bars, rows)
    for axes, varied in ((by_n, "n"), (by_p, "p")):
        if any(len(growth(rows, rule, OURS, varied)) > 1 for rule in rules(rows)):
            _growth(axes, rows, varied)
        else:
            axes.set_axis_off()
    handles = max((axes.get_legend_handles_labels() for axes in (by_n, by_p)), key=lambda found: len(found[0]))
    if handles[0]:
        by_p.legend(
            *handles, title="rule (exponent in n, in p)", loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=8
        )
    figure.suptitle(title, fontsize=10)
    return figure


def _bars(axes: Axes, rows: Sequence[RuleTiming]) -> None:
    largest, p = max((row.n, row.p == DEFAULT_P, row.p) for row in rows)[::2]
    at = {(row.rule, row.by): row for row in rows if (row.n, row.p) == (largest, p)}
    colors = dict(zip(IMPLEMENTATIONS, sequential_colors(len(IMPLEMENTATIONS)), strict=True))
    for place, rule in enumerate(rules(rows)):
        drawn = [(by, at[rule, by]) for by in IMPLEMENTATIONS if (rule, by) in at]
        drawn += [(PAPER, row) for row in at.values() if row.by == PAPER and rule == "fa"]
        height = 0.8 / len(drawn)
        for k, (by, row) in enumerate(drawn):
            y = place + height * (k - (len(drawn) - 1) / 2)
            name = "" if by != PAPER else f" {row.rule.removeprefix('fa, ')}"
            axes.barh(y, 1e3 * row.seconds, height, color=colors[by])
            axes.text(
                1e3 * row.seconds * 1.05, y, f"{three_digits(1e3 * row.seconds)}{name}", va="center", fontsize=6.5
            )
    timed = {row.by for row in at.values()}
    for by, label in IMPLEMENTATIONS.items():
        if by in timed:
            axes.barh(0, 0, color=colors[by], label=label)
    names = [literal(variant.label) for variant in _variants(rows).values()]
    axes.set(xscale="log", yticks=range(len(names)), yticklabels=names)
    axes.set(xlabel="time of a call (ms)", title=f"p = {p}, n = {largest:,}", ylim=(len(names) - 0.4, -0.6))
    axes.set_xlim(right=axes.get_xlim()[1] * 8)
    axes.legend(fontsize=7, loc="upper right")


def _growth(axes: Axes, rows: Sequence[RuleTiming], varied: str) -> None:
    in_n, in_p = slopes(rows, "n"), slopes(rows, "p")
    for rule in rules(rows):
        line = growth(rows, rule, OURS, varied)
        if line:
            sizes, seconds = zip(*line, strict=True)
            exponents = ", ".join(f"{found[rule]:.2f}" for found in (in_n, in_p) if rule in found)
            look = _variants(rows)[rule]
            label = literal(f"{look.label} ({exponents})")
            axes.loglog(sizes, [1e3 * s for s in seconds], color=look.color, marker=look.marker, label=label)
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    held = f"p = {DEFAULT_P}" if varied == "n" else "n = 1,000,000"
    axes.set(xlabel="coordinates, n" if varied == "n" else "workers, p", ylabel="time of a call (ms)", title=held)
    if varied == "p":
        ticks = sorted({row.p for row in rows})
        axes.set_xticks(ticks, [str(p) for p in ticks])
        axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _variants(rows: Sequence[RuleTiming]) -> dict[str, Look]:
    variants = looks(rule for rule in rules(rows) if rule not in _OTHERS) | _OTHERS
    return {rule: variants[rule] for rule in rules(rows)}
