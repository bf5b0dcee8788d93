"""Settings of torch and numpy that a caller may have changed for the whole process, with their usual values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def usual_float_errors() -> np.errstate:
    """Return a context in which numpy reports floating-point errors as it does by default: underflow is 0."""
    return np.errstate(divide="warn", over="warn", invalid="warn", under="ignore")


def with_usual_float_errors(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a function so that it runs in `usual_float_errors`.

    Args:
        function: Function to decorate.

    Returns:
        A function with the same arguments and result.
    """

    @wraps(function)
    def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with usual_float_errors():
            return function(*args, **kwargs)

    return called


@contextmanager
def usual_settings() -> Iterator[None]:
    """Give torch and numpy their default settings, on which a run must not depend, within the block.

    They are the default dtype and device, gradients, inference mode and numpy's handling of
    floating-point errors.
    """
    dtype = torch.get_default_dtype()
    if dtype != torch.float32:  # Otherwise a thread that ends could change another thread's.
        torch.set_default_dtype(torch.float32)
    try:
        with usual_float_errors(), torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
            yield
    finally:
        if dtype != torch.float32:
            torch.set_default_dtype(dtype)
