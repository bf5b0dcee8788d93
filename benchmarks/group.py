"""What the benchmarks over a process group share: the group, and the slowest rank's time of each side, interleaved."""

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

WARM = 2  # rounds that compile, warm up, and cut DDP's buckets


def over_processes(work: Callable[[int, Namespace], None], given: Namespace) -> None:
    """Call work(rank, given) in `given.processes` processes of one gloo group, with a thread each."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_join, args=(work, given, Path(folder) / "group"), nprocs=given.processes)


def _join(rank: int, work: Callable[[int, Namespace], None], given: Namespace, place: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=given.processes)
    work(rank, given)
    dist.destroy_process_group()


def interleaved(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round, which runs all of them once."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for done in range(rounds + WARM):
        for name, work in sides.items():
            spent = _seconds(work)
            if done >= WARM:
                times[name].append(spent)
    return times


def _seconds(work: Callable[[], object]) -> float:
    """The slowest rank's."""
    dist.barrier()
    start = time.perf_counter()
    work()
    spent = torch.tensor(time.perf_counter() - start)
    dist.all_reduce(spent, dist.ReduceOp.MAX)
    return float(spent)


def ratio(own: Sequence[float], base: Sequence[float]) -> str:
    """Of the same rounds: the median, and the quartiles."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(own, base, strict=True)], n=4)
    return f"{middle:5.2f} ({low:.2f} to {high:.2f})"
