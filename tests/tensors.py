"""Seeded tensors for the tests.

The device is FA_TEST_DEVICE's (default: cpu), the dtype FA_TEST_DTYPE's (default: float64).
"""

import os

import torch
from torch import Tensor

DEVICE = torch.device(os.environ.get("FA_TEST_DEVICE", "cpu"))
DTYPE = getattr(torch, os.environ.get("FA_TEST_DTYPE", "float64"))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = DTYPE) -> Tensor:
    """Standard normal entries: the same on every device, since they are drawn on the CPU in float64."""
    return torch.randn(shape, generator=_generator(seed), dtype=torch.float64).to(DEVICE, dtype)


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = DTYPE) -> Tensor:
    """Entries uniform in [0, 1), drawn as in `normal`."""
    return torch.rand(shape, generator=_generator(seed), dtype=torch.float64).to(DEVICE, dtype)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
