"""`fa worker`: one worker of a run that is served elsewhere."""

from __future__ import annotations

import click

from fa.cli.torchrun import address, compute


@click.command()
@click.option("--rank", type=click.IntRange(min=0), required=True, help="Which worker, from 0.")
@click.option("--server", metavar="HOST:PORT", required=True, help="Address of `fa server`.")
@click.option("--threads", type=click.IntRange(min=1), default=1, help="Threads of torch.  [default: 1]")
def worker(rank: int, server: str, threads: int) -> None:
    """Compute the gradients of one worker until the run is over. What runs is set at the server."""
    compute(rank, *address("server", server), threads)
