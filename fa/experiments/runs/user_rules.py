"""Rules and attacks of the user in the figures: which figures they may enter, and under which labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fa.attacks import make_attack
from fa.experiments.runs.variants import VARIANTS, Variant
from fa.rules import make_rule
from fa.utils import plugins
from fa.utils.validation import check

if TYPE_CHECKING:
    from pandas import DataFrame

MOST = 4
"""Number of rules that one figure can show beside its own; as many as `style.USER_LOOKS`."""

NO_RULES = {
    "fig02": "it shows the mean alone",
    "fig03": "it shows what FA's subspace explains",
    "fig08": "it varies FA's lambda",
    "fig09": "it shows FA alone, at several sizes",
    "extra01": "it varies FA's options",
    "extra04": "its detectors are ones of known rules; fa plot shows whom a rule trusted",
    "extra07": "it compares FA with Multi-Krum and its controls",
}
"""Figures that do not compare rules, and what they do."""

NO_ATTACK = {
    "fig06a": "its faults are links that lose packets",
    "fig07": "its workers train on augmented data, and send what they have",
    "extra01": "it compares attacks for which its regimes were chosen",
    "extra04": "it compares attacks that it has names for",
    "extra05": "it compares two attacks",
}
"""Figures whose attack is their subject; Extra 3, which has seven, takes one more."""


def enter(rules: Sequence[str] | None) -> tuple[str, ...]:
    """Return the keys of the user's rules in figures: names that do not depend on the working directory.

    Raises ValueError for an unknown rule, one that the figures already have, too many rules, and equal labels.
    """
    check("rules", rules, rules is None or not isinstance(rules, str), "a list of rules' names")
    keys = tuple(dict.fromkeys(plugins.resolve_spec(name) for name in rules or ()))
    for key in keys:
        check("a rule", key, key not in VARIANTS, "one that the figures do not have already")
    few = f"one of {MOST} at the most, for which there are colours"
    check("a rule", keys[-1] if keys else "", len(keys) <= MOST, few)
    labels = [label(key) for key in keys]
    check("the names of rules", labels, len(set(labels)) == len(labels), "different from each other")
    return keys


def label(key: str) -> str:
    """Return a variant's name in figures; of a user's rule whose name is taken, with its file."""
    if key in VARIANTS:
        return VARIANTS[key].label
    rule = make_rule(key)
    name = rule.name if ":" in rule.name else rule.name.replace("_", " ").capitalize()
    return plugins.display_name(key) if name in {variant.label for variant in VARIANTS.values()} else name


def variant(key: str) -> Variant:
    """Return the variant of that key: one of `VARIANTS`, or a user's rule without options."""
    return VARIANTS[key] if key in VARIANTS else Variant(label(key), key)


def replaced(attack: str) -> str:
    """The attack's name, not depending on the working directory; ValueError for one that there is not."""
    attack = plugins.resolve_spec(attack)
    make_attack(attack)
    return attack


def own_of(table: DataFrame) -> tuple[str, ...]:
    """The rules of the user's own among the variants of a table, in its order."""
    return tuple(key for key in dict.fromkeys(table["variant"]) if key not in VARIANTS)


def known(table: DataFrame) -> DataFrame:
    """The rows on which claims are judged: those of the rules that the figure has anyway."""
    return table[table["variant"].isin(VARIANTS)]


def sent(table: DataFrame) -> str:
    """What the faulty workers of a figure send, for its heading; which other attack it was, the title says."""
    return "the gradients of another attack than in the paper" if "attack" in table else "random gradients"
