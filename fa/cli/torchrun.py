"""Who a process is among the server and the workers of a run, where they meet, and where tensors can be."""

from __future__ import annotations

import os
from typing import NamedTuple

from fa.utils.validation import check


class Place(NamedTuple):
    """What torchrun, or who does as it does, says in the environment. Rank 0 is the server, rank i + 1 worker i."""

    rank: int
    size: int  # of all, the server among them
    host: str
    port: int
    store_kept: bool  # whether the store at host:port is torchrun's own


def from_environment() -> Place:
    """The place that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT give; ValueError for one that is not there."""
    size, port = _number("WORLD_SIZE"), _number("MASTER_PORT")
    check("WORLD_SIZE", size, size >= 2, "at least 2: a server and a worker")
    rank = _number("RANK")
    check("RANK", rank, rank < size, f"less than WORLD_SIZE={size}")
    host, port = address("MASTER_ADDR:MASTER_PORT", f"{os.environ.get('MASTER_ADDR', '')}:{port}")
    return Place(rank, size, host, port, os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True")


def _number(name: str) -> int:
    text = os.environ.get(name)
    if text is None or not text.isdecimal():
        raise ValueError(f"{name} must be a whole number in the environment, as torchrun sets it, got {text!r}")
    return int(text)


def address(name: str, text: str) -> tuple[str, int]:
    """HOST:PORT in two parts; ValueError for what is none."""
    host, _, port = text.rpartition(":")
    check(name, text, host != "" and port.isdecimal() and int(port) < 1 << 16, "HOST:PORT")
    return host, int(port)


def compute(rank: int, host: str, port: int, threads: int) -> None:
    """Be worker `rank` of the run that is served at host:port."""
    import torch

    from fa.training.transports.rpc.worker import work

    torch.set_num_threads(threads)
    work(rank, host, port)


def check_device(name: str | None) -> None:
    """Raise ValueError for a device that is not here, before the first run fails for it."""
    if name is not None:
        from fa.utils.devices import find_device

        find_device(name)
