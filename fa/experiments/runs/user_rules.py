"""Rules and attacks of the user in the figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fa.attacks import make_attack
from fa.experiments.runs.results import AUGMENTED
from fa.experiments.runs.variants import VARIANTS, Variant
from fa.rules import make_rule
from fa.utils import plugins
from fa.utils.validation import check

if TYPE_CHECKING:
    from pandas import DataFrame

MAX_RULES = 4
"""Number of the user's rules that one figure can show; as many as `style.USER_LOOKS`."""


def register_rules(rules: Sequence[str] | None) -> tuple[str, ...]:
    """Return the keys of the user's rules in figures: names that do not depend on the working directory.

    Args:
        rules: Names of rules; None for none.

    Raises:
        ValueError: A rule is unknown or already in the figures, there are more than MAX_RULES, or labels are equal.
    """
    check("rules", rules, rules is None or not isinstance(rules, str), "a list of rules' names")
    keys = tuple(dict.fromkeys(plugins.resolve_spec(name) for name in rules or ()))
    for key in keys:
        check("a rule", key, key not in VARIANTS, "one that the figures do not have already")
    few = f"one of {MAX_RULES} at the most, for which there are colors"
    check("a rule", keys[-1] if keys else "", len(keys) <= MAX_RULES, few)
    labels = [label(key) for key in keys]
    check("the names of rules", labels, len(set(labels)) == len(labels), "different from each other")
    return keys


def label(key: str) -> str:
    """Return the name of a rule in figures.

    Args:
        key: A key of `VARIANTS`, or the name of a user's rule, such as "FILE.py:NAME".

    Returns:
        The variant's label, or the rule's `name` with a capital letter. The file is added if this is a variant's label.

    Raises:
        ValueError: Unknown rule.

    Example:
        >>> label("multi_krum"), label("geometric_median")
        ('Multi-Krum', 'Geometric median')
    """
    if key in VARIANTS:
        return VARIANTS[key].label
    rule = make_rule(key, f=0)
    name = rule.name if ":" in rule.name else rule.name.replace("_", " ").capitalize()
    return plugins.display_name(key) if name in {variant.label for variant in VARIANTS.values()} else name


def resolve_variant(key: str) -> Variant:
    """Return the variant with this key.

    Args:
        key: A key of `VARIANTS`, or the name of a user's rule, such as "FILE.py:NAME".

    Returns:
        The entry of `VARIANTS`, or a variant with the rule's default options.

    Raises:
        ValueError: Unknown rule.

    Example:
        >>> resolve_variant("krum").label
        'Krum'
    """
    return VARIANTS[key] if key in VARIANTS else Variant(label(key), key)


def resolve_attack(attack: str) -> str:
    """Check an attack, and return its name in a form that does not depend on the working directory.

    Args:
        attack: A name in `fa.attacks`, "FILE.py:NAME", "byzfl:NAME" or an entry point.

    Returns:
        "FILE.py:NAME" with the file's absolute path, and any other name unchanged.

    Raises:
        ValueError: Unknown attack.

    Example:
        >>> resolve_attack("random")
        'random'
    """
    attack = plugins.resolve_spec(attack)
    make_attack(attack)
    return attack


def user_rules_in(table: DataFrame) -> tuple[str, ...]:
    """Return the user's rules in a figure's table.

    Args:
        table: Table with a column `variant`, such as the curves of a study.

    Returns:
        The values of `variant` that are not keys of `VARIANTS`, each once, in the order of the rows.
    """
    return tuple(key for key in dict.fromkeys(table["variant"]) if key not in VARIANTS)


def builtin_rows(table: DataFrame) -> DataFrame:
    """Select the rows that claims are judged by: those without the user's rules.

    Args:
        table: Table with a column `variant`, such as the curves of a study.

    Returns:
        The rows whose variant is a key of `VARIANTS`.
    """
    return table[table["variant"].isin(VARIANTS)]


def attack_heading(table: DataFrame) -> str:
    """Describe the Byzantine workers' gradients for a figure's heading.

    Args:
        table: The curves of a study. They have a column `attack` only if another attack replaces the figure's.

    Returns:
        A noun phrase that completes "Byzantine workers send".
    """
    if table.attrs.get(AUGMENTED):
        return "gradients of augmented images"
    return "the gradients of another attack than in the paper" if "attack" in table else "random gradients"
