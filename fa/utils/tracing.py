"""Functions that torch.compile calls instead of tracing."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def untraced(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a function so that torch.compile breaks the graph there, since it cannot trace compiled loops.

    `torch.compiler.disable` is called on demand, because it imports dynamo, which takes seconds.

    Args:
        function: Function to decorate.

    Returns:
        A function with the same arguments and result.
    """

    @wraps(function)
    def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if torch.compiler.is_compiling():
            return cast(Result, torch.compiler.disable(function)(*args, **kwargs))
        return function(*args, **kwargs)

    return called
