"""Any ByzFL aggregator or attack by its name there: "byzfl:GeometricMedian", "byzfl:ALittleIsEnough".

Options keep their names: `make_rule("byzfl:TrMean", f=3)`, `make_rule("byzfl:GeometricMedian", nu=0.1)`. What ByzFL
draws from global generators it draws here inside a seeded fork of them; an aggregator that keeps a state from call to
call (CenteredClipping) begins each call without one, since rules here have none.
"""

from __future__ import annotations

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
from fa.checks import check_one_of, require
from fa.columns import Columns
from fa.gram import Gram
from fa.mixing import Mixture
from fa.rules.base import Choice, Rule
from fa.seeds import derive, global_state


def _library() -> Any:
    try:
        import byzfl
    except ImportError as error:
        raise ValueError(f"byzfl: rules and attacks need the library byzfl ({error}): pip install byzfl") from error
    return byzfl


def _classes(kind: str) -> dict[str, type]:
    """ByzFL's aggregators, pre-aggregators or attacks by their names."""
    library = _library()
    found = inspect.getmembers(library, inspect.isclass)
    return {name: one for name, one in found if one.__module__ == f"byzfl.{kind}"}


class ByzFLRule(Rule):
    """One of ByzFL's aggregators behind this package's steps `before`; it sees the gradients themselves."""

    theirs: ClassVar[str]

    @property
    def leaves_span(self) -> bool:
        return True

    def decide(self, gram: Gram) -> Choice:
        raise ValueError(f"{self.name} must see the gradients in memory, of which it is told no Gram matrix")

    def choose(self, G: Columns, rows: Int[np.ndarray, " k"], mixture: Mixture) -> Choice:
        (whole,) = G.parts
        mixed = whole[rows]
        if self.steps:
            mixed = torch.from_numpy(mixture.R.T).to(mixed) @ mixed
        with global_state(derive("byzfl", self.seed, 0, 0), mixed.device):  # from which CAF and SMEA draw
            direction = self._aggregator()(mixed.float() if mixed.dtype in (torch.float16, torch.bfloat16) else mixed)
        return Choice(direction=torch.as_tensor(direction).to(mixed))

    def _aggregator(self) -> Any:
        theirs = _classes("aggregators.aggregators")[self.theirs]
        try:
            return theirs(**{option: getattr(self, option) for option in _options(theirs)})
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error


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
            with global_state(streams(worker).initial_seed(), G.device):
                G[worker] = torch.as_tensor(attacks[name]()(honest)).to(G)

    return Attack(f"byzfl:{name}", False, write)


def _options(one: type) -> dict[str, Any]:
    """The options of one of ByzFL's classes, with their defaults."""
    parameters = list(inspect.signature(one.__init__).parameters.values())[1:]  # type: ignore[misc]
    require(all(p.default is not p.empty for p in parameters), "options", one.__name__, "ones with defaults")
    return {parameter.name: parameter.default for parameter in parameters}
