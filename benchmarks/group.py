"""Shared code of the benchmarks over a process group: the group, and interleaved timings of its slowest rank."""

import os
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WARM = 2  # Number of rounds without timing, in which code compiles and DDP builds its buckets.


def over_processes(work: Callable[[int, Namespace], None], given: Namespace) -> None:
    """Call work(rank, given) in `given.processes` processes of one gloo group, each with one thread."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_join, args=(work, given, Path(folder) / "group"), nprocs=given.processes)


def _join(rank: int, work: Callable[[int, Namespace], None], given: Namespace, place: Path) -> None:
    """Join the group and do the work."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=given.processes)
    work(rank, given)
    dist.destroy_process_group()


def interleaved(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time several functions in turn.

    Args:
        sides: Functions by name.
        rounds: Number of timed rounds. Each calls every function once.

    Returns:
        Times of each function in each round, in seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for done in range(rounds + WARM):
        for name, work in sides.items():
            spent = _seconds(work)
            if done >= WARM:
                times[name].append(spent)
    return times


def _seconds(work: Callable[[], object]) -> float:
    """Return the time of the slowest rank, in seconds."""
    dist.barrier()
    start = time.perf_counter()
    work()
    spent = torch.tensor(time.perf_counter() - start)
    dist.all_reduce(spent, dist.ReduceOp.MAX)
    return float(spent)


def ratio(own: Sequence[float], base: Sequence[float]) -> str:
    """Return the median and the quartiles of the ratios in equal rounds, as text."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(own, base, strict=True)], n=4)
    return f"{middle:5.2f} ({low:.2f} to {high:.2f})"
