"""Data sets by name, held in memory.

`fetch` downloads a data set once. `load` returns it as a `Dataset`. Minibatches are in `fa.data.batches`.
"""

from typing import TYPE_CHECKING

from fa.utils.lazy import lazy_names

if TYPE_CHECKING:
    from fa.data.dataset import Dataset, MissingDataError
    from fa.data.download import FetchError, fetch
    from fa.data.registry import NAMES, cache_root, describe, load

__all__ = ["NAMES", "Dataset", "FetchError", "MissingDataError", "cache_root", "describe", "fetch", "load"]

# Imported on first access, so that the names of samplings need no torch.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "NAMES": "fa.data.registry",
        "Dataset": "fa.data.dataset",
        "FetchError": "fa.data.download",
        "MissingDataError": "fa.data.dataset",
        "cache_root": "fa.data.registry",
        "describe": "fa.data.registry",
        "fetch": "fa.data.download",
        "load": "fa.data.registry",
    },
)
