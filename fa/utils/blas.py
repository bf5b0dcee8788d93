"""One BLAS thread for p x p matrices.

By default, numpy's BLAS starts all its threads for them. On a busy machine, waiting for threads takes longer than the
work itself. The number of threads may also change the last bits of a result.
"""

import os
from contextlib import ContextDecorator
from functools import cache
from threading import Lock
from typing import Any

from threadpoolctl import ThreadpoolController


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _blas_libraries() -> list[Any]:
    """Find the loaded BLAS libraries, numpy's among them."""
    controllers: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
    return controllers


class _OneBlasThread(ContextDecorator):
    """Limit BLAS to one thread while at least one of Python's threads is inside.

    The first to enter sets the limit, and the last to leave restores the earlier one.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._earlier: list[tuple[Any, int | None]] = []

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._earlier = [(library, library.get_num_threads()) for library in _blas_libraries()]
                self._set(1)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._set()

    def _set(self, threads: int | None = None) -> None:
        """Set the number of threads, by default the earlier one; a library that has it is not called."""
        for library, earlier in self._earlier:
            if earlier not in (1, None):
                library.set_num_threads(threads or earlier)


single_threaded = _OneBlasThread()
"""Context and decorator in which BLAS has one thread."""
