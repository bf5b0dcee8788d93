"""A run that is served over RPC from this process, with the workers that it starts or awaits."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from fa.training.config import TrainConfig
from fa.training.transports.base import RpcConfig
from fa.training.transports.processes import spawn_workers
from fa.training.transports.rpc import connection
from fa.training.transports.rpc.server import RpcTransport, clear_active, set_active
from fa.training.transports.rpc.worker import work
from fa.training.transports.udp import Inbox
from fa.utils.addresses import create_listener
from fa.utils.open_files import raise_file_limit
from fa.utils.timing import PhaseTimer

_FILES = 34  # that TensorPipe opens in the server for each worker: 31 were counted


@contextmanager
def serve(
    model: nn.Module,
    config: TrainConfig,
    parameters: Tensor,
    checksum: str,
    needs_gram: bool,
    options: RpcConfig,
    timer: PhaseTimer,
) -> Iterator[RpcTransport]:
    """Serve a run from this process; the context begins once the workers have joined.

    Args:
        model: The run's model.
        config: The run's configuration.
        parameters: Vector of the model's parameters (n,).
        checksum: Checksum of the run's data set.
        needs_gram: True if the rule needs the Gram matrix.
        options: Address, and whether to start the workers here.
        timer: Timer of the run's phases.

    Yields:
        The transport.

    Raises:
        ValueError: This process serves another run, or may not open enough files.
    """
    raise_file_limit("workers", config.workers, _FILES)
    with ExitStack() as stack:
        inbox = stack.enter_context(_open_inbox(options, config.workers, len(parameters)))
        transport = RpcTransport(model, config, parameters, options, needs_gram, timer, inbox, checksum)
        set_active(transport)
        stack.callback(clear_active)
        if options.external_store:
            store, port = connection.connect_store(options.host, options.port), options.port
        else:
            store, port = connection.create_store(options.host, options.port)
        stack.enter_context(connection.rpc_agent(store, options.host, server=True))
        spawned = config.workers if options.spawn_workers else 0
        stack.enter_context(
            spawn_workers(spawned, work, lambda rank: (rank, options.host, port), transport.first_process_ended)
        )
        transport.join()
        yield transport
        transport.close()


@contextmanager
def _open_inbox(options: RpcConfig, workers: int, n: int) -> Iterator[Inbox | None]:
    """Receive datagrams at the store's port number; yields None if gradients travel by RPC."""
    if options.channel != "udp":
        yield None
        return
    with create_listener(options.host, options.port, socket.SOCK_DGRAM) as receiver:
        inbox = Inbox(receiver, workers, n, previous=options.loss_fill == "previous")
        try:
            yield inbox
        finally:
            inbox.close()
        if inbox.discarded:
            print(f"{inbox.discarded} datagrams were discarded: forged, repeated or late", file=sys.stderr)
