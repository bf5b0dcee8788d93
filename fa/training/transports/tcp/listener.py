"""Accepts connections, and ends those that do not authenticate themselves in time, or are too many."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

from fa.training.transports.tcp.connection import Connection

PENDING = 64
"""Connections without authentication at a time. One more ends the oldest one."""

GREETING_TIMEOUT = 10.0
"""Seconds for the TLS handshake and the first message."""

_EXHAUSTED = 0.1  # seconds to wait where the system has no file left


class Listener:
    """Accepts connections at one socket.

    Attributes:
        refused: Number of connections that have ended without authentication.
    """

    def __init__(
        self, listener: socket.socket, context: ssl.SSLContext | None, create: Callable[[], Connection]
    ) -> None:
        """Prepare to accept.

        Args:
            listener: Socket that listens, and does not block.
            context: Keys of the server; None to exchange plain bytes.
            create: Creates the protocol of a new connection.
        """
        self.refused = 0
        self._listener = listener
        self._context = context
        self._create = create
        self._pending: dict[asyncio.Task[None], None] = {}  # in the order of arrival

    async def run(self) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    connection, _ = await loop.sock_accept(self._listener)
                except OSError:
                    await asyncio.sleep(_EXHAUSTED)
                    continue
                self._admit(connection)
                await asyncio.sleep(0)  # else others have no turn during a flood
        finally:
            for task in list(self._pending):
                task.cancel()

    def _admit(self, client: socket.socket) -> None:
        """Begin to wait for the authentication of a connection, and no longer for that of the oldest if many wait."""
        if len(self._pending) >= PENDING:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            oldest.cancel()
        protocol = self._create()
        task = asyncio.get_running_loop().create_task(self._greet(client, protocol))
        self._pending[task] = None
        task.add_done_callback(lambda task: self._conclude(task, client, protocol))

    async def _greet(self, client: socket.socket, protocol: Connection) -> None:
        """Wait until a connection has authenticated itself."""
        with suppress(OSError, TimeoutError):  # counted by `_conclude`
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(GREETING_TIMEOUT):
                loop, context = asyncio.get_running_loop(), self._context
                await loop.connect_accepted_socket(lambda: protocol, client, ssl=context)
                await protocol.greeted

    def _conclude(self, task: asyncio.Task[None], client: socket.socket, protocol: Connection) -> None:
        """End a connection that has not authenticated itself."""
        self._pending.pop(task, None)
        if protocol.rank is None:
            self.refused += 1
            protocol.abort()
            client.close()
