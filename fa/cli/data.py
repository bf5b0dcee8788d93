"""`fa data`: download and list data sets."""

from __future__ import annotations

from pathlib import Path

import click

from fa.cli.paths import UserPath

root_option = click.option(
    "--root",
    type=UserPath(file_okay=False),
    help="Folder of the data sets.  [default: $FA_DATA, else fa in the user's cache folder]",
)


@click.group()
def data() -> None:
    """Download data sets, and list those that are available."""


@data.command()
@click.argument("name")
@root_option
@click.option("--quiet", is_flag=True, help="Print only the path.")
def fetch(name: str, root: Path | None, quiet: bool) -> None:
    """Download the data set NAME if it is missing, and print its path.

    NAME is mnist, fashion-mnist or cifar10. An existing copy is checked, and replaced if it is damaged.
    """
    from fa.data import fetch as fetch_data

    click.echo(str(fetch_data(name, root, progress=not quiet)))


@data.command(name="list")
@root_option
def list_(root: Path | None) -> None:
    """List the data sets and their state."""
    from fa.data import describe

    for row in describe(root):
        size = "x".join(map(str, row.shape))
        click.echo(
            f"{row.name:14} {row.train:>7,} + {row.test:>6,} images {size:8} {row.classes:>4} classes  "
            f"{row.status:12} {row.place}"
        )
