"""One thread for what is p x p: numpy's BLAS would wake all its threads for it, which on a busy machine wait for one
another longer than all the work takes, and whose number may change the last bits.
"""

import os
from collections.abc import Callable
from functools import cache, wraps
from threading import Lock
from typing import ParamSpec, TypeVar

from threadpoolctl import ThreadpoolController

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _blas() -> ThreadpoolController:
    """The BLAS libraries that are loaded, looked for once: numpy's is among them."""
    return ThreadpoolController().select(user_api="blas")


def on_one_thread(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, during which numpy's BLAS has one thread."""

    @wraps(function)
    def alone(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with _limited:
            return function(*args, **kwargs)

    return alone


class _Limit:
    """One BLAS thread while anybody is inside, of however many of Python's threads: the first to come sets it, and the
    last to leave gives back what was.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = _blas().limit(limits=1)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.restore_original_limits()


_limited = _Limit()
