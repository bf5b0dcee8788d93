"""`fa keys`: the certificates of a run over several hosts."""

from __future__ import annotations

from pathlib import Path

import click

from fa.cli.paths import UserPath


@click.command()
@click.argument("folder", type=UserPath())
@click.option("--workers", type=click.IntRange(min=1), default=15, show_default=True, help="Number of workers, p.")
@click.option("--days", type=click.IntRange(min=1), default=30, show_default=True, help="Days of validity.")
def keys(folder: Path, workers: int, days: int) -> None:
    """Write keys of a run to FOLDER/server and FOLDER/worker-R, one folder for each process.

    The worker of rank R needs FOLDER/worker-R alone. Its certificate is valid for that rank of this run.
    """
    from fa.training.transports.tcp.keys import create_keys

    create_keys(folder, workers, days)
    click.echo(f"keys in {folder / 'server'} and {folder / 'worker-0'} to {folder / f'worker-{workers - 1}'}")
