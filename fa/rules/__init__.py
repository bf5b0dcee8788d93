"""The aggregation rules by name, and the two ways to call them."""

from dataclasses import fields
from typing import Any

from fa.rules.base import Aggregate, Decision, Rule, per_worker
from fa.rules.bulyan import Bulyan
from fa.rules.coordinate import MeaMed, Median, Phocas, TrimmedMean
from fa.rules.flag import FlagAggregator
from fa.rules.krum import Krum, MultiKrum
from fa.rules.mean import Mean
from fa.utils import plugins
from fa.utils.validation import check, check_one_of

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
)
_BY_NAME = {rule.name: rule for rule in _CLASSES}

RULES = tuple(_BY_NAME)

__all__ = ["RULES", "Aggregate", "Decision", "Rule", "aggregate", "make_rule", "per_worker"]


def make_rule(name: str, f: int = 0, **options: Any) -> Rule:
    """The rule of that name, to withstand f faulty workers: one of RULES, FILE.py:CLASS for a `Rule` of the user's own,
    or one that an installed package brings (entry point "fa.rules"). Raises ValueError for a name, option or value that
    there is not.
    """
    return _make(name, {"f": f} | options)


def _make(name: str, options: dict[str, Any]) -> Rule:
    rule = _class(name)
    known = [field.name for field in fields(rule) if field.init]
    for option in options:
        if option not in known:
            raise ValueError(f"rule {name!r} has no option {option!r}, got {', '.join(known)}")
    return rule(**options)


def _class(name: str) -> type[Rule]:
    if name in _BY_NAME:
        return _BY_NAME[name]
    found = plugins.load("rule", name) if isinstance(name, str) else None
    if found is None:
        check_one_of("rule", name, RULES, plugins.OTHER_SPECS)
    check("rule", name, isinstance(found, type) and issubclass(found, Rule), "a class that is a fa.Rule")
    named = isinstance(getattr(found, "name", None), str)
    check("rule", name, named, 'a class that says how it is called, as in name: ClassVar[str] = "my_rule"')
    lacks = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
    check("rule", name, not lacks, f"a class that has {lacks}")
    return found  # type: ignore[no-any-return]


def aggregate(G: Any, rule: str | Rule = "fa", **options: Any) -> Any:
    """The direction d (n,) of p gradients G (p, n), one worker a row, in G's kind, dtype and device.

    G is a torch tensor or numpy array, or a sequence with one entry a worker: a vector, a list of per-layer tensors
    or a state dict; d then has that shape. `rule` is a name of `RULES`, whose options follow, or a rule. Raises
    ValueError for bad input.
    """
    if isinstance(rule, Rule):
        if options:
            raise ValueError(
                f"options belong to a rule's name; this rule has its own, and {', '.join(options)} came too"
            )
        return rule(G)
    return _make(rule, options)(G)
