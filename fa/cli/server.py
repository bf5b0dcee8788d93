"""`fa server`: the server of a run whose workers are started elsewhere."""

from __future__ import annotations

from typing import Any

import click

from fa.cli.train import train

_SAID_HERE = ("backend", "listen")


@click.command(params=[option for option in train.params if option.name not in _SAID_HERE])
@click.option("--listen", metavar="HOST:PORT", required=True, help="Where to await the run's `fa worker`s.")
def server(**given: Any) -> None:
    """Train with workers that are started by `fa worker`, on this host or others, and print the result.

    The same as `fa train --backend rpc --listen HOST:PORT`.
    """
    assert train.callback is not None
    train.callback(backend="rpc", **given)
