"""Paths on the command line."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import click


class UserPath(click.Path):
    """A path in which "~" is the home folder, since shells leave it unchanged in --out=~/folder."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert a value to a path, and replace "~" at its start, unless the user is unknown, as shells do."""
        with suppress(RuntimeError):
            value = Path(value).expanduser()
        return super().convert(value, param, ctx)
