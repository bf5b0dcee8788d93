"""Paths on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fa.utils.files import expand_user


class UserPath(click.Path):
    """A path in which "~" is the home folder, since shells leave it unchanged in --out=~/folder."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert a value to a path, and replace "~" at its start."""
        name = "path" if param is None or param.name is None else param.name
        return super().convert(expand_user(name, value), param, ctx)
