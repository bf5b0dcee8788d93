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
    """A row of panels, one for each value of `column`, with the curves of all the variants that the table has.

    A panel is titled by `symbol`, as in p = 11.
    """
    style.apply_theme()
    from matplotlib.figure import Figure

    values = list(dict.fromkeys(table[column]))
    variants = (*(key for key in VARIANTS if key in set(table["variant"])), *user_rules_in(table))
    figure = Figure(figsize=(2 + 3 * len(values), 3.6), layout="constrained")
    panels = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
    for axes, value in zip(panels, values, strict=True):
        draw_curves(axes, table[table[column] == value], variants)
        axes.set_title(f"{symbol} = {value}")
        axes.label_outer()
    panels[-1].legend(title="rule", loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.suptitle(heading, fontsize=10)
    return figure


def draw_curves(axes: Axes, table: DataFrame, variants: tuple[str, ...]) -> None:
    """Test accuracy against iterations, one line a variant, called as its case in the table: the mean over seeds, and
    their range as a band.
    """
    for key in variants:
        rows = table[table["variant"] == key]
        if len(rows):
            its = looks(variants)[key]
            draw_line(axes, rows, rows["label"].iloc[0], its.colour, its.marker, its.dashes)
    finish(axes)


def draw_line(axes: Axes, rows: DataFrame, label: str, colour: str, marker: str, dashes: tuple[int, ...] = ()) -> None:
    """One line: the mean over the seeds of `rows`, and their range as a band."""
    points = rows.groupby("iteration")["test_accuracy"].agg(["mean", "min", "max"])
    every = max(1, len(points) // 8)
    line = (0, dashes) if dashes else "-"
    look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 6, "linestyle": line, "label": label}
    axes.plot(points.index, points["mean"], markevery=every, markerfacecolor="none", **look)  # one above another
    if rows["seed"].nunique() > 1:
        axes.fill_between(points.index, points["min"], points["max"], color=colour, alpha=0.15, linewidth=0)


def draw_kinds(
    axes: Axes, rows: DataFrame, faulty: Series[bool], column: str, labels: tuple[str, str] = ("honest", "Byzantine")
) -> None:
    """A column against iterations, of the workers that are not `faulty` and of those that are: the mean over the
    workers of a kind, and their range as a band.
    """
    for label, its, colour, dashes in zip(
        labels, (rows[~faulty], rows[faulty]), (style.HONEST, style.BYZANTINE), ("-", "--"), strict=True
    ):
        points = its.groupby("iteration")[column].agg(["mean", "min", "max"])
        axes.plot(points.index, points["mean"], color=colour, linestyle=dashes, label=label)
        axes.fill_between(points.index, points["min"], points["max"], color=colour, alpha=0.15, linewidth=0)


def finish(axes: Axes, along: str = "iteration") -> None:
    """The axes' names and limits, the same in all figures of accuracy: to 1, or to 0.5 where no curve comes higher."""
    highest = max(shared.dataLim.ymax for shared in axes.get_shared_y_axes().get_siblings(axes))
    axes.set(xlabel=along, ylabel="test accuracy (fraction)", ylim=(0, 0.5 if highest < 0.5 else 1))
    axes.set_xlim(left=0)
