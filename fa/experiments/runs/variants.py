"""Variants: the rules with their options that figures compare, and the names of data sets and models."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fa.rules import Rule, make_rule


@dataclass(frozen=True)
class Variant:
    """A rule with its options, and its name in figures."""

    label: str
    rule: str
    options: tuple[tuple[str, Any], ...] = ()

    def make_rule(self, f: int) -> Rule:
        """Create the rule with its options.

        Args:
            f: Number of Byzantine workers to tolerate.

        Returns:
            The rule.
        """
        return make_rule(self.rule, f=f, **dict(self.options))


_PRINTED = (("preaggregators", ()),)
_RELEASED = (("formulation", "released"),)
_UNIT = (("preaggregators", ("unit",)),)

VARIANTS = MappingProxyType(
    {
        "fa": Variant("FA", "fa", _RELEASED),
        "bulyan": Variant("Bulyan", "bulyan", _RELEASED),
        "multi_krum": Variant("Multi-Krum", "multi_krum"),
        "median": Variant("Median", "median"),
        "meamed": Variant("MeaMed", "meamed"),
        "phocas": Variant("Phocas", "phocas"),
        "trimmed_mean": Variant("Trimmed Mean", "trimmed_mean"),
        "mean": Variant("Mean", "mean"),
        "fa_printed": Variant("FA as printed", "fa", _PRINTED),
        "fa_default": Variant("FA, this package's default", "fa"),
        "bulyan_printed": Variant("Bulyan as printed", "bulyan"),
        "mean_unit": Variant("Mean of unit gradients", "mean", _UNIT),
    }
)
"""All variants, in the order of a legend."""

PAPER_RULES = ("fa", "bulyan", "multi_krum", "median", "meamed", "phocas", "trimmed_mean")
"""The seven rules of the paper's figures."""

PAPER_RULES_AND_MEAN = (*PAPER_RULES, "mean")
"""The curves of most figures."""

OTHER_RULES = (*PAPER_RULES[1:], "mean")
"""The rules that FA is compared with: the paper's other rules and the mean."""

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
