"""What the commands share that do many runs, one after another or in parallel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click


def check_device(name: str | None) -> None:
    """Raise a ValueError for a missing device, before the first run would.

    Args:
        name: Value of --device; None for the default, which is not checked.
    """
    if name is not None:
        from fa.utils.devices import find_device

        find_device(name)


@contextmanager
def resumable() -> Iterator[None]:
    """Print on Ctrl-C that finished runs are saved."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("finished runs are saved; the same command resumes", err=True)
        raise
