"""Compile loops with numba, and keep them on disk where a crash or a full disk cannot spoil them.

numba writes its cache files in place and trusts what it reads. A power cut or a full disk leaves files that numba fails
on, and flipped bits would be executed. Here each file has its checksum beside it. A file whose checksum differs counts
as missing, so it is compiled and written again. None of numba's documented settings does that.

numba also recompiles a function only if the function's own file changes, not if a function that it calls does. Here
every change in this folder recompiles all.

This is the only module that uses numba's private classes: `numba.core.caching.IndexDataCacheFile` and a dispatcher's
`_cache`. Tested with numba 0.61 to 0.68.
"""

import hashlib
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import caching

_SUFFIX = ".sha256"
_NO_CACHE = "each process compiles its loops anew, since none of numba's cache folders is writable: set NUMBA_CACHE_DIR"
_SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "ENABLE_AVX", "BOUNDSCHECK", "DEBUGINFO_DEFAULT")
_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}  # Without "nnan" and "ninf": the loops must detect NaN and Inf.


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function on its first call, and store its machine code on disk.

    The compiled function releases the GIL.

    Args:
        function: Function in the subset of Python that numba compiles.

    Returns:
        The compiled function.
    """
    compile_loop = partial(numba.njit, nogil=True, fastmath=_FASTMATH, error_model="numpy")
    try:
        dispatcher: Any = compile_loop(cache=True)(function)
    except RuntimeError:  # Neither the installation nor the user's cache folder can be written to.
        warnings.warn(_NO_CACHE, RuntimeWarning, stacklevel=1)  # once: Python shows a warning of one line once
        return compile_loop()(function)
    if dispatcher is function:
        return _refusing(function)
    cache = dispatcher._cache
    cache._cache_file = _CheckedFiles(cache.cache_path, cache._impl.filename_base, _STAMP)
    return dispatcher  # type: ignore[no-any-return]


def cache_folder(loop: Any) -> str | None:
    """Return the folder in which the machine code of a function that `jit` returned is stored.

    Args:
        loop: The function.

    Returns:
        The folder that numba has chosen, or None if no folder is writable, or numba is disabled.
    """
    statistics = getattr(loop, "stats", None)
    return None if statistics is None else statistics.cache_path


def _refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that raises a ValueError, since Python cannot run these loops."""

    @wraps(function)
    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("NUMBA_DISABLE_JIT must be unset, got 1. The loops use instructions that Python does not have")

    return refuse


class _CheckedFiles(caching.IndexDataCacheFile):
    """Store numba's index and data files with checksums; damaged files count as missing."""

    def _load_index(self) -> Any:
        return super()._load_index() if _is_intact(self._index_path) else {}

    def save(self, key: Any, data: Any) -> None:
        with suppress(OSError):  # On a full disk, the code is used now and compiled again in the next process.
            super().save(key, data)

    def _save_index(self, overloads: Any) -> None:
        super()._save_index(overloads)
        _write_checksum(self._index_path)

    def _load_data(self, name: str) -> Any:
        path = self._data_path(name)
        if not _is_intact(path):
            raise FileNotFoundError(path)  # numba then compiles again.
        return super()._load_data(name)

    def _save_data(self, name: str, data: Any) -> None:
        super()._save_data(name, data)
        _write_checksum(self._data_path(name))


def _sources_stamp() -> tuple[str, ...]:
    """Return all on which the machine code depends beside a function's types and the processor, which numba compares.

    Times of change do not tell: installers set them to a constant.
    """
    sources = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        sources.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    settings = [f"{name}={getattr(numba.config, name, None)}" for name in _SETTINGS]
    return (sources.hexdigest(), numba.__version__, llvmlite.__version__, *settings)


_STAMP = _sources_stamp()


def _write_checksum(path: str) -> None:
    """Write the checksum of a file beside it."""
    Path(path + _SUFFIX).write_text(_checksum(path), encoding="utf-8")


def _is_intact(path: str) -> bool:
    """Return True if the file has the checksum beside it."""
    try:
        return Path(path + _SUFFIX).read_text(encoding="utf-8") == _checksum(path)
    except (OSError, UnicodeDecodeError):
        return False


def _checksum(path: str) -> str:
    """Compute the SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
