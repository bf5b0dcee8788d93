"""`fa worker`: one worker of a run whose server is elsewhere."""

from __future__ import annotations

import click

from fa.cli.torchrun import parse_address, run_worker


@click.command()
@click.option("--rank", type=click.IntRange(min=0), required=True, help="Rank of the worker, from 0.")
@click.option("--server", metavar="HOST:PORT", required=True, help="Address of `fa server`.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Number of torch's threads.")
def worker(rank: int, server: str, threads: int) -> None:
    """Compute the gradients of one worker until the run ends.

    The server has all settings of the run.
    """
    run_worker(rank, *parse_address("server", server), threads)
