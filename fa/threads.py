"""One thread for what is p x p: numpy's BLAS would wake all its threads for it, which on a busy machine wait for one
another longer than all the work takes, and whose number may change the last bits.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

from threadpoolctl import ThreadpoolController

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@cache
def _blas() -> ThreadpoolController:
    """The BLAS libraries that are loaded, looked for once: numpy's is among them."""
    return ThreadpoolController().select(user_api="blas")


def on_one_thread(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, during which numpy's BLAS has one thread."""

    @wraps(function)
    def alone(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with _blas().limit(limits=1):
            return function(*args, **kwargs)

    return alone
