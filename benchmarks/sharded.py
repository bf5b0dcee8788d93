"""The rules over processes of this machine against a plain all-reduce of the same gradient, over gloo: interleaved.

    python benchmarks/sharded.py [--processes 4] [--parameters 4000000] [--rounds 15]

Each rank has one float32 gradient and one thread. A round runs everything once, each after a barrier; of a rule's time
over the all-reduce's of the same round, the median is printed, and the quartiles. The times are the slowest rank's.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fa import RULES, make_rule
from fa.sharded import Shards

PLAIN = "all-reduce"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--parameters", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, args=(given, Path(folder) / "group"), nprocs=given.processes)


def measure(rank: int, given: argparse.Namespace, place: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=given.processes)
    g = torch.randn(given.parameters, generator=torch.Generator().manual_seed(rank))
    shards, d, reduced = Shards(), torch.empty_like(g), g.clone()
    sides: dict[str, Callable[[], object]] = {PLAIN: lambda: dist.all_reduce(reduced)}
    for name in given.rules:
        sides[name] = partial(shards.aggregate, g, make_rule(name), out=d)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for done in range(given.rounds + 2):
        for name, work in sides.items():
            spent = seconds(work)
            if done > 1:  # the first rounds compile and warm up
                times[name].append(spent)
    if rank == 0:
        report(given, times)
    dist.destroy_process_group()


def seconds(work: Callable[[], object]) -> float:
    """The slowest rank's."""
    dist.barrier()
    start = time.perf_counter()
    work()
    spent = torch.tensor(time.perf_counter() - start)
    dist.all_reduce(spent, dist.ReduceOp.MAX)
    return float(spent)


def report(given: argparse.Namespace, times: dict[str, list[float]]) -> None:
    print(f"p = {given.processes} processes, n = {given.parameters:,}, gloo on loopback, {os.cpu_count()} cores")
    for name, own in times.items():
        low, middle, high = statistics.quantiles([a / b for a, b in zip(own, times[PLAIN], strict=True)], n=4)
        print(f"{name:14s} {1e3 * statistics.median(own):8.1f} ms   {middle:5.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
