"""How things look and what they are called, in all figures alike: a rule keeps its name, colour, marker and place."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A rule with its options, as a figure shows it. The colours are seaborn's colour-blind palette."""

    label: str
    rule: str
    colour: str
    marker: str
    options: tuple[tuple[str, Any], ...] = ()
    dashes: tuple[int, ...] = ()


_PRINTED = (("preaggregators", ()),)
_RELEASED = (("formulation", "released"),)
_UNIT = (("preaggregators", ("unit",)),)

VARIANTS = MappingProxyType(
    {
        "fa": Variant("FA", "fa", "#0173b2", "o", _RELEASED),
        "bulyan": Variant("Bulyan", "bulyan", "#de8f05", "s"),
        "multi_krum": Variant("Multi-Krum", "multi_krum", "#029e73", "D"),
        "median": Variant("Median", "median", "#d55e00", "^"),
        "meamed": Variant("MeaMed", "meamed", "#cc78bc", "v"),
        "phocas": Variant("Phocas", "phocas", "#ca9161", "P", dashes=(4, 3)),
        "trimmed_mean": Variant("Trimmed Mean", "trimmed_mean", "#56b4e9", "X"),
        "mean": Variant("Mean", "mean", "#949494", "*"),
        "fa_printed": Variant("FA as printed", "fa", "#0173b2", "<", _PRINTED, (2, 2)),
        "fa_default": Variant("FA, this package's default", "fa", "#0173b2", ">", dashes=(5, 2)),
        "mean_unit": Variant("Mean of unit gradients", "mean", "#949494", "h", _UNIT, (5, 2)),
    }
)
"""Everything a figure can show, in the order of its legend."""

PAPER_RULES = ("fa", "bulyan", "multi_krum", "median", "meamed", "phocas", "trimmed_mean")
"""The seven rules of the paper's figures."""

RIVALS = (*PAPER_RULES[1:], "mean")
"""Whom FA has to be better than: the paper's other rules, and no defence at all."""

FA_VARIANTS = ("fa", "fa_printed", "fa_default", "mean_unit", "mean")
"""FA as released, as printed and as it comes, and the controls that tell what protects."""

FA_FORMULATION = "FA is the released code's formulation"
"""For the titles of figures whose "FA" is that."""

HONEST, FAULTY = "#1c2833", "#8c3200"
"""Of workers, where a figure tells the two kinds apart: no rule's colours, and told from each other by every eye."""

DATASETS = MappingProxyType(
    {
        "mnist-mini": "MNIST (10,000 images)",
        "mnist": "MNIST",
        "fashion-mnist": "Fashion-MNIST",
        "cifar10": "CIFAR-10",
        "tiny-imagenet": "Tiny ImageNet",
    }
)
MODELS = MappingProxyType({"convnet": "CNN", "resnet18": "ResNet-18"})


def ramp(count: int) -> tuple[str, ...]:
    """So many colours for what is no rule, from dark to light: cividis, up to where it can still be read on white."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return tuple(to_hex(colormaps["cividis"](0.8 * place / max(1, count - 1))) for place in range(count))


def three_digits(x: float) -> str:
    """Three digits, or all before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def use() -> None:
    """matplotlib's settings for all figures."""
    import matplotlib
    import seaborn

    seaborn.set_theme(context="paper", style="ticks", rc={"axes.grid": True, "grid.color": "#e6e6e6", "font.size": 10})
    matplotlib.rcParams["pdf.fonttype"] = 42  # text stays text
