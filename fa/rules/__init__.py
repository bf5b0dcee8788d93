"""Aggregation rules: the rules by name, `make_rule` and `aggregate`, and the classes that a rule of your own needs."""

from dataclasses import fields
from typing import Any

import numpy as np

from fa.rules.application import OrderStatistic
from fa.rules.base import Rule
from fa.rules.bulyan import Bulyan
from fa.rules.caf import CAF
from fa.rules.centered_clipping import CenteredClipping
from fa.rules.coordinate import MeaMed, Median, Phocas, TrimmedMean
from fa.rules.decision import Aggregate, ColumnDecision, Decision, per_worker
from fa.rules.flag import FlagAggregator
from fa.rules.geometric_median import GeometricMedian
from fa.rules.krum import Krum, MultiKrum
from fa.rules.mean import Mean
from fa.rules.minimum_diameter import MinimumDiameterAveraging
from fa.rules.monna import MoNNA
from fa.utils import plugins
from fa.utils.tracing import untraced
from fa.utils.validation import check, check_one_of
from fa.utils.warn import warn

_CLASSES: tuple[type[Rule], ...] = (
    Mean,
    Median,
    TrimmedMean,
    MeaMed,
    Phocas,
    Krum,
    MultiKrum,
    Bulyan,
    FlagAggregator,
    GeometricMedian,
    CenteredClipping,
    MinimumDiameterAveraging,
    CAF,
    MoNNA,
)
_BY_NAME = {rule.name: rule for rule in _CLASSES}

RULES = tuple(_BY_NAME)
"""Names of the rules of this package."""

_warned: set[tuple[str, str]] = set()  # names of rules with the warnings that were issued for them

__all__ = [
    "RULES",
    "Aggregate",
    "ColumnDecision",
    "Decision",
    "OrderStatistic",
    "Rule",
    "aggregate",
    "make_rule",
    "per_worker",
]


def make_rule(name: str, f: int | None = None, **options: Any) -> Rule:
    """Create an aggregation rule.

    Args:
        name: A name in `RULES`, "FILE.py:CLASS" for a `Rule` in a file, "byzfl:NAME" for an aggregator of ByzFL, or an
            entry point of the group "fa.rules".
        f: Number of Byzantine workers to tolerate. None: 0, and the first time a warning if the rule depends on f.
        options: Other options of the rule, such as `preaggregators`. The first time that FA gets ones that do not bound
            norms, it warns.

    Returns:
        The rule; rules are immutable and have no state.

    Raises:
        ValueError: The name, an option or its value is invalid.

    Example:
        >>> import fa
        >>> fa.make_rule("multi_krum", f=1, keep=3)
        MultiKrum(f=1, preaggregators=(), seed=0, strict=True, neighbours='p-f-2', distance='squared', keep=3)
    """
    return _make(name, {"f": f} | options)


def _make(name: str, options: dict[str, Any]) -> Rule:
    """Create a rule, and warn once of options that expose it."""
    rule = _rule_class(name)
    if options.get("f", 0) is None:
        options = {option: value for option, value in options.items() if option != "f"}
    allowed = [field.name for field in fields(rule) if field.init]
    for option in options:
        check_one_of(f"the option of rule {name!r}", option, allowed)
    if name in _BY_NAME:
        numpy = np.ndarray | np.generic
        options = {key: value.tolist() if isinstance(value, numpy) else value for key, value in options.items()}
    created = rule(**options)
    message = created.exposure(options)
    if message and (name, message) not in _warned:
        _warned.add((name, message))  # Python's own memory of warnings is lost with every `warnings.catch_warnings`.
        warn(message)
    return created


def _rule_class(name: str) -> type[Rule]:
    check("rule", name, isinstance(name, str), "a name, or a fa.Rule where one is accepted")
    if name in _BY_NAME:
        return _BY_NAME[name]
    rule = plugins.load("rule", name)
    if rule is None:
        check_one_of("rule", name, RULES, plugins.OTHER_SPECS)
    check("rule", name, isinstance(rule, type) and issubclass(rule, Rule), "a class that is a fa.Rule")
    named = isinstance(getattr(rule, "name", None), str)
    check("rule", name, named, 'a class with a name, as in name: ClassVar[str] = "my_rule"')
    missing = ", ".join(sorted(getattr(rule, "__abstractmethods__", ())))
    check("rule", name, not missing, f"a class that defines {missing}")
    pair = rule.min_workers
    whole = isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(number, int) for number in pair)
    check("min_workers", pair, whole, "a pair of integers (times, plus): the rule needs p >= times f + plus")
    return rule  # type: ignore[no-any-return]


def as_rule(rule: Any) -> Rule:
    """Return a rule, created with its defaults from a name.

    Args:
        rule: A rule, or a name as in `make_rule`.

    Raises:
        ValueError: Neither a rule nor a valid name.

    Example:
        >>> as_rule("median").name
        'median'
    """
    check("rule", rule, isinstance(rule, Rule | str), "a fa.Rule or a name", "fa.make_rule returns a rule.")
    return make_rule(rule) if isinstance(rule, str) else rule


@untraced
def aggregate(G: Any, rule: str | Rule = "fa", **options: Any) -> Any:
    """Aggregate p gradients of n coordinates into one direction.

    Args:
        G: (p, n) torch tensor or numpy array, one worker in each row; or a sequence with one entry for each worker: a
            vector, a list of per-layer tensors, or a state dict.
        rule: A `Rule`, or a name as in `make_rule`.
        options: Options of the rule, if `rule` is a name.

    Returns:
        The direction d (n,), in the format, dtype and device of G's rows.

    Raises:
        ValueError: G, the rule or an option is invalid.

    Example:
        >>> import numpy as np, fa
        >>> fa.aggregate(np.array([[1.0, 2.0], [3.0, 2.0], [90.0, 2.0]]), "median")
        array([3., 2.])
    """
    if isinstance(rule, Rule):
        check("options", options, not options, "options of a rule's name", "Pass them to make_rule")
        return rule(G)
    return _make(rule, options)(G)
