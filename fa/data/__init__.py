"""Data sets by name, held in memory.

`fetch` downloads a data set once. `load` returns it as a `Dataset`. Minibatches are in `fa.data.batches`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fa.data.dataset import Dataset, MissingDataError
    from fa.data.download import FetchError, fetch
    from fa.data.registry import NAMES, cache_root, describe, load

__all__ = ["NAMES", "Dataset", "FetchError", "MissingDataError", "cache_root", "describe", "fetch", "load"]

_SOURCES = {
    "NAMES": "fa.data.registry",
    "Dataset": "fa.data.dataset",
    "FetchError": "fa.data.download",
    "MissingDataError": "fa.data.dataset",
    "cache_root": "fa.data.registry",
    "describe": "fa.data.registry",
    "fetch": "fa.data.download",
    "load": "fa.data.registry",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first access, so that the names of samplings need no torch."""
    if name not in _SOURCES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_SOURCES[name]), name)
