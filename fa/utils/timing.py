"""Wall-clock time of one call, and of the phases of a run, in seconds."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


def elapsed(work: Callable[[], object]) -> float:
    """Call a function and return its duration in seconds.

    Args:
        work: Function without arguments.

    Returns:
        Wall-clock seconds.
    """
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def call_seconds(work: Callable[[], object], calls: int) -> list[float]:
    """Time several calls of a function, after one that may compile.

    Args:
        work: Function without arguments.
        calls: Number of timed calls.

    Returns:
        Wall-clock seconds of each call.
    """
    work()
    return [elapsed(work) for _ in range(calls)]


class PhaseTimer:
    """Timer of a run and of its phases, started when it is created.

    Attributes:
        seconds: Seconds of each phase, by its name.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    @property
    def total(self) -> float:
        """Return the seconds since the start, inside and outside of phases."""
        return time.perf_counter() - self._began

    def add(self, phase: str, seconds: float) -> None:
        """Add seconds to a phase.

        Args:
            phase: Name of the phase.
            seconds: Seconds to add.
        """
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def resume(self, total: float, seconds: Mapping[str, float]) -> None:
        """Add the times of an earlier process that ran the first part of the same run.

        Args:
            total: Its total seconds.
            seconds: Its seconds of each phase.
        """
        self._began -= total
        for phase, spent in seconds.items():
            self.add(phase, spent)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to a phase.

        Args:
            name: Name of the phase.
        """
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started)
