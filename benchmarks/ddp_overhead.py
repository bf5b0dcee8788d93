"""Compare an iteration of DistributedDataParallel under each rule with plain DDP, over gloo.

    python benchmarks/ddp_overhead.py [--processes 4] [--width 1600] [--batch 64] [--rounds 15]

The model has two hidden layers of `width` units (n = 3.8 million at 1600) and 784 inputs. An iteration is a forward and
a backward pass. "alone" is the same without communication. The rules take turns in each round. The script prints:

- the time of the slowest rank,
- the ratio to plain DDP in the same round, median and quartiles,
- the ratio of the added time, (iteration - alone)/(plain - alone), from medians.
"""

import argparse
import os
import statistics
from functools import partial

import torch
from group import interleaved, over_processes, ratio
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fa import RULES
from fa.training import ddp

PLAIN, ALONE = "plain DDP", "alone"


def main() -> None:
    """Run the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--width", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=["mean", "fa", "multi_krum", "median"])
    given = parser.parse_args()
    over_processes(measure, given)


def measure(rank: int, given: argparse.Namespace) -> None:
    """Time all rules on one rank."""
    inputs = torch.randn(given.batch, 784, generator=torch.Generator().manual_seed(rank))
    models: dict[str, nn.Module] = {ALONE: perceptron(given.width)}
    for name in (PLAIN, *given.rules):
        models[name] = wrapped = DistributedDataParallel(perceptron(given.width))
        if name != PLAIN:
            ddp.register(wrapped, name)
    times = interleaved({name: partial(iterate, model, inputs) for name, model in models.items()}, given.rounds)
    if rank == 0:
        report(given, times, sum(p.numel() for p in models[ALONE].parameters()))


def perceptron(width: int) -> nn.Module:
    """Build the model."""
    return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def iterate(model: nn.Module, inputs: torch.Tensor) -> None:
    """Run one forward and backward pass."""
    model.zero_grad(set_to_none=False)
    model(inputs).square().mean().backward()


def report(given: argparse.Namespace, times: dict[str, list[float]], n: int) -> None:
    """Print the table."""
    print(f"p = {given.processes} processes, n = {n:,}, {given.batch} images, gloo, {os.cpu_count()} cores")
    medians = {name: statistics.median(own) for name, own in times.items()}
    for name, own in times.items():
        added = (medians[name] - medians[ALONE]) / (medians[PLAIN] - medians[ALONE])
        print(f"{name:12s} {1e3 * medians[name]:8.1f} ms   iteration {ratio(own, times[PLAIN])}   added {added:5.2f}")


if __name__ == "__main__":
    main()
