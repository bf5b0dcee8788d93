"""Any ByzFL aggregator or attack by its name there: "byzfl:GeometricMedian", "byzfl:ALittleIsEnough".

Options keep their names: `make_rule("byzfl:TrMean", f=3)`, `make_rule("byzfl:GeometricMedian", nu=0.1)`.
What ByzFL draws from global generators it draws here inside a seeded fork of them; an aggregator that keeps a state
from call to call (CenteredClipping) begins each call without one, since rules here have none. After `register()` it
finds this package's rules by name in turn.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import field, fields, make_dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fa.attacks import Attack, Streams
from fa.gradients.blocks import ColumnBlocks
from fa.gradients.gram import Gram
from fa.rules import RULES, make_rule
from fa.rules.base import Choice, Rule
from fa.rules.preaggregators import Mixture
from fa.utils.seeds import derive_seed, fork_global_rng
from fa.utils.validation import check, check_one_of


def _library() -> Any:
    try:
        import byzfl
    except ImportError as error:
        raise ValueError(f"byzfl: rules and attacks need the library byzfl ({error}): pip install byzfl") from error
    return byzfl


def _classes(kind: str) -> dict[str, type]:
    """ByzFL's aggregators or attacks by their names."""
    library = _library()
    found = inspect.getmembers(library, inspect.isclass)
    return {name: one for name, one in found if one.__module__ == f"byzfl.{kind}"}


class ByzFLRule(Rule):
    """One of ByzFL's aggregators behind this package's `preaggregators`; it sees the gradients themselves."""

    theirs: ClassVar[str]

    @property
    def leaves_span(self) -> bool:
        return True

    def decide(self, gram: Gram) -> Choice:
        raise ValueError(f"{self.name} must see the gradients in memory, of which it is told no Gram matrix")

    def choose(self, G: ColumnBlocks, rows: Int[np.ndarray, " k"], mixture: Mixture) -> Choice:
        (whole,) = G.blocks
        mixed = mixture.of(whole[rows]) if self.steps else whole[rows]
        found = _classes("aggregators.aggregators")[self.theirs]
        theirs = _made(self.name, found, {option: getattr(self, option) for option in _options(found)})
        with fork_global_rng(derive_seed("byzfl", self.seed, 0, 0), mixed.device):  # from which CAF and SMEA draw
            direction = theirs(mixed.float() if mixed.dtype in (torch.float16, torch.bfloat16) else mixed)
        return Choice(direction=torch.as_tensor(direction).to(mixed))


@cache
def rule(name: str) -> type[Rule]:
    """The rule class of ByzFL's aggregator of that name, with its options; ValueError for a name that there is not."""
    aggregators = _classes("aggregators.aggregators")
    check_one_of("a rule of byzfl", name, sorted(aggregators))
    taken = {known.name for known in fields(Rule)}
    own = [
        (key, type(value), field(default=value))
        for key, value in _options(aggregators[name]).items()
        if key not in taken
    ]
    body = {"name": f"byzfl:{name}", "theirs": name, "__doc__": aggregators[name].__doc__, "__module__": __name__}
    made: type[Rule] = make_dataclass(name, own, bases=(ByzFLRule,), namespace=body, frozen=True, kw_only=True, eq=True)
    return made


@cache
def attack(name: str) -> Attack:
    """ByzFL's attack of that name, with its defaults; ValueError for a name that there is not."""
    attacks = _classes("attacks.attacks")
    check_one_of("an attack of byzfl", name, sorted(attacks))

    def write(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
        faulty = set(byzantine)
        honest = G[[worker for worker in range(len(G)) if worker not in faulty]]
        for worker in byzantine:
            with fork_global_rng(streams(worker).initial_seed(), G.device):
                G[worker] = torch.as_tensor(attacks[name]()(honest)).to(G)

    return Attack(f"byzfl:{name}", False, write)


def register() -> None:
    """Let ByzFL's RobustAggregator, Server and benchmark find the rules of `fa.RULES`, "fa:fa", "fa:krum" and so on,
    beside its own aggregators: `{"name": "fa:fa", "parameters": {"f": 3}}`.
    """
    _library()
    theirs = importlib.import_module("byzfl.aggregators.aggregators")
    for name in RULES:
        setattr(theirs, f"fa:{name}", type(make_rule(name)))


def _options(one: type) -> dict[str, Any]:
    """The options of one of ByzFL's classes, with their defaults."""
    parameters = list(inspect.signature(one.__init__).parameters.values())[1:]  # type: ignore[misc]
    check("options", one.__name__, all(p.default is not p.empty for p in parameters), "ones with defaults")
    return {parameter.name: parameter.default for parameter in parameters}


def _made(name: str, theirs: type, options: dict[str, Any]) -> Any:
    """One of theirs with these options; the ValueError for a value that they refuse says whose it is."""
    try:
        return theirs(**options)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
