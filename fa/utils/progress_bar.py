"""How far a long task is, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

Report = Callable[[int, int, Callable[[], str]], None]
"""Called with the number of finished steps, their total number, and a function that describes the last one."""

REFRESH = 0.2  # seconds between two changes of a bar: a description may have to wait for a GPU
LINES = 30.0  # seconds between two lines where stderr is no terminal


@contextmanager
def reporter(unit: str, shown: bool = True) -> Iterator[Report]:
    """Report progress in `unit`s, with the time left; nothing unless `shown`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    note = TextColumn("{task.fields[note]}", markup=False)
    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note)
    with bar(*columns, console=Console(stderr=True), shown=shown) as progress:
        task = progress.add_task("", total=None, note="")
        started = last = time.monotonic()
        first: int | None = None

        def report(done: int, total: int, describe: Callable[[], str] = str) -> None:
            nonlocal started, last, first
            now = time.monotonic()
            if first is None:  # compiling makes the first step longer than the others, and a resumed task begins later
                first, started = done, now
            elif shown and now - last >= (LINES if progress.disable else REFRESH):
                last, described = now, describe()
                progress.update(task, completed=done, total=total, note=described)
                if progress.disable:
                    left = (now - started) / (done - first) * (total - done)
                    line = f"{done} of {total} {unit}, about {left:.0f} s left; {described}"
                    print(line, file=sys.stderr, flush=True)

        yield report


@contextmanager
def bar(*columns: ProgressColumn, console: Console, shown: bool = True) -> Iterator[Progress]:
    """Show a bar with these columns until the block ends; `disable`d unless `shown` and the console is a terminal.

    Tasks may be added and updated in either case.
    """
    from rich.progress import Progress

    # Rich itself takes any file for a terminal under FORCE_COLOR, which notebooks set for the processes they start.
    progress = Progress(*columns, console=console, transient=True, disable=not (shown and console.file.isatty()))
    if progress.disable:  # entering it would print an empty line in releases of rich before 15
        yield progress
        return
    with progress:
        yield progress
