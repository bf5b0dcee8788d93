"""Compare the rules over processes of one machine with a plain all-reduce of the same gradient, over gloo.

    python benchmarks/sharded.py [--processes 4] [--parameters 4000000] [--rounds 15]

Each rank has one float32 gradient and one thread. A round runs each rule and the all-reduce once, each after a barrier.
The script prints the time of the slowest rank. It also prints the ratio to the all-reduce in the same round, as median
and quartiles.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from group import interleaved, over_processes, ratio

from fa import RULES, make_rule
from fa.sharded import Shards

PLAIN = "all-reduce"


def main() -> None:
    """Run the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--parameters", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    given = parser.parse_args()
    over_processes(measure, given)


def measure(rank: int, given: argparse.Namespace) -> None:
    """Time all rules on one rank."""
    g = torch.randn(given.parameters, generator=torch.Generator().manual_seed(rank))
    shards, d, reduced = Shards(), torch.empty_like(g), g.clone()
    sides: dict[str, Callable[[], object]] = {PLAIN: lambda: dist.all_reduce(reduced)}
    for name in given.rules:
        sides[name] = partial(shards.aggregate, g, make_rule(name, f=0), out=d)
    times = interleaved(sides, given.rounds)
    if rank == 0:
        report(given, times)


def report(given: argparse.Namespace, times: dict[str, list[float]]) -> None:
    """Print the table."""
    print(f"p = {given.processes} processes, n = {given.parameters:,}, gloo on loopback, {os.cpu_count()} cores")
    for name, own in times.items():
        print(f"{name:14s} {1e3 * statistics.median(own):8.1f} ms   {ratio(own, times[PLAIN])}")


if __name__ == "__main__":
    main()
