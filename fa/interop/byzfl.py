"""ByzFL's aggregators and attacks under their names there: "byzfl:GeometricMedian", "byzfl:ALittleIsEnough".

Options keep their names: `make_rule("byzfl:TrMean", f=3)`, `make_rule("byzfl:GeometricMedian", nu=0.1)`.
Where ByzFL draws from global generators, these are seeded for the call and restored after it. An aggregator that keeps
a state between calls (CenteredClipping) starts each call without one, since rules are stateless.
`register()` makes this package's rules available in ByzFL.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import field, fields, make_dataclass
from functools import cache, partial
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from fa.attacks import Attack, Streams
from fa.gradients.gram import Gram
from fa.rules import RULES, ColumnDecision, Rule, make_rule
from fa.rules.preaggregators import MixedGradients
from fa.utils.seeds import derive_seed, fork_global_rng
from fa.utils.validation import check, check_one_of


def _library() -> Any:
    """Import ByzFL, or raise ValueError with the command that installs it."""
    try:
        import byzfl
    except ImportError as error:
        raise ValueError(f"byzfl: rules and attacks need the library byzfl ({error}): pip install byzfl") from error
    return byzfl


def _classes(kind: str) -> dict[str, type]:
    """Return ByzFL's aggregators or attacks by name."""
    members = inspect.getmembers(_library(), inspect.isclass)
    return {name: member for name, member in members if member.__module__ == f"byzfl.{kind}"}


class ByzFLRule(Rule):
    """An aggregator of ByzFL behind this package's pre-aggregators. It computes d from the gradients themselves.

    Attributes:
        aggregator: Name of the aggregator in ByzFL.
    """

    aggregator: ClassVar[str]

    @property
    def needs_gradients(self) -> bool:
        """True, since an aggregator need not return a combination of the gradients."""
        return True

    def decide(self, gram: Gram) -> ColumnDecision:
        """Raise ValueError, because ByzFL's aggregators need the gradients.

        Args:
            gram: Not used.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{self.name} needs the gradients in memory and cannot decide from their Gram matrix")

    def decide_from_gradients(self, G: Tensor, mixed: MixedGradients) -> ColumnDecision:
        """Apply the aggregator to the mixed gradients.

        Args:
            G: Gradients (p, n).
            mixed: The pre-aggregators' mixture of the rows.

        Returns:
            The direction, of the gradients' dtype. Half precision is computed in float32.

        Raises:
            ValueError: ByzFL rejects an option, or fails on these gradients.
        """
        columns = mixed.apply_to(G) if self.preaggregator_names else G
        aggregator = self._aggregator()
        # CAF and SMEA draw from the global generators.
        with fork_global_rng(derive_seed("byzfl", self.seed, 0, 0), columns.device):
            wide = columns.float() if columns.dtype in (torch.float16, torch.bfloat16) else columns
            try:
                direction = torch.as_tensor(aggregator(wide), device=wide.device)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, TypeError) as error:  # such as of NaN, which CAF computes from zeros
                raise ValueError(f"{self.name} cannot aggregate these gradients: {error}") from error
        return ColumnDecision(direction=direction.to(G))

    def _aggregator(self) -> Any:
        """Create ByzFL's aggregator with this rule's options; its errors name the rule."""
        aggregator = _classes("aggregators.aggregators")[self.aggregator]
        return _create(self.name, aggregator, {option: getattr(self, option) for option in _options(aggregator)})


def __getattr__(name: str) -> type[Rule]:
    """Return the class of a rule, with which pickle finds it."""
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        return rule(name)
    except ValueError as error:
        raise AttributeError(str(error)) from error


@cache
def rule(name: str) -> type[Rule]:
    """Create the rule class of one of ByzFL's aggregators.

    Args:
        name: Name of the aggregator in ByzFL, whose options become the rule's.

    Returns:
        A subclass of `fa.Rule`.

    Raises:
        ValueError: ByzFL is not installed or has no such aggregator.
    """
    aggregators = _classes("aggregators.aggregators")
    check_one_of("a rule of byzfl", name, sorted(aggregators))
    aggregator = aggregators[name]
    inherited = {option.name for option in fields(Rule)}
    options = [
        (option, type(default), field(default=default))
        for option, default in _options(aggregator).items()
        if option not in inherited
    ]
    attributes = {
        "name": f"byzfl:{name}",
        "aggregator": name,
        "__doc__": aggregator.__doc__,
        "__module__": __name__,
    }
    return make_dataclass(name, options, bases=(ByzFLRule,), namespace=attributes, frozen=True, kw_only=True)


_AGAINST_RULE = {"agg", "pre_agg_list", "f"}
"""Options of ByzFL's attacks that search for the best factor against an aggregator."""


