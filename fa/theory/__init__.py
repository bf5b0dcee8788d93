"""Computations that only the theory notebooks use."""

import importlib
from typing import Any

_MODULES = ("algorithm1_line5", "breakdown", "optimality", "quantization")


def __getattr__(name: str) -> Any:
    """Import a module of this package on first access."""
    if name in _MODULES:
        return importlib.import_module(f"fa.theory.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
