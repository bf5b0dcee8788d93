"""A run that is served over RPC from this process, with the workers that it starts or awaits."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from fa.training.transports.base import ServedRun
from fa.training.transports.gathering import Gathering
from fa.training.transports.rpc import connection
from fa.training.transports.rpc.server import RpcTransport, clear_active, set_active
from fa.training.transports.rpc.worker import work
from fa.training.transports.server_config import RpcConfig
from fa.training.transports.spawning import spawn_workers
from fa.training.transports.udp import Inbox
from fa.utils.addresses import create_listener
from fa.utils.open_files import raise_file_limit

_FILES = 34  # that TensorPipe opens in the server for each worker: 31 were counted


@contextmanager
def serve_rpc(run: ServedRun, options: RpcConfig) -> Iterator[RpcTransport]:
    """Serve a run from this process; the context begins once the workers have joined.

    Args:
        run: The run.
        options: Address, and whether to start the workers here.

    Yields:
        The transport.

    Raises:
        ValueError: This process serves another run, or may not open enough files.
    """
    workers = run.config.workers
    raise_file_limit("workers", workers, _FILES)
    with ExitStack() as stack:
        inbox = stack.enter_context(_open_inbox(options, workers, len(run.parameters)))
        gathering = Gathering(replace(run, needs_gram=False) if inbox else run)  # Datagrams arrive interleaved.
        transport = RpcTransport(run, gathering, options, inbox)
        set_active(transport)
        stack.callback(clear_active)
        if options.external_store:
            store, port = connection.connect_store(options.host, options.port), options.port
        else:
            store, port = connection.create_store(options.host, options.port)
        stack.enter_context(connection.rpc_agent(store, options.host, server=True))
        spawned = workers if options.spawn_workers else 0
        stack.enter_context(
            spawn_workers(spawned, work, lambda rank: (rank, options.host, port), transport.first_process_ended)
        )
        transport.join()
        yield transport
        transport.close()


@contextmanager
def _open_inbox(options: RpcConfig, workers: int, n: int) -> Iterator[Inbox | None]:
    """Receive datagrams at the store's port number; yields None if gradients travel by RPC."""
    if options.gradients != "udp":
        yield None
        return
    with create_listener(options.host, options.port, socket.SOCK_DGRAM) as receiver:
        inbox = Inbox(receiver, workers, n, previous=options.lost == "previous")
        try:
            yield inbox
        finally:
            inbox.close()
        if inbox.discarded:
            print(f"{inbox.discarded} datagrams were discarded: forged, repeated or late", file=sys.stderr)
