"""`fa data`: fetch data sets, and list those that are there."""

from __future__ import annotations

from pathlib import Path

import click

_ROOT = click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    help="Cache folder; if left out FA_DATA, else the folder fa in the user's cache folder.",
)


@click.group()
def data() -> None:
    """Fetch data sets and list those that are there."""


@data.command()
@click.argument("name")
@_ROOT
@click.option("--quiet", is_flag=True, help="Print nothing but the path.")
def fetch(name: str, root: Path | None, quiet: bool) -> None:
    """Bring the data set NAME into the cache and print its path.

    NAME is mnist, fashion-mnist or cifar10. A copy that is there is checked and kept.
    """
    from fa.data import fetch as fetch_data

    click.echo(str(fetch_data(name, root, progress=not quiet)))


@data.command(name="list")
@_ROOT
def list_(root: Path | None) -> None:
    """List the data sets by name, and say which are here."""
    from fa.data import describe

    for row in describe(root):
        size = "x".join(map(str, row.shape))
        click.echo(
            f"{row.name:14} {row.train:>7,} + {row.test:>6,} images {size:8} {row.classes:>4} classes  "
            f"{row.status:12} {row.place}"
        )
