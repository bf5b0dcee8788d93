"""Settings of torch and numpy that a caller may have changed for the whole process, with their usual values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


def usual_float_errors() -> np.errstate:
    """Return a context, and decorator, in which numpy reports floating-point errors by default: underflow is 0."""
    return np.errstate(divide="warn", over="warn", invalid="warn", under="ignore")


@contextmanager
def usual_settings() -> Iterator[None]:
    """Give torch and numpy their default settings, on which a run must not depend, within the block.

    They are the default dtype and device, gradients, inference mode, autocast and numpy's handling of floating-point
    errors.
    """
    dtype = torch.get_default_dtype()
    if dtype != torch.float32:  # Otherwise a thread that ends could change another thread's.
        torch.set_default_dtype(torch.float32)
    try:
        with ExitStack() as stack:
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            for context in (usual_float_errors(), torch.inference_mode(False), torch.enable_grad()):
                stack.enter_context(context)
            # The context slows every operation down, by microseconds.
            if torch.get_default_device() != torch.device("cpu"):
                stack.enter_context(torch.device("cpu"))
            yield
    finally:
        if dtype != torch.float32:
            torch.set_default_dtype(dtype)
