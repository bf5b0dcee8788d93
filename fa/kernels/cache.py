"""numba's cache of compiled loops, whose files are believed only as they were written: a disk that was full, or lost
power, leaves files that numba would fail on, and bits that have turned would be executed.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

SEAL = ".sha256"  # beside each file of numba's: its checksum


class _Sealed(caching.IndexDataCacheFile):
    """An index and its data files; what is damaged counts as missing, so that it is compiled and written anew."""

    def _load_index(self) -> Any:
        return super()._load_index() if _whole(self._index_path) else {}

    def save(self, key: Any, data: Any) -> None:
        with suppress(OSError):  # a full disk: what was compiled is used, and is compiled again the next time
            super().save(key, data)

    def _save_index(self, overloads: Any) -> None:
        super()._save_index(overloads)
        _seal(self._index_path)

    def _load_data(self, name: str) -> Any:
        path = self._data_path(name)
        if not _whole(path):
            raise FileNotFoundError(path)  # which numba takes for a file that somebody has removed
        return super()._load_data(name)

    def _save_data(self, name: str, data: Any) -> None:
        super()._save_data(name, data)
        _seal(self._data_path(name))


def jit(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """numba.njit with these options and a sealed cache."""

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        dispatcher = numba.njit(cache=True, **options)(function)
        cache = dispatcher._cache
        stamp = cache._impl.locator.get_source_stamp()
        cache._cache_file = _Sealed(cache.cache_path, cache._impl.filename_base, stamp)
        return dispatcher  # type: ignore[no-any-return]

    return compiled


def _seal(path: str) -> None:
    Path(path + SEAL).write_text(_checksum(path))


def _whole(path: str) -> bool:
    try:
        return Path(path + SEAL).read_text() == _checksum(path)
    except (OSError, UnicodeDecodeError):
        return False


def _checksum(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
