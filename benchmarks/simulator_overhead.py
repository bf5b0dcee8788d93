"""The simulator's gradients against bare forward and backward passes on the same minibatches: paired and interleaved.

    python benchmarks/simulator_overhead.py [--model convnet] [--dataset mnist-mini] [--batch 32] [--workers 15]

Both sides compute every worker's gradient (attack "none"). The bare side has the model as it was built, the minibatches
ready, and lets autograd allocate the gradients; the simulator draws its minibatches, seeds dropout, and writes into G.
"bare, channels last" is the bare side with the model in the memory layout that the simulator's parameters have.
Of a ratio, the median over the rounds is printed, and the quartiles.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fa import models
from fa.data import load
from fa.training import TrainConfig
from fa.training.flat import flatten
from fa.training.simulation import Simulation


def bare(model: nn.Module, minibatches: list[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    def passes() -> None:
        model.train()
        for images, labels in minibatches:
            model.zero_grad(set_to_none=True)
            F.cross_entropy(model(images), labels).backward()

    return passes


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def report(name: str, times: list[float], reference: list[float]) -> None:
    ratios = [own / other for own, other in zip(times, reference, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    median = statistics.median(times)
    print(f"{name:22s} {median:9.1f} ms   ratio to bare, channels last {middle:.3f} ({low:.3f} to {high:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convnet")
    parser.add_argument("--dataset", default="mnist-mini")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    config = TrainConfig(
        dataset=given.dataset, model=given.model, workers=given.workers, byzantine=0, attack="none", batch=given.batch
    )
    dataset = load(config.dataset)
    model = models.build(config.model, *dataset.shape, seed=config.seed)
    plain, last = copy.deepcopy(model), copy.deepcopy(model).to(memory_format=torch.channels_last)
    parameters = flatten(model)
    simulation = Simulation(model, dataset, config, parameters)
    minibatches = [worker.minibatch(0) for worker in simulation.workers]
    sides: dict[str, Callable[[], object]] = {
        "bare": bare(plain, minibatches),
        "bare, channels last": bare(last, minibatches),
        "simulator": lambda: simulation.gradients(0, parameters),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for done in range(given.rounds + 1):
        for name, work in sides.items():
            spent = milliseconds(work)
            if done:  # the first round warms up
                times[name].append(spent)
    print(f"{given.model}, p = {given.workers}, B = {given.batch}, {given.threads} threads: one iteration's gradients")
    for name, own in times.items():
        report(name, own, times["bare, channels last"])


if __name__ == "__main__":
    main()
