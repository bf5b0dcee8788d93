"""Rules and attacks of other libraries, under names LIBRARY:NAME, and a strategy for Flower.

A `fa.Rule` needs no adapter in the other direction: it accepts a list of vectors and returns a vector.
"""

import importlib
from typing import Any

_LIBRARIES = ("byzfl", "flower")


def __getattr__(name: str) -> Any:
    """Import the module for a library on first access."""
    if name in _LIBRARIES:
        return importlib.import_module(f"fa.interop.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
