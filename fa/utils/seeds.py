"""Random numbers that depend on (purpose, seed, worker, iteration) only, so that any process can draw them again."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(purpose: str, seed: int, worker: int, iteration: int) -> int:
    """A 64-bit seed for one purpose, worker and iteration; all are stirred, so that no two share a stream."""
    entropy = (zlib.crc32(purpose.encode()), seed, worker, iteration)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def generator(
    purpose: str, seed: int, worker: int, iteration: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A torch generator on `device`, seeded from its arguments."""
    return torch.Generator(device=device).manual_seed(derive(purpose, seed, worker, iteration))


@contextmanager
def global_state(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators of the CPU and `device` seeded inside, and as they were afterwards: for dropout."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield
