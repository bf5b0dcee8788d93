"""Colors, markers and theme of all figures: a rule has the same color, marker and place everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fa.experiments.runs.user_rules import label
from fa.experiments.runs.variants import VARIANTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Look:
    """Appearance of a variant in figures. The colors are seaborn's color-blind palette.

    Attributes:
        label: Name in the legend.
        color: Hexadecimal color.
        marker: matplotlib's marker.
        dashes: Lengths of dashes and gaps; default: a solid line.
    """

    label: str
    color: str
    marker: str
    dashes: tuple[int, ...] = ()

    @property
    def linestyle(self) -> Any:
        """The dashes as matplotlib's line style."""
        return (0, self.dashes) if self.dashes else "-"


_LOOKS: dict[str, tuple[Any, ...]] = {
    "fa": ("#0173b2", "o"),
    "bulyan": ("#de8f05", "s"),
    "multi_krum": ("#029e73", "D"),
    "median": ("#d55e00", "^"),
    "meamed": ("#cc78bc", "v"),
    "phocas": ("#ca9161", "P", (4, 3)),
    "trimmed_mean": ("#56b4e9", "X"),
    "mean": ("#949494", "*"),
    "fa_printed": ("#0173b2", "<", (2, 2)),
    "fa_default": ("#0173b2", ">", (5, 2)),
    "bulyan_printed": ("#de8f05", "1", (2, 2)),
    "mean_unit": ("#949494", "h", (5, 2)),
}

LOOKS = MappingProxyType({key: Look(variant.label, *_LOOKS[key]) for key, variant in VARIANTS.items()})
"""The look of every variant, in the order of a legend."""

USER_LOOKS = (("#000000", "p"), ("#882255", "x"), ("#9500ff", "d"), ("#3d2ca0", "8"))
"""Colors and markers of user rules, in the order of a figure; distinct from `LOOKS` under any color blindness."""

FA_VARIANTS = ("fa", "fa_printed", "fa_default", "bulyan_printed", "mean_unit", "mean")
"""Formulations of FA and Bulyan, and the controls that show what protects."""

_HEADING_SHARE = 0.96  # Of the figure's width, at most.

FA_FORMULATION = "FA is the released code's formulation"
"""Note in the titles of figures whose "FA" is the released formulation."""

HONEST, BYZANTINE = "#1c2833", "#8c3200"
"""Colors of workers; distinct from all rules' and from each other under any color blindness."""


def looks(keys: Iterable[str]) -> dict[str, Look]:
    """Return the looks of all variants, and of the user's rules among `keys` in their order.

    Args:
        keys: Variants and user rules.

    Returns:
        Looks by variant.
    """
    users = (key for key in dict.fromkeys(keys) if key not in LOOKS)
    return LOOKS | {key: Look(label(key), *look) for key, look in zip(users, USER_LOOKS, strict=False)}


def sequential_colors(count: int) -> tuple[str, ...]:
    """Return colors from dark to light for anything except rules: cividis without its lightest part.

    Args:
        count: Number of colors.

    Returns:
        Hexadecimal colors.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return tuple(to_hex(colormaps["cividis"](0.8 * i / max(1, count - 1))) for i in range(count))


def three_digits(x: float) -> str:
    """Format a number with three significant digits, or with all digits before the decimal point.

    Args:
        x: A number that is not negative.

    Returns:
        The text, with commas between thousands from 100 on.

    Example:
        >>> three_digits(0.012345), three_digits(1234.0)
        ('0.0123', '1,234')
    """
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def literal(text: str) -> str:
    r"""Escape a text, since matplotlib reads text between dollar signs as mathematics.

    Args:
        text: Text that may be a user's, such as the name of a rule.

    Returns:
        The text with a backslash before each dollar sign.

    Example:
        >>> print(literal("rule $1"))
        rule \$1
    """
    return text.replace("$", r"\$")


def set_heading(figure: Figure, text: str, size: float = 10) -> None:
    """Set the title of a figure, with lines broken where they would leave it.

    Args:
        figure: The figure, at its final size.
        text: The title, of one line or more.
        size: Font size in points.
    """
    points = _HEADING_SHARE * 72 * figure.get_figwidth()
    lines = [part for line in text.splitlines() for part in _fitting_lines(line, points, size)]
    figure.suptitle(literal("\n".join(lines)), fontsize=size)


def _fitting_lines(line: str, points: float, size: float) -> list[str]:
    """Break a line so that no part is wider than `points` if a word allows it.

    Lines break between words, but not beside "=" or after ":".
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    def width(text: str) -> float:
        return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=size), False)[0])

    lines = [""]
    for word in re.split(r"(?<![=:]) (?!=)", line):
        extended = f"{lines[-1]} {word}".strip()
        if lines[-1] and width(extended) > points:
            lines.append(word)
        else:
            lines[-1] = extended
    return lines


def apply_theme() -> None:
    """Set matplotlib's parameters for all figures."""
    import matplotlib
    import seaborn

    rc = {"axes.grid": True, "grid.color": "#e6e6e6", "font.size": 10}
    seaborn.set_theme(context="paper", style="ticks", palette="colorblind", rc=rc)
    matplotlib.rcParams["pdf.fonttype"] = 42  # Embed fonts, so that text remains searchable.


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure with the theme; sizes in inches.

    Args:
        width: Width in inches.
        height: Height in inches.

    Returns:
        The figure.
    """
    apply_theme()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
