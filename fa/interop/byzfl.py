"""Any ByzFL aggregator, pre-aggregator or attack by its name there: "byzfl:GeometricMedian", "byzfl:ALittleIsEnough".

Options keep their names: `make_rule("byzfl:TrMean", f=3)`, `make_rule("byzfl:GeometricMedian", nu=0.1)`; a
pre-aggregator is a step before any rule, told its option in brackets: `preaggregators=("byzfl:ARC", "byzfl:Bucketing(s=3)")`.
What ByzFL draws from global generators it draws here inside a seeded fork of them; an aggregator that keeps a state
from call to call (CenteredClipping) begins each call without one, since rules here have none. After `register()` it
finds this package's rules by name in turn.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from fa.mixing import Factor, Mixture, Situation, Step
from fa.rules import RULES, make_rule
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
    """One of ByzFL's aggregators behind this package's steps `preaggregators`; it sees the gradients themselves."""

    theirs: ClassVar[str]

    @property
    def leaves_span(self) -> bool:
        return True

    def decide(self, gram: Gram) -> Choice:
        raise ValueError(f"{self.name} must see the gradients in memory, of which it is told no Gram matrix")

    def choose(self, G: Columns, rows: Int[np.ndarray, " k"], mixture: Mixture) -> Choice:
        (whole,) = G.parts
        mixed = mixture.of(whole[rows]) if self.steps else whole[rows]
        found = _classes("aggregators.aggregators")[self.theirs]
        theirs = _made(self.name, found, {option: getattr(self, option) for option in _options(found)})
        with global_state(derive("byzfl", self.seed, 0, 0), mixed.device):  # from which CAF and SMEA draw
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
            with global_state(streams(worker).initial_seed(), G.device):
                G[worker] = torch.as_tensor(attacks[name]()(honest)).to(G)

    return Attack(f"byzfl:{name}", False, write)


_STEP = re.compile(r"(\w+)(?:\((\w+)=([^()=]*)\))?")  # NAME or NAME(option=value)
_TAG = 1e-100  # beside numbers near 1 its square is nothing


@cache
def step(name: str) -> Step:
    """ByzFL's pre-aggregator of that name as a step before rules, NAME or NAME(option=value); f is the rule's.

    ValueError for a name, option or value that there is not.
    """
    matched = _STEP.fullmatch(name)
    require(matched is not None or "(" not in name, "a step of byzfl", name, "NAME or NAME(option=value)")
    plain, option, value = matched.groups() if matched else (name, None, None)
    found = _classes("aggregators.preaggregators")
    check_one_of("a step of byzfl", plain, sorted(found))
    theirs, given = found[plain], {} if option is None else {option: _literal(name, value)}
    known = _options(theirs)
    require(given.keys() <= known.keys(), "the option of byzfl:" + plain, option, " or ".join(known))

    def make(f: int) -> Any:
        return _made(f"byzfl:{name}", theirs, ({"f": f} if "f" in known else {}) | given)

    def apply(gram: Gram, situation: Situation) -> tuple[Factor, Gram]:
        with _numpy_state(derive("byzfl", situation.seed, 0, situation.iteration)):  # from which Bucketing draws
            R = _factor(make(situation.f), gram)
        return R, _mixed(gram, R)

    def columns(p: int, f: int) -> int:
        with _numpy_state(0):
            return len(make(f)(np.zeros((p, 1))))

    make(0)  # where a value is none of theirs, they say so at once
    return Step(apply, columns, condition=(1, 1))


def _literal(name: str, value: str | None) -> Any:
    try:
        return ast.literal_eval((value or "").strip())
    except (SyntaxError, ValueError):
        raise ValueError(f"byzfl:{name} must give its option a number; it is {value!r}") from None


def _factor(theirs: Any, gram: Gram) -> Factor:
    """R (p, q) of a pre-aggregator whose vectors are combinations of those it is given, by their norms and distances.

    It is given p vectors of p coordinates with this Gram matrix, the square root of K, and after them the unit vectors
    times a number so small that it changes no norm and no distance: there it leaves its coefficients. Distances
    below a millionth of the norms are rounding there; our own steps tell them apart.
    """
    values, vectors = np.linalg.eigh(gram.cosines)
    roots = gram.norms[:, None] * vectors * np.sqrt(np.maximum(values, 0.0))
    tag = _TAG * gram.scale
    tagged: np.ndarray = theirs(np.hstack([roots, tag * np.eye(gram.p)]))
    return tagged[:, gram.p :].T / tag


def _mixed(gram: Gram, R: Factor) -> Gram:
    """The Gram matrix of G R, R of nonnegative entries: averages, and then their lengths."""
    sums = R.sum(axis=0)
    averages = np.divide(R, sums, out=np.full(R.shape, 1 / len(R)), where=sums > 0)
    return gram.averaged(averages).scaled(sums)


@contextmanager
def _numpy_state(seed: int) -> Iterator[None]:
    """Numpy's global generator seeded inside, and as it was afterwards."""
    before = np.random.get_state()  # noqa: NPY002 (ByzFL draws from it)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


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
    require(all(p.default is not p.empty for p in parameters), "options", one.__name__, "ones with defaults")
    return {parameter.name: parameter.default for parameter in parameters}


def _made(name: str, theirs: type, options: dict[str, Any]) -> Any:
    """One of theirs with these options; the ValueError for a value that they refuse says whose it is."""
    try:
        return theirs(**options)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
