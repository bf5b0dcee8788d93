"""How far a sweep is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fa.bars import on_terminal

Report = Callable[[int, int, str], None]
"""How many runs are finished, of how many, and what to say of the one that has just ended ("" at the start)."""


@contextmanager
def reporter(shown: bool) -> Iterator[Report]:
    """A bar with the time left on a terminal, else a line now and then; nothing unless `shown`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not shown:
        yield lambda done, total, last: None
        return
    if not on_terminal(console):
        yield _Lines()
        return
    columns = (
        TextColumn("runs"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[last]}", markup=False),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None, last="")
        yield lambda done, total, last: bar.update(task, completed=done, total=total, last=last)


class _Lines:
    """Progress as lines, one a tenth of the way."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first: int | None = None
        self._printed = 0

    def __call__(self, done: int, total: int, last: str) -> None:
        if self._first is None:
            self._first = done
            print(f"{total - done} runs to do, {done} are finished", flush=True)
        if not last or (done < total and 10 * (done - self._printed) < total):
            return
        self._printed = done
        left = (time.monotonic() - self._started) / max(1, done - self._first) * (total - done)
        print(f"{done} of {total} runs, about {left:.0f} s left; the last: {last}", flush=True)
