"""Curves of test accuracy, drawn alike in all figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fa.experiments.reporting import style
from fa.experiments.reporting.style import Look, looks
from fa.experiments.runs.results import INITIAL
from fa.experiments.runs.user_rules import user_rules_in
from fa.experiments.runs.variants import VARIANTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from pandas import DataFrame, Series


_GAP = 0.045  # Least distance of two lines' names, as a share of the axes' height.


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
    figure = style.new_figure(max(7, 2 + 3 * len(values)), 3.6)
    panels = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
    for axes, value in zip(panels, values, strict=True):
        draw_curves(axes, table[table[column] == value], variants)
        axes.set_title(f"{symbol} = {value}")
        axes.label_outer()
    draw_legend(panels, "rule")
    style.set_heading(figure, heading)
    return figure


def draw_curves(axes: Axes, table: DataFrame, variants: tuple[str, ...]) -> None:
    """Draw test accuracy by iteration, one line per variant: the mean over seeds, and their range as a band.

    Args:
        axes: Axes to draw on.
        table: The curves, one row a point.
        variants: Variants to draw, in the order of the legend.
    """
    for place, key in enumerate(variants):
        rows = table[table["variant"] == key]
        if len(rows):
            look = replace(looks(variants)[key], label=rows["label"].iloc[0])
            draw_line(axes, rows, look, 1 - place / len(variants))
    finish(axes)


def draw_legend(panels: Sequence[Axes], title: str) -> None:
    """Draw one legend beside the last panel, of the curves in all panels.

    Args:
        panels: Panels from left to right.
        title: Title of the legend.
    """
    entries: dict[str, Any] = {}
    for axes in sorted(panels, key=lambda axes: -len(axes.get_legend_handles_labels()[1])):
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    panels[-1].legend(entries.values(), entries.keys(), title=title, loc="upper left", bbox_to_anchor=(1.02, 1))


def line_options(look: Look, weight: float = 0.5) -> dict[str, Any]:
    """Return matplotlib's options of a curve that remains visible below another one; its marks are hollow.

    Args:
        look: Label, color, marker and dashes of the curve.
        weight: From 1 for the curve at the bottom, which is widest, to 0 for the one at the top.
    """
    return {
        "label": style.literal(look.label),
        "color": look.color,
        "marker": look.marker,
        "markerfacecolor": "none",
        "linestyle": look.linestyle,
        "markersize": 5 + 4 * weight,
        "linewidth": 1.2 + 1.2 * weight,
    }


def draw_line(axes: Axes, rows: DataFrame, look: Look, weight: float = 0.5) -> None:
    """Draw one line: the mean over the seeds of `rows`, and their range as a band.

    It begins at iteration 0 if the records of all seeds have the accuracy of the initial parameters.

    Args:
        axes: Axes to draw on.
        rows: Points of one variant with all its seeds.
        look: Label, color, marker and dashes of the line.
        weight: Width among coinciding curves; see `line_options`.
    """
    points = with_initial(rows).groupby("iteration")["test_accuracy"].agg(["mean", "min", "max"])
    every = max(1, len(points) // 8)
    axes.plot(points.index, points["mean"], markevery=every, **line_options(look, weight))
    if rows["seed"].nunique() > 1:
        axes.fill_between(points.index, points["min"], points["max"], color=look.color, alpha=0.15, linewidth=0)


def with_initial(rows: DataFrame) -> DataFrame:
    """Return iteration, seed, seconds and accuracy of curves, with a first point at iteration 0 if records have it.

    Args:
        rows: Points of one variant with all its seeds.

    Returns:
        The points. Without the initial accuracy of every seed, none is added.
    """
    import pandas

    points = rows[[name for name in ("iteration", "seed", "seconds", "test_accuracy") if name in rows]]
    initial = rows.attrs.get(INITIAL, {})
    seeds = list(dict.fromkeys(rows["seed"]))
    if not all(seed in initial for seed in seeds) or (rows["iteration"] == 0).any():
        return points
    accuracies = [initial[seed] for seed in seeds]
    first = {"iteration": 0, "seed": seeds, "seconds": 0.0, "test_accuracy": accuracies}
    return pandas.concat([pandas.DataFrame(first), points], ignore_index=True)


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
    for label, kind, color, line in kinds:
        points = kind.groupby("iteration")[column].agg(["mean", "min", "max"])
        axes.plot(points.index, points["mean"], color=color, linestyle=line, label=label)
        axes.fill_between(points.index, points["min"], points["max"], color=color, alpha=0.15, linewidth=0)


def label_ends(axes: Axes) -> None:
    """Write the name of every line beside its last point, in its color and above or below close neighbours.

    Args:
        axes: Axes with lines that have labels, and final limits.
    """
    named = [line for line in axes.lines if not str(line.get_label()).startswith("_") and len(_points(line))]
    to_share = axes.transData + axes.transAxes.inverted()
    ends = {line: tuple(map(float, to_share.transform(_points(line)[-1]))) for line in named}
    lines = sorted(named, key=lambda line: ends[line][1])
    for line, place in zip(lines, _spread([ends[line][1] for line in lines], _GAP), strict=True):
        color: Any = line.get_color()
        arrow = {"arrowstyle": "-", "color": color, "linewidth": 0.7, "shrinkA": 2, "shrinkB": 3, "relpos": (0, 0.5)}
        axes.annotate(
            str(line.get_label()),
            (ends[line][0], ends[line][1]),
            (1.05, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=color,
            va="center",
            fontsize=9,
            arrowprops=arrow,
            annotation_clip=False,
        )


def _points(line: Line2D) -> np.ndarray:
    return np.asarray(line.get_xydata(), dtype=float)


def _spread(places: Sequence[float], gap: float) -> list[float]:
    """Move ascending places apart by at least `gap`, with the least changes from bottom to top, from 0 on."""
    groups: list[list[float]] = []  # Places of each group, which are `gap` apart around their mean.

    def start(group: list[float]) -> float:
        return max(0.0, sum(group) / len(group) - gap * (len(group) - 1) / 2)

    for place in places:
        groups.append([place])
        while len(groups) > 1 and start(groups[-2]) + gap * len(groups[-2]) > start(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [start(group) + gap * number for group in groups for number in range(len(group))]


def finish(axes: Axes, xlabel: str = "iteration") -> None:
    """Set the labels and limits of axes with curves of the test accuracy.

    The vertical axis ends at 1, or at 0.5 if no curve on axes that share it is higher.

    Args:
        axes: Axes on which the curves are already drawn.
        xlabel: Label of the horizontal axis, which begins at 0.
    """
    drawn = [shared for shared in axes.get_shared_y_axes().get_siblings(axes) if shared.has_data()]
    highest = max((shared.dataLim.ymax for shared in drawn), default=1.0)
    axes.set(xlabel=xlabel, ylabel="test accuracy (fraction)", ylim=(0, 0.5 if highest < 0.5 else 1))
    axes.set_xlim(left=0)
