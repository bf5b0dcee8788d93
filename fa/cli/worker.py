"""`fa worker`: one worker of a run that is served elsewhere."""

from __future__ import annotations

import click

from fa.cli.train import address


@click.command()
@click.option(
    "--rank", type=click.IntRange(min=0), envvar="RANK", required=True, help="Which worker, from 0; or $RANK."
)
@click.option("--master", metavar="HOST:PORT", required=True, help="Where `fa train --backend rpc --listen` listens.")
@click.option("--threads", type=click.IntRange(min=1), default=1, help="Threads of torch.  [default: 1]")
def worker(rank: int, master: str, threads: int) -> None:
    """Compute the gradients of one worker until the run is over. What runs is set at the server."""
    host, port = address("master", master)
    import torch

    from fa.training.rpc.worker import work

    torch.set_num_threads(threads)
    try:
        work(rank, host, port)
    except RuntimeError as error:  # of torch, whose own messages take many lines
        raise ValueError(f"the server at {master} is gone: {str(error).splitlines()[0]}") from error
