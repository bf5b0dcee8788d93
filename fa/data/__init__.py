"""Data sets by name, in memory: `load`, after `fetch` for those that are not embedded. Minibatches: fa.data.batches."""

from fa.data.dataset import Dataset, MissingDataError
from fa.data.fetching import FetchError, fetch
from fa.data.registry import NAMES, cache_root, describe, load

__all__ = ["NAMES", "Dataset", "FetchError", "MissingDataError", "cache_root", "describe", "fetch", "load"]
