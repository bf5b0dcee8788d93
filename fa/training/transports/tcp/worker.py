"""The worker's rounds: receive parameters, compute the gradient, send it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import fa
from fa.training.config import TrainConfig
from fa.training.transports.remote_worker import RemoteWorker
from fa.training.transports.tcp.link import TIMEOUT, Link, connect
from fa.training.transports.tcp.messages import (
    TOKEN_SIZE,
    Header,
    Kind,
    ProtocolError,
    Sizes,
    byte_views,
    digest,
    size,
)


def work(
    rank: int,
    host: str,
    port: int,
    keys: Path | None = None,
    token: bytes = bytes(TOKEN_SIZE),
    timeout: float = TIMEOUT,
    prepared: Callable[[TrainConfig], None] = lambda config: None,
) -> None:
    """Compute the gradients of one worker until the run is over.

    Args:
        rank: Rank of the worker, from 0.
        host: Host of the server.
        port: Port of the server.
        keys: Folder of the rank's keys; None for a server on loopback.
        token: Secret of the rank, if the server started this process.
        timeout: Seconds of silence after which the server counts as gone.
        prepared: Called with the run's configuration when the worker asks to join.

    Raises:
        ConnectionError: No server answers, or it is gone or silent.
        ValueError: The server refuses the worker, or the worker the run.
    """
    link, configuration = connect(host, port, rank, keys, token + fa.__version__.encode(), timeout)
    with closing(link):
        worker = _join(link, rank, configuration)
        prepared(worker.config)
        sizes = Sizes(len(worker.parameters), size(worker.statistics), size(worker.carried))
        answer = byte_views([worker.gradient, *worker.statistics])
        while (header := link.receive(Kind.WORK, Kind.END)).kind is Kind.WORK:
            _receive(link, header, worker, sizes)
            try:
                worker.compute(header.iteration)
            except ValueError as error:
                link.refuse(str(error))
                raise
            loss = float(worker.loss)
            link.send(
                Header(Kind.GRADIENT, link.run_id, rank, header.iteration, sizes.n, 0, loss, worker.seconds), answer
            )


def _join(link: Link, rank: int, configuration: bytes) -> RemoteWorker:
    """Prepare the worker, and send what the server compares; a failure is sent too."""
    try:
        config = TrainConfig.from_json(configuration.decode())
        worker = RemoteWorker(rank, config)
    except (ValueError, OSError, ImportError) as error:
        link.refuse(str(error))
        raise
    compared = digest(config.to_json()) + worker.checksum.encode()
    link.send(Header(Kind.JOIN, link.run_id, n=len(worker.parameters)), [compared])
    return worker


def _receive(link: Link, header: Header, worker: RemoteWorker, sizes: Sizes) -> None:
    """Receive parameters, and the state of the rank if this process is new."""
    if header.n != sizes.n or header.length not in sizes.work:
        raise ProtocolError(f"the server sent {header.length} bytes of {header.n} coordinates, not of {sizes.n}")
    carried = worker.carried if header.length > sizes.work[0] else []
    link.read_into(byte_views([worker.parameters, *carried]))
