"""Calls timed in turn in one process, so a slow moment of the machine affects all of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from fa.utils.timing import elapsed

Call = Callable[[], object]

_WARM_UP = 0.02


@dataclass
class Timing:
    """Seconds of the `first` call, which may compile, and of the calls after it."""

    first: float
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median of the calls after the first; the first if no other was timed."""
        return statistics.median(self.seconds or [self.first])

    @property
    def repeats(self) -> int:
        """Number of calls behind the median."""
        return max(len(self.seconds), 1)

    @property
    def spent(self) -> float:
        """Total seconds."""
        return self.first + sum(self.seconds)


def interleaved(
    calls: Mapping[str, Call],
    repeats: int = 10,
    patience: float = 10.0,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Timing]:
    """Time each call once, then all of them in turn.

    In a round, each timed call follows untimed ones of the same function, for at least `_WARM_UP` seconds. Otherwise
    its time would depend on the call before it, whose data are in the caches and whose threads still wait on the cores.

    Args:
        calls: Calls by name.
        repeats: Number of rounds after the first call.
        patience: Total seconds after which a call is excluded from further rounds.
        device: Device to synchronize.
        progress: Called with a name before its first call.

    Returns:
        The times of each call, by its name.
    """
    timings = {}
    for name, call in calls.items():
        progress(name)
        timings[name] = Timing(_seconds(call, device))
    for _ in range(repeats):
        for name, call in calls.items():
            if timings[name].spent < patience:
                warm = 0.0
                while warm < _WARM_UP:
                    warm += _seconds(call, device)
                timings[name].seconds.append(_seconds(call, device))
    return timings


def _seconds(call: Call, device: str) -> float:
    def finished() -> None:
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    return elapsed(finished)
