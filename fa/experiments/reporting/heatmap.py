"""Heat maps of tables with values in [0, 1]: each cell shows its value, and gaps are hatched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fa.experiments.reporting.style import literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage
    from pandas import DataFrame

_DARK = 0.6  # Value below which cells are dark and have white text.


def draw_heat(axes: Axes, cells: DataFrame, title: str) -> AxesImage:
    """Draw one cell for each row and column, in cividis, which is readable under color blindness.

    Args:
        axes: Axes to draw on.
        cells: Values in [0, 1]; NaN for a gap.
        title: Title of the axes.

    Returns:
        The image, for a color bar.
    """
    from matplotlib.patches import Rectangle

    numbers = cells.to_numpy(dtype=float)
    image = axes.imshow(numbers, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (row, column), number in np.ndenumerate(numbers):
        if np.isnan(number):
            gap = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, hatch="///", edgecolor="#999999", linewidth=0)
            axes.add_patch(gap)
            continue
        text = f"{number:.2f}".removeprefix("0") if number < 0.995 else "1"
        color = "white" if number < _DARK else "black"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
    columns, rows = ([literal(str(name)) for name in names] for names in (cells.columns, cells.index))
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set_title(literal(title))
    return image
