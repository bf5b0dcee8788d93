"""Compare the simulator's gradients with bare forward and backward passes on the same minibatches.

    python benchmarks/simulator_overhead.py [--model convnet] [--dataset mnist-mini] [--batch 32] [--workers 15]

All sides compute every worker's gradient (attack "none") and take turns in each round:

- "bare": the model as built, with prepared minibatches. autograd allocates the gradients.
- "bare, channels last": the same, with the memory layout of the simulator's parameters.
- "fast layers": the same as "bare", with the layers of `fa.layers`.
- "simulator" and "simulator, fast layers": the simulator also draws minibatches, seeds dropout and writes into G.

The data set "noise" consists of random images of CIFAR-10's shape, which need no download. With --retain-freed-memory
the process keeps freed memory, as the processes of `fa train` do. The script prints medians, and median and quartiles
of the ratios over the rounds.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fa import models
from fa.data import Dataset, load
from fa.layers import accelerate
from fa.training import TrainConfig
from fa.training.parameter_vector import flatten
from fa.training.transports.simulation import SimulatedTransport
from fa.utils.malloc import retain_freed_memory


def noise() -> Dataset:
    """Build a data set of random images of CIFAR-10's shape."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (50_000,), generator=generator)
    halves = (0.5, 0.5, 0.5)
    return Dataset("noise", images, labels, images[:1000], labels[:1000], 10, halves, halves, True, "")


def bare(model: nn.Module, minibatches: list[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """Return a function that runs forward and backward passes on the minibatches."""

    def passes() -> None:
        """Run one forward and backward pass per minibatch."""
        model.train()
        for images, labels in minibatches:
            model.zero_grad(set_to_none=True)
            F.cross_entropy(model(images), labels).backward()

    return passes


def milliseconds(work: Callable[[], object]) -> float:
    """Return the time of a call, in milliseconds."""
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def report(name: str, times: dict[str, list[float]]) -> None:
    """Print a side's median time, and its ratios to both bare sides."""
    line = f"{name:22s} {statistics.median(times[name]):9.1f} ms"
    for reference in ("bare", "bare, channels last"):
        ratios = [time / other for time, other in zip(times[name], times[reference], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        line += f"   ratio to {reference} {middle:.3f} ({low:.3f} to {high:.3f})"
    print(line)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convnet")
    parser.add_argument("--dataset", default="mnist-mini")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--retain-freed-memory", action="store_true")
    given = parser.parse_args()
    if given.retain_freed_memory:
        retain_freed_memory()
    torch.set_num_threads(given.threads)

    config = TrainConfig(
        dataset=given.dataset, model=given.model, workers=given.workers, byzantine=0, attack="none", batch=given.batch
    )
    dataset = noise() if config.dataset == "noise" else load(config.dataset)
    model = models.build(config.model, *dataset.shape, seed=config.seed)
    plain, last = copy.deepcopy(model), copy.deepcopy(model).to(memory_format=torch.channels_last)
    alone, fast = accelerate(copy.deepcopy(model)), accelerate(copy.deepcopy(model))
    parameters, fast_parameters = flatten(model), flatten(fast)
    simulation = SimulatedTransport(model, dataset, config, parameters)
    fast_simulation = SimulatedTransport(fast, dataset, dataclasses.replace(config, layers="fast"), fast_parameters)
    minibatches = [worker.minibatch(0) for worker in simulation.workers]
    sides: dict[str, Callable[[], object]] = {
        "bare": bare(plain, minibatches),
        "bare, channels last": bare(last, minibatches),
        "fast layers": bare(alone, minibatches),
        "simulator": lambda: simulation.gradients(0),
        "simulator, fast layers": lambda: fast_simulation.gradients(0),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for done in range(given.rounds + 1):
        for name, work in sides.items():
            spent = milliseconds(work)
            if done:  # The first round warms up.
                times[name].append(spent)
    print(f"{given.model}, p = {given.workers}, B = {given.batch}, {given.threads} threads: one iteration's gradients")
    for name in times:
        report(name, times)


if __name__ == "__main__":
    main()
