"""Measure the share of a training iteration that aggregation takes, for each rule.

    python benchmarks/aggregation_share.py [--model resnet18] [--batch 128] [--workers 15] [--rounds 3] [--threads 2]

One worker's forward and backward pass is timed on random images of CIFAR-10's size, and counts p times. The rules
aggregate p random gradients of the model's length. All run in turn in one process. The script prints medians over the
rounds, after one warm-up round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from fa import models
from fa.rules import RULES, make_rule


def seconds(work: Callable[[], object]) -> float:
    """Return the time of a call, in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(given.batch, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (given.batch,), generator=generator)
    model = models.build(given.model, (3, 32, 32), 10, seed=0).to(memory_format=torch.channels_last)
    n = sum(parameter.numel() for parameter in model.parameters())
    G = torch.randn(given.workers, n, generator=generator)
    f = max(0, (given.workers - 3) // 4)  # Bulyan accepts no larger f.

    def passes() -> None:
        """Run one forward and backward pass."""
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()

    works: dict[str, Callable[[], object]] = {"passes": passes}
    works |= {name: partial(make_rule(name, f=f), G) for name in RULES}
    times: dict[str, list[float]] = {name: [] for name in works}
    for done in range(given.rounds + 1):
        for name, work in works.items():
            spent = seconds(work)
            if done:
                times[name].append(spent)
    computing = given.workers * statistics.median(times.pop("passes"))
    print(f"{given.model}, n = {n:,}, p = {given.workers}, B = {given.batch}, f = {f}, {given.threads} threads:")
    print(f"{computing:.2f} s of forward and backward passes in an iteration")
    for name, own in times.items():
        spent = statistics.median(own)
        print(f"{name:13} {1e3 * spent:8.1f} ms  {spent / (computing + spent):7.2%} of an iteration")


if __name__ == "__main__":
    main()