@cache
def attack(name: str) -> Attack:
    """Create an attack from one of ByzFL's, whose options become the attack's.

    Attacks that search for a factor use the run's rule and number of Byzantine workers instead of ByzFL's defaults.

    Args:
        name: Name of the attack in ByzFL, with its options if they are not the defaults: "ALittleIsEnough(tau=3.0)".

    Returns:
        The attack, which passes the honest gradients to ByzFL's.

    Raises:
        ValueError: ByzFL is not installed or has no such attack or option, or the attack needs ByzFL's own clients.
    """
    attacks = _classes("attacks.attacks")
    label, _, text = name.partition("(")
    check_one_of("an attack of byzfl", label, sorted(attacks))
    # There, clients flip the labels, and the attack on gradients is the honest mean: no attack at all.
    sufficient = label != "LabelFlipping"
    needed = "one on gradients, which does not need ByzFL's clients"
    check("an attack of byzfl", label, sufficient, needed, "Use label_flipping.")
    spec, defaults, explicit = f"byzfl:{name}", _options(attacks[label]), _call_options(name, text)
    try:
        attacks[label](**explicit)
    except (TypeError, ValueError) as error:
        raise ValueError(f"an attack of byzfl must have valid options, got {name!r} ({error})") from error
    searches = defaults.keys() >= _AGAINST_RULE

    def write(
        G: Tensor, byzantine: Sequence[int], streams: Streams, rule: Any = None, iteration: int = 0, **changed: Any
    ) -> None:
        """Write the Byzantine workers' gradients into G."""
        excluded = set(byzantine)
        honest = G[[worker for worker in range(len(G)) if worker not in excluded]]
        against = {"agg": partial(_aggregate, rule, iteration), "pre_agg_list": [], "f": len(excluded)}
        for worker in byzantine:
            with fork_global_rng(streams(worker).initial_seed(), G.device):
                made = _create(spec, attacks[label], ({} if rule is None else against) | explicit | changed)
                G[worker] = torch.as_tensor(made(honest), device=G.device).to(G)

    options = {option: value for option, value in defaults.items() if not searches or option not in _AGAINST_RULE}
    allowed = {option: explicit.get(option, value) for option, value in options.items()}
    return Attack(spec, False, write, MappingProxyType(allowed), uses_rule=searches)


def _aggregate(rule: Rule, iteration: int, vectors: Tensor) -> Tensor:
    return torch.as_tensor(rule(vectors, iteration), device=vectors.device)


def _create(spec: str, library_class: type, options: dict[str, Any]) -> Any:
    """Create an object of ByzFL; its errors about an option name the rule or attack."""
    try:
        return library_class(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{spec}: {error}") from error


def _call_options(name: str, text: str) -> dict[str, Any]:
    """Return the keyword arguments of NAME(KEY=NUMBER, ...), whose part after the first parenthesis is `text`."""
    if not text:
        return {}
    try:
        call = ast.parse(f"options({text}", mode="eval").body
        assert isinstance(call, ast.Call)
        assert not call.args
        return {str(option.arg): ast.literal_eval(option.value) for option in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise ValueError(f"an attack of byzfl must be NAME or NAME(OPTION=VALUE, ...), got {name!r}") from error


def _of_one_dtype(G: Any) -> Any:
    """Cast gradients to the most frequent dtype, since ByzFL's Inf attack sends float64 whatever the others send."""
    if not isinstance(G, Sequence) or not all(isinstance(g, Tensor) for g in G):
        return G
    ((usual, _),) = Counter(g.dtype for g in G).most_common(1)
    return [g.to(usual) for g in G]


def register() -> None:
    """Add the rules of `fa.RULES` to ByzFL's aggregators, as "fa:fa", "fa:krum" and so on.

    ByzFL's RobustAggregator, Server and benchmark then accept `{"name": "fa:fa", "parameters": {"f": 3}}`.

    Raises:
        ValueError: ByzFL is not installed.
    """
    _library()
    aggregators = importlib.import_module("byzfl.aggregators.aggregators")
    for name in RULES:
        cls = type(make_rule(name, f=0))
        call = {"__call__": lambda rule, G: rule.aggregate(_of_one_dtype(G)).direction}
        setattr(aggregators, f"fa:{name}", type(cls.__name__, (cls,), call))


def _options(library_class: type) -> dict[str, Any]:
    """Return the options of one of ByzFL's classes, with their defaults."""
    parameters = list(inspect.signature(library_class.__init__).parameters.values())[1:]  # type: ignore[misc]
    optional = all(parameter.default is not parameter.empty for parameter in parameters)
    check("options", library_class.__name__, optional, "ones with defaults")
    return {parameter.name: parameter.default for parameter in parameters}
