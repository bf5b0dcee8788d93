"""`fa server`: the server of a run whose workers are started elsewhere."""

from __future__ import annotations

from typing import Any

import click

from fa.cli.train import train

_REPLACED = ("backend", "listen")


@click.command(params=[option for option in train.params if option.name not in _REPLACED])
@click.option("--listen", metavar="HOST:PORT", required=True, help="Address on which to await `fa worker`.")
@click.option(
    "--backend", type=click.Choice(["tcp", "rpc"]), default="tcp", show_default=True, help="Transport of the workers."
)
def server(**arguments: Any) -> None:
    """Train with workers that `fa worker` starts, on this host or others, and print the result.

    The same as `fa train --listen HOST:PORT`, whose workers are processes over TCP by default.
    """
    assert train.callback is not None
    train.callback(**arguments)
