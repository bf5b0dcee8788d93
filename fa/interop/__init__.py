"""Other libraries' rules, steps and attacks as ones of this package, named LIBRARY:NAME wherever a name is taken.

The other way round little is needed: a `fa.Rule` takes a list of vectors and returns one, as they expect; Flower, which
wants a strategy, has one.
"""

import importlib
from typing import Any

_LIBRARIES = ("byzfl", "flower")


def __getattr__(name: str) -> Any:
    """What knows a library, when it is first used."""
    if name in _LIBRARIES:
        return importlib.import_module(f"fa.interop.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
