"""Look at gradients of a run during its training, and record them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor

from fa.training.config import TrainConfig
from fa.training.loop import Progress, train
from fa.training.records import Run
from fa.utils.validation import check, check_integer

MINIBATCHES = 20
"""Number of iterations of a run that are recorded, evenly spaced and never two in a row."""

MIN_MINIBATCHES = 10
"""Number of recorded iterations that a distribution needs."""


def sampling_interval(iterations: int) -> int:
    """Return the distance between two recorded iterations. Long runs record about `MINIBATCHES` iterations.

    Args:
        iterations: Number of iterations of the run, at least 1.

    Returns:
        The distance, which is at least 2 unless the run has one iteration.

    Example:
        >>> [sampling_interval(iterations) for iterations in (1, 10, 1000)]
        [1, 2, 50]
    """
    return min(iterations, max(2, iterations // MINIBATCHES))


def watch(
    config: TrainConfig, look: Callable[[Progress], Iterable[dict[str, Any]]], every: int = 1
) -> tuple[list[dict[str, Any]], Run]:
    """Train on one thread, as in a sweep, and collect rows of a table during the run.

    Args:
        config: Configuration of the run.
        look: Function that returns the rows of an iteration.
        every: Number of iterations between two calls.

    Returns:
        The rows of all calls, and the finished run.
    """
    check_integer("every", every, 1)
    rows: list[dict[str, Any]] = []

    def progress(state: Progress) -> None:
        if state.iteration % every == 0:
            rows.extend(look(state))

    return rows, train(config, progress=progress, threads=1)


def record(config: TrainConfig, at: Collection[int]) -> dict[int, Tensor]:
    """Train, and return the gradient matrices G (p, n) of some iterations.

    Args:
        config: Configuration of the run.
        at: Iterations, counted from 1, at least one. The run ends with the last one.
    """
    check("at", at, len(at) > 0, "one iteration or more")
    for iteration in at:
        check_integer("an iteration of at", iteration, 1)
    matrices: dict[int, Tensor] = {}

    def progress(state: Progress) -> None:
        if state.iteration in at:
            matrices[state.iteration] = state.G.clone()

    train(replace(config, iterations=max(at)), progress=progress)
    return matrices
