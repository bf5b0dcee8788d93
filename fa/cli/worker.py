"""`fa worker`: one worker of a run whose server is elsewhere."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fa.cli.paths import UserPath
from fa.utils.addresses import parse_address
from fa.utils.validation import MOST_THREADS, check, check_seconds

if TYPE_CHECKING:
    from fa.training.config import TrainConfig

_TIMEOUT_HELP = "Seconds to wait for a server to start, and for a silent one (with tcp at least 10)."


@click.command()
@click.option("--rank", type=click.IntRange(min=0), required=True, help="Rank of the worker, from 0.")
@click.option("--server", metavar="HOST:PORT", required=True, help="Address of `fa server`.")
@click.option(
    "--backend", type=click.Choice(["tcp", "rpc"]), default="tcp", show_default=True, help="Transport of the server."
)
@click.option("--keys", type=UserPath(), help="Folder of the rank's keys from `fa keys`, with tcp.")
@click.option("--timeout", type=float, default=60, show_default=True, help=_TIMEOUT_HELP)
@click.option(
    "--threads", type=click.IntRange(1, MOST_THREADS), default=1, show_default=True, help="Number of torch's threads."
)
def worker(rank: int, server: str, backend: str, keys: Path | None, timeout: float, threads: int) -> None:
    """Compute the gradients of one worker until the run ends.

    The server has all settings of the run.
    """
    host, port = parse_address("server", server)
    check_seconds("timeout", timeout)
    check("keys", keys, keys is None or backend == "tcp", "omitted with rpc, which has no authentication")
    import torch

    torch.set_num_threads(threads)
    if backend == "tcp":
        from fa.training.transports.tcp.worker import work as work_tcp

        work_tcp(rank, host, port, keys, timeout=timeout, prepared=partial(_show_run, rank, server))
    else:
        from fa.training.transports.rpc.worker import work as work_rpc

        work_rpc(rank, host, port, timeout, prepared=partial(_show_run, rank, server))
    click.echo(f"worker {rank}: the run has ended", err=True)


def _show_run(rank: int, server: str, config: TrainConfig) -> None:
    task = f"{config.model} on {config.dataset}, {config.iterations} iterations"
    click.echo(f"worker {rank}: prepared for {server}; {task}", err=True)
