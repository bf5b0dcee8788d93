"""Real gradients for the theory: what the workers of a run sent, at chosen iterations."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import Tensor

from fa.checks import check_integer
from fa.training.config import TrainConfig
from fa.training.loop import Progress, train


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
