"""Calls timed in turn in one process, so that what slows the machine slows all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from fa.utils.timing import elapsed

Call = Callable[[], object]


@dataclass
class Timing:
    """Seconds of a call: the `first` one, which may compile, and those after it."""

    first: float
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of the calls after the first, or the first where that took all the time there was."""
        return statistics.median(self.seconds or [self.first])

    @property
    def repeats(self) -> int:
        """How many calls the median is of."""
        return max(len(self.seconds), 1)

    @property
    def spent(self) -> float:
        """Seconds in all."""
        return self.first + sum(self.seconds)


def interleaved(
    calls: Mapping[str, Call],
    repeats: int = 10,
    patience: float = 10.0,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Timing]:
    """Each call once, and then all in turn, `repeats` times; one that has taken more than `patience` seconds in all is
    left out of the further rounds.
    """
    timings = {}
    for name, call in calls.items():
        progress(name)
        timings[name] = Timing(_seconds(call, device))
    for _ in range(repeats):
        for name, call in calls.items():
            if timings[name].spent < patience:
                timings[name].seconds.append(_seconds(call, device))
    return timings


def _seconds(call: Call, device: str) -> float:
    def finished() -> None:
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    return elapsed(finished)
