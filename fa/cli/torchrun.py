"""The place of a process in a distributed run: torchrun's environment, and the workers that it starts."""

from __future__ import annotations

import os
from typing import NamedTuple

from fa.utils.addresses import format_address, parse_address
from fa.utils.validation import check


class TorchrunEnv(NamedTuple):
    """The environment that torchrun sets. Rank 0 is the server, rank i + 1 is worker i."""

    rank: int
    size: int  # number of processes, the server included
    host: str
    port: int
    external_store: bool  # True if torchrun serves the store at host:port


def torchrun_env() -> TorchrunEnv:
    """Read RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Raises:
        ValueError: A variable is missing or invalid.
    """
    size, port = _integer("WORLD_SIZE"), _integer("MASTER_PORT")
    check("WORLD_SIZE", size, size >= 2, "at least 2: a server and a worker")
    rank = _integer("RANK")
    check("RANK", rank, rank < size, f"less than WORLD_SIZE={size}")
    host, port = parse_address("MASTER_ADDR:MASTER_PORT", format_address(os.environ.get("MASTER_ADDR", ""), port))
    return TorchrunEnv(rank, size, host, port, os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True")


def _integer(name: str) -> int:
    text = os.environ.get(name)
    check(name, text, text is not None and text.isdecimal(), "an integer in the environment", "torchrun sets it.")
    return int(text or "")


def run_worker(rank: int, host: str, port: int, threads: int) -> None:
    """Run a worker of the RPC server until the run ends.

    Args:
        rank: Rank of the worker.
        host: Host of the server.
        port: Port of the server.
        threads: Number of torch's threads.
    """
    import torch

    from fa.training.transports.rpc.worker import work

    torch.set_num_threads(threads)
    work(rank, host, port)
