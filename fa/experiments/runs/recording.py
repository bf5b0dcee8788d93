"""Looking at a run's gradients while it trains: at which iterations, and what the workers sent then."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import Tensor

from fa.training.config import TrainConfig
from fa.training.loop import Progress, train
from fa.utils.validation import check_integer

MINIBATCHES = 20  # of a run are looked at, evenly spread, never two in a row
ENOUGH = 10  # of them, for a distribution


def every(iterations: int) -> int:
    """How many iterations lie between two that are looked at."""
    return min(iterations, max(2, iterations // MINIBATCHES))


def record(config: TrainConfig, at: Collection[int]) -> dict[int, Tensor]:
    """The gradient matrices G (p, n) of the iterations `at`, counted from 1; the run ends with the last of them."""
    for iteration in at:
        check_integer("an iteration of at", iteration, 1)
    kept: dict[int, Tensor] = {}

    def keep(progress: Progress) -> None:
        if progress.iteration in at:
            kept[progress.iteration] = progress.G.clone()

    train(replace(config, iterations=max(at)), progress=keep)
    return kept
