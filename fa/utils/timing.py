"""Seconds: of one call, and of the parts of a whole."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


def taken(work: Callable[[], object]) -> float:
    """The seconds that one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Parts:
    """How many seconds a whole has taken so far, from when this is made, and its parts, each summed over the times that
    it was done.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    @property
    def whole(self) -> float:
        """Seconds, whether in a part or not."""
        return time.perf_counter() - self._began

    def add(self, part: str, seconds: float) -> None:
        """So many more seconds of that part."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def go_on(self, whole: float, seconds: Mapping[str, float]) -> None:
        """From what another process spent on the same whole."""
        self._began -= whole
        for part, its in seconds.items():
            self.add(part, its)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """What is done inside belongs to that part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - started)
