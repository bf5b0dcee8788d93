"""A run served from this process, with the workers that it starts or awaits."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from fa.training.transports.base import ServedRun
from fa.training.transports.gathering import Gathering
from fa.training.transports.server_config import TcpConfig
from fa.training.transports.spawning import spawn_workers
from fa.training.transports.tcp.keys import server_context
from fa.training.transports.tcp.messages import TOKEN_SIZE
from fa.training.transports.tcp.server import RoundServer
from fa.training.transports.tcp.transport import TcpTransport
from fa.training.transports.tcp.worker import work
from fa.utils.addresses import create_listener
from fa.utils.open_files import raise_file_limit

_FILES_IF_SPAWNED = 3  # per worker that starts here: connection, sentinel and pipe


@contextmanager
def serve_tcp(run: ServedRun, options: TcpConfig) -> Iterator[TcpTransport]:
    """Serve a run from this process; the context begins once the workers have joined.

    Args:
        run: The run.
        options: Address, keys, and whether to start the workers here.

    Yields:
        The transport.
    """
    context = None if options.keys is None else server_context(options.keys)
    raise_file_limit("workers", run.config.workers, _FILES_IF_SPAWNED if options.spawn_workers else 1)
    gathering = Gathering(run)
    spawned = run.config.workers if options.spawn_workers else 0
    tokens = [secrets.token_bytes(TOKEN_SIZE) for _ in range(spawned)]
    server = RoundServer(run, gathering, options, tokens or None)
    with ExitStack() as stack:
        listener = create_listener(options.host, options.port)
        host, port = listener.getsockname()[:2]
        transport = TcpTransport(server, gathering, listener, context, run.timer)
        stack.callback(transport.stop)
        stack.enter_context(
            spawn_workers(
                spawned, work, lambda rank: (rank, host, port, None, tokens[rank]), transport.first_process_ended
            )
        )
        transport.join()
        yield transport
        transport.close()
        if transport.refused:
            print(f"{transport.refused} connections without authentication were ended", file=sys.stderr)
