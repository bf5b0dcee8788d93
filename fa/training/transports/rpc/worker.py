"""The worker's end of RPC: request parameters, compute the gradient, send it with the next request."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import torch

import fa
from fa.training.config import TrainConfig
from fa.training.transports.remote_worker import RemoteWorker
from fa.training.transports.rounds import NEW
from fa.training.transports.rpc import connection, server
from fa.training.transports.udp import create_sender, send

TIMEOUT = 60.0
"""Seconds of silence after which a worker gives its server up."""

_INTERVAL = 10.0  # seconds between two signs of life of the server


def work(
    rank: int,
    host: str,
    port: int,
    timeout: float = TIMEOUT,
    prepared: Callable[[TrainConfig], None] = lambda config: None,
) -> None:
    """Compute the gradients of one worker until the run is over.

    The process exits if the server is silent for the timeout, since a call of torch's RPC cannot be interrupted.

    Args:
        rank: Rank of the worker, from 0.
        host: Host of the server.
        port: Port of the server's store.
        timeout: Seconds to wait for a server to start, and of silence after which it counts as gone.
        prepared: Called with the run's configuration when the worker asks to join.

    Raises:
        ConnectionError: No server is found, or the server is gone.
        ValueError: The server refuses the worker.
    """
    with connection.rpc_agent(connection.connect_store(host, port, timeout), host, server=False):
        ended = threading.Event()
        threading.Thread(target=_watch, args=(rank, timeout, ended), daemon=True).start()
        try:
            _work(rank, host, prepared)
        finally:
            ended.set()


def _watch(rank: int, timeout: float, ended: threading.Event) -> None:
    """Exit if the server is silent, until the run has ended."""
    while not ended.wait(min(_INTERVAL, timeout)):
        try:
            connection.call_server(server.is_alive, timeout=timeout)
        except ConnectionError as error:
            if ended.wait(1.0):  # the main thread reports a server that is gone
                return
            print(f"worker {rank}: {error}", file=sys.stderr, flush=True)
            os._exit(1)


def _prepare(rank: int, configuration: str) -> RemoteWorker:
    """Prepare the worker; a failure is sent to the server too."""
    try:
        return RemoteWorker(rank, TrainConfig.from_json(configuration))
    except (ValueError, OSError, ImportError) as error:
        with suppress(ConnectionError):
            connection.call_server(server.refuse, rank, str(error))
        raise


def _work(rank: int, host: str, prepared: Callable[[TrainConfig], None]) -> None:
    worker = _prepare(rank, connection.call_server(server.describe, rank, fa.__version__))
    prepared(worker.config)
    connection.call_server(server.compare, rank, worker.checksum)
    channel = connection.call_server(server.datagram_channel, rank)
    sender = None if channel is None else create_sender(host, channel[0])
    payload = worker.gradient if sender is None else torch.zeros(0)
    iteration = NEW
    while True:
        message = rank, iteration, payload, worker.loss, worker.statistics, worker.seconds
        answer = connection.call_server(server.exchange, *message)
        if answer is None:
            with suppress(ConnectionError):  # the server may exit before it answers
                connection.call_server(server.acknowledge, rank)
            return
        iteration, received, carried = answer
        worker.parameters.copy_(received)
        for tensor, value in zip(worker.carried, carried, strict=bool(carried)):
            tensor.copy_(value)
        try:
            worker.compute(iteration)
        except ValueError as error:
            with suppress(ConnectionError):
                connection.call_server(server.leave, rank, str(error))
            raise
        if sender is not None:
            send(sender, rank, iteration, worker.gradient, channel[1], worker.config.workers)
