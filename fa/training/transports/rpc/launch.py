"""Worker processes of this machine, from a fork server that has imported torch; none outlives the server."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import wait
from typing import Any

from torch import Tensor, nn

from fa.training.config import TrainConfig
from fa.training.transports.base import RpcConfig
from fa.training.transports.rpc import connection
from fa.training.transports.rpc.server import RpcTransport, clear_active, set_active
from fa.training.transports.udp import Inbox
from fa.utils.forkserver import exit_when_parent_dies, forkserver_context
from fa.utils.malloc import retain_freed_memory
from fa.utils.timing import PhaseTimer

_EXIT_TIMEOUT = 5.0  # seconds


@contextmanager
def serve(
    model: nn.Module, config: TrainConfig, parameters: Tensor, needs_gram: bool, options: RpcConfig, timer: PhaseTimer
) -> Iterator[RpcTransport]:
    """Serve a run from this process; the context begins once the workers have joined.

    Args:
        model: The run's model.
        config: The run's configuration.
        parameters: Vector of the model's parameters (n,).
        needs_gram: True if the rule needs the Gram matrix.
        options: Address, and whether to start the workers here.
        timer: Timer of the run's phases.

    Yields:
        The transport.
    """
    with ExitStack() as stack:
        inbox = stack.enter_context(_open_inbox(options, config.workers, len(parameters)))
        transport = RpcTransport(model, config, parameters, options, needs_gram, timer, inbox)
        set_active(transport)
        stack.callback(clear_active)
        if options.external_store:
            store, port = connection.connect_store(options.host, options.port), options.port
        else:
            store, port = connection.create_store(options.host, options.port)
        stack.enter_context(connection.rpc_agent(store, options.host, server=True))
        workers: list[Any] = []
        try:
            if options.spawn_workers:
                _spawn(workers, config.workers, options.host, port)
            threading.Thread(target=_watch, args=(workers, transport.lose), daemon=True).start()
            transport.join()
            yield transport
            transport.close()
            for process in workers:
                process.join(_EXIT_TIMEOUT)
        finally:
            for process in workers:
                process.kill()
            for process in workers:
                process.join()


@contextmanager
def _open_inbox(options: RpcConfig, workers: int, n: int) -> Iterator[Inbox | None]:
    """Receive datagrams at the store's port number; yields None if gradients travel by RPC."""
    if options.channel != "udp":
        yield None
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((options.host, options.port))
        inbox = Inbox(receiver, workers, n, previous=options.loss_fill == "previous")
        try:
            yield inbox
        finally:
            inbox.close()


def _spawn(processes: list[Any], workers: int, host: str, port: int) -> None:
    """Start the workers, and append each one as it starts: the caller kills them even if a later start fails."""
    context = forkserver_context(preload="fa.training.transports.rpc.worker")
    for rank in range(workers):
        process = context.Process(target=_work, args=(rank, host, port), name=f"fa-{rank}", daemon=True)
        process.start()
        processes.append(process)


def _watch(processes: list[Any], lose: Callable[[int, str], None]) -> None:
    """Report every process that ends."""
    ranks = {process.sentinel: rank for rank, process in enumerate(processes)}
    while ranks:
        for sentinel in wait(list(ranks)):
            lose(ranks.pop(sentinel), "its process has ended")


def _work(rank: int, host: str, port: int) -> None:
    """Run one worker in the child process."""
    exit_when_parent_dies()
    retain_freed_memory()
    import torch

    from fa.training.transports.rpc.worker import work

    torch.set_num_threads(1)
    try:
        work(rank, host, port)
    except ConnectionError as error:
        print(f"worker {rank}: {error}", file=sys.stderr)
        os._exit(1)
