"""What a user could call in place of a rule: other libraries, plain torch, and FA as the paper computes it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fa.experiments.measurements.cost import svd_steps

Aggregator = Callable[[Tensor], object]
"""Takes G (p, n); what it returns is not looked at."""


class Library(NamedTuple):
    """A library that has some of the rules."""

    install: str
    rules: Mapping[str, Callable[[Any, int, int], Aggregator]]
    """By the rule's name here: of the module, p and f, what aggregates."""


def _rows(aggregator: Any) -> Aggregator:
    return lambda G: aggregator.aggregate(list(G))


LIBRARIES = {
    "byzfl": Library(
        "pip install byzfl",
        {
            "mean": lambda module, p, f: module.Average(),
            "median": lambda module, p, f: module.Median(),
            "trimmed_mean": lambda module, p, f: module.TrMean(f),
            "meamed": lambda module, p, f: module.Meamed(f),
            "krum": lambda module, p, f: module.Krum(f),
            "multi_krum": lambda module, p, f: module.MultiKrum(f),
        },
    ),
    # Its own limits exclude torch 2.6 and newer, with which these rules work nevertheless.
    "byzpy": Library(
        "pip install --no-deps byzpy cloudpickle",
        {
            "median": lambda module, p, f: _rows(module.CoordinateWiseMedian()),
            "trimmed_mean": lambda module, p, f: _rows(module.CoordinateWiseTrimmedMean(f)),
            "krum": lambda module, p, f: _rows(module.Krum(f)),
            "multi_krum": lambda module, p, f: _rows(module.MultiKrum(f, p - f)),
        },
    ),
}
_PARTS = {
    "byzfl": ("byzfl",),
    "byzpy": ("byzpy.aggregators.coordinate_wise", "byzpy.aggregators.geometric_wise"),
}


class Missing(ValueError):
    """A library that is not installed; the message says how to get it."""


def of_library(library: str, p: int, f: int) -> dict[str, Aggregator]:
    """By the rule's name here, the library's aggregators for p workers of which f are faulty; raises Missing."""
    module = _Parts(library)
    return {rule: make(module, p, f) for rule, make in LIBRARIES[library].rules.items()}


class _Parts:
    """The names of several modules as one."""

    def __init__(self, library: str) -> None:
        try:
            self._modules = [importlib.import_module(name) for name in _PARTS[library]]
        except ImportError as error:
            raise Missing(f"{library} is left out ({error}): {LIBRARIES[library].install}") from error

    def __getattr__(self, name: str) -> Any:
        return next(getattr(module, name) for module in self._modules if hasattr(module, name))


def of_torch() -> dict[str, Aggregator]:
    """By the rule's name here, what torch has of itself."""
    return {"mean": lambda G: G.mean(dim=0), "median": lambda G: G.median(dim=0)}


def as_the_paper(steps: int) -> Aggregator:
    """FA by an SVD of the n x p matrix at each of so many steps."""
    return partial(_svd_steps, steps)


def _svd_steps(steps: int, G: Tensor) -> object:
    return svd_steps([row[None] for row in G], steps=steps)


def a_plain_read(G: Tensor) -> Tensor:
    """One pass over G that does nothing else worth mentioning."""
    return torch.sum(G)
