"""Progress of a long task on stderr: a bar on a terminal, else a line at intervals."""

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

REFRESH = 0.2
"""Seconds between two changes of a bar; a description may have to wait for a GPU."""

LINES = 30.0
"""Seconds between two lines if stderr is not a terminal."""


@contextmanager
def reporter(unit: str, shown: bool = True) -> Iterator[Report]:
    """Report progress with the remaining time.

    Args:
        unit: Plural name of a step, such as "iterations" or "runs".
        shown: Whether to report at all.

    Yields:
        A function to call after each step.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    note = TextColumn("{task.fields[note]}", markup=False)
    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note)
    with bar(*columns, console=Console(stderr=True, markup=False), shown=shown) as progress:
        task = progress.add_task("", total=None, note="")
        started = last = time.monotonic()
        first: int | None = None

        def report(done: int, total: int, describe: Callable[[], str] = str) -> None:
            nonlocal started, last, first
            now = time.monotonic()
            if first is None:  # The first step compiles, and a resumed run starts late.
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
    """Show a bar until the block ends, if `shown` and the console is a terminal.

    Args:
        *columns: Columns of the bar.
        console: Console that shows it.
        shown: Whether to show it.

    Yields:
        The bar. Tasks may be added and updated even if it is disabled.
    """
    from rich.progress import Progress

    # Under FORCE_COLOR, which notebooks set for their child processes, rich treats any file as a terminal.
    progress = Progress(*columns, console=console, transient=True, disable=not (shown and console.file.isatty()))
    if progress.disable:  # Before release 15, rich prints an empty line on entry.
        yield progress
        return
    with progress:
        yield progress
