"""A bar of progress on the terminal, and elsewhere nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn


def on_terminal(console: Console) -> bool:
    """Whether the console writes to a terminal. Rich itself takes any file for one under FORCE_COLOR, which notebooks
    set for the processes that they start.
    """
    return console.file.isatty()


@contextmanager
def bar(*columns: ProgressColumn, console: Console, shown: bool = True) -> Iterator[Progress]:
    """A bar with these columns (none: rich's own), which goes when it is done; `disable`d where the console is no
    terminal, or it is not to be `shown`. Tasks may be added and updated in either case.
    """
    from rich.progress import Progress

    progress = Progress(*columns, console=console, transient=True, disable=not (shown and on_terminal(console)))
    if progress.disable:  # entering it would print an empty line in releases of rich before 15
        yield progress
        return
    with progress:
        yield progress
