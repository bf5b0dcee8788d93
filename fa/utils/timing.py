"""Wall-clock seconds of one call, and of the phases of a run."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


def elapsed(work: Callable[[], object]) -> float:
    """Call `work` and return the seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class PhaseTimer:
    """Seconds since the timer was created, and their sum for each phase.

    Attributes:
        seconds: Seconds of each phase, by its name.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    @property
    def total(self) -> float:
        """Seconds since the start, inside and outside of phases."""
        return time.perf_counter() - self._began

    def add(self, phase: str, seconds: float) -> None:
        """Add seconds to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def resume(self, total: float, seconds: Mapping[str, float]) -> None:
        """Add the times of an earlier process that did the first part of the same run.

        Args:
            total: Its total seconds.
            seconds: Its seconds of each phase.
        """
        self._began -= total
        for phase, spent in seconds.items():
            self.add(phase, spent)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to the phase `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started)
