"""Curves of test accuracy, drawn alike in all figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fa.experiments.reporting import style
from fa.experiments.reporting.style import looks
from fa.experiments.runs.user_rules import user_rules_in
from fa.experiments.runs.variants import VARIANTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series


def draw_panels(table: DataFrame, column: str, symbol: str, heading: str) -> Figure:
    """Draw a row of panels with the curves of all variants.

    Args:
        table: The curves, one row a point.
        column: Column whose values have a panel each.
        symbol: Symbol of the column for titles, as in p = 11.
        heading: Title of the figure.

    Returns:
        The figure.
    """
    values = list(dict.fromkeys(table[column]))
    variants = (*(key for key in VARIANTS if key in set(table["variant"])), *user_rules_in(table))
    figure = style.new_figure(2 + 3 * len(values), 3.6)
    panels = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
    for axes, value in zip(panels, values, strict=True):
        draw_curves(axes, table[table[column] == value], variants)
        axes.set_title(f"{symbol} = {value}")
        axes.label_outer()
    panels[-1].legend(title="rule", loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.suptitle(heading, fontsize=10)
    return figure


def draw_curves(axes: Axes, table: DataFrame, variants: tuple[str, ...]) -> None:
    """Draw test accuracy by iteration, one line per variant: the mean over seeds, and their range as a band.

    Args:
        axes: Axes to draw on.
        table: The curves, one row a point.
        variants: Variants to draw, in the order of the legend.
    """
    for key in variants:
        rows = table[table["variant"] == key]
        if len(rows):
            look = looks(variants)[key]
            draw_line(axes, rows, rows["label"].iloc[0], look.colour, look.marker, look.dashes)
    finish(axes)


def draw_line(axes: Axes, rows: DataFrame, label: str, colour: str, marker: str, dashes: tuple[int, ...] = ()) -> None:
    """Draw one line: the mean over the seeds of `rows`, and their range as a band.

    Args:
        axes: Axes to draw on.
        rows: Points of one variant with all its seeds.
        label: Name in the legend.
        colour: Colour of the line.
        marker: matplotlib's marker.
        dashes: Lengths of dashes and gaps; default: a solid line.
    """
    points = rows.groupby("iteration")["test_accuracy"].agg(["mean", "min", "max"])
    every = max(1, len(points) // 8)
    line = (0, dashes) if dashes else "-"
    look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 6, "linestyle": line, "label": label}
    axes.plot(points.index, points["mean"], markevery=every, markerfacecolor="none", **look)  # Lines may coincide.
    if rows["seed"].nunique() > 1:
        axes.fill_between(points.index, points["min"], points["max"], color=colour, alpha=0.15, linewidth=0)


def draw_kinds(
    axes: Axes, rows: DataFrame, byzantine: Series[bool], column: str, labels: tuple[str, str] = ("honest", "Byzantine")
) -> None:
    """Draw a column by iteration for both kinds of workers: the mean over workers, and their range as a band.

    Args:
        axes: Axes to draw on.
        rows: One row per iteration and worker.
        byzantine: Which rows belong to the second kind.
        column: Column to draw.
        labels: Names of both kinds.
    """
    kinds = zip(labels, (rows[~byzantine], rows[byzantine]), (style.HONEST, style.BYZANTINE), ("-", "--"), strict=True)
    for label, kind, colour, line in kinds:
        points = kind.groupby("iteration")[column].agg(["mean", "min", "max"])
        axes.plot(points.index, points["mean"], color=colour, linestyle=line, label=label)
        axes.fill_between(points.index, points["min"], points["max"], color=colour, alpha=0.15, linewidth=0)


def finish(axes: Axes, xlabel: str = "iteration") -> None:
    """Set labels and limits of accuracy axes: up to 1, or 0.5 if no curve is higher."""
    highest = max(shared.dataLim.ymax for shared in axes.get_shared_y_axes().get_siblings(axes))
    axes.set(xlabel=xlabel, ylabel="test accuracy (fraction)", ylim=(0, 0.5 if highest < 0.5 else 1))
    axes.set_xlim(left=0)
