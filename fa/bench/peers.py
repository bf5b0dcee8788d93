"""Alternatives to the rules: other libraries, torch, and FA by SVDs as the paper computes it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from math import comb
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fa.experiments.measurements.cost import svd_steps

Aggregator = Callable[[Tensor], object]
"""Takes G (p, n). Its result is not used."""


class Library(NamedTuple):
    """A library that implements some of the rules."""

    install: str
    rules: Mapping[str, Callable[[Any, int, int], Aggregator | None]]
    """Maker of an aggregator from the library's modules, p and f, by the rule's name here; None if it takes hours."""


_SETS = 10_000
"""Number of sets up to which a search through all of them is timed."""


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
            "geometric_median": lambda module, p, f: module.GeometricMedian(),
            "centered_clipping": lambda module, p, f: module.CenteredClipping(),
            "minimum_diameter_averaging": lambda module, p, f: module.MDA(f) if comb(p, f) <= _SETS else None,
            "caf": lambda module, p, f: module.CAF(f),
            "monna": lambda module, p, f: module.MoNNA(f),
        },
    ),
    # Its requirements exclude torch 2.6 and newer, but these rules work with it.
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
_MODULES = {
    "byzfl": ("byzfl",),
    "byzpy": ("byzpy.aggregators.coordinate_wise", "byzpy.aggregators.geometric_wise"),
}


class Missing(ValueError):
    """A missing library. The message has the command that installs it."""


def library_aggregators(library: str, p: int, f: int) -> dict[str, Aggregator]:
    """Return a library's aggregators by the rule's name here.

    Args:
        library: A key of `LIBRARIES`.
        p: Number of workers.
        f: Number of Byzantine workers to tolerate.

    Raises:
        Missing: The library is not installed.
    """
    module = _Namespace(library)
    made = {rule: make(module, p, f) for rule, make in LIBRARIES[library].rules.items()}
    return {rule: aggregator for rule, aggregator in made.items() if aggregator is not None}


class _Namespace:
    """The names of several modules in one namespace."""

    def __init__(self, library: str) -> None:
        try:
            self._modules = [importlib.import_module(name) for name in _MODULES[library]]
        except ImportError as error:
            raise Missing(f"{library} is not timed ({error}): {LIBRARIES[library].install}") from error

    def __getattr__(self, name: str) -> Any:
        return next(getattr(module, name) for module in self._modules if hasattr(module, name))


def torch_aggregators() -> dict[str, Aggregator]:
    """Return torch's own mean and median, by the rule's name here."""
    return {"mean": lambda G: G.mean(dim=0), "median": lambda G: G.median(dim=0)}


def svd_flag_aggregator(steps: int) -> Aggregator:
    """Create FA as the paper's cost model has it: each step is an SVD of the n x p matrix.

    Args:
        steps: Number of steps, at least 1. The released code takes 1, and the paper at most 5.

    Returns:
        A function of G (p, n), which computes the explained variances and d; see `svd_steps`.
    """
    return lambda G: svd_steps([row[None] for row in G], steps=steps)


def read_once(G: Tensor) -> Tensor:
    """Read G once, as a lower bound on the time of any rule.

    Args:
        G: Gradients (p, n).

    Returns:
        The sum of all entries, a scalar of G's dtype.
    """
    return torch.sum(G)
