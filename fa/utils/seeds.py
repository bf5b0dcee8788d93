"""Random numbers that depend only on (purpose, seed, worker, iteration), so that any process can reproduce them."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from fa.utils.validation import check_integer

_GLOBAL_RNG = threading.RLock()


def derive_seed(purpose: str, seed: int, worker: int, iteration: int) -> int:
    """Derive a 64-bit seed, different for each combination of the arguments.

    Args:
        purpose: Use of the random numbers, such as "minibatch".
        seed: Seed of the run.
        worker: Rank of the worker.
        iteration: Iteration of the run.

    Returns:
        An integer from 0 to 2^64 - 1.

    Raises:
        ValueError: `seed` or `iteration` is not an integer of at least 0.
    """
    check_integer("seed", seed, 0)
    check_integer("iteration", iteration, 0)
    entropy = (zlib.crc32(purpose.encode()), seed, worker, iteration)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def generator(
    purpose: str, seed: int, worker: int, iteration: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Create a torch generator, seeded by `derive_seed`.

    Args:
        purpose: Use of the random numbers, such as "minibatch".
        seed: Seed of the run.
        worker: Rank of the worker.
        iteration: Iteration of the run.
        device: Device of the generator.

    Returns:
        The generator, on `device`.
    """
    return torch.Generator(device=device).manual_seed(derive_seed(purpose, seed, worker, iteration))


@contextmanager
def fork_global_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators within the block, and restore their states afterwards.

    Dropout, among others, draws from the global generators. They belong to the process: a second thread waits at the
    block until the first has left it.

    Args:
        seed: Seed of the CPU's generator, and of the generator of `device`.
        device: Device of the computation.
    """
    with _GLOBAL_RNG, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):  # manual_seed seeds the current device
                torch.cuda.manual_seed(seed)
        yield
