"""The transport of a run: it drives a `RoundServer` in the thread of an event loop from the training loop's thread."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from fa.training.transports.gathering import Gathering
from fa.training.transports.process_transport import CLOSE_TIMEOUT, ProcessTransport
from fa.training.transports.rounds import RoundOutcome
from fa.training.transports.tcp.connection import Connection
from fa.training.transports.tcp.listener import Listener
from fa.training.transports.tcp.server import RoundServer
from fa.utils.timing import PhaseTimer

Result = TypeVar("Result")


class TcpTransport(ProcessTransport):
    """A transport over worker processes that are connected by TCP or TLS.

    Attributes:
        refused: Number of connections without authentication that have been ended.
    """

    def __init__(
        self,
        server: RoundServer,
        gathering: Gathering,
        listener: socket.socket,
        context: ssl.SSLContext | None,
        timer: PhaseTimer,
    ) -> None:
        """Start to serve; `stop` must follow.

        Args:
            server: The rounds.
            gathering: Rows and states of the ranks.
            listener: Socket that listens; `stop` closes it.
            context: Keys of the server; None to exchange plain bytes.
            timer: Timer of the run's phases.
        """
        super().__init__(gathering, timer)
        self._server = server
        listener.setblocking(False)
        self._socket = listener
        self._listener = Listener(listener, context, lambda: Connection(server))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._services = [self._submit(self._listener.run()), self._submit(server.ping())]

    @property
    def refused(self) -> int:
        """Number of connections without authentication that have been ended."""
        return self._listener.refused

    def _join(self, timeout: float) -> None:
        self._submit(self._server.join(timeout)).result()

    def first_process_ended(self, rank: int, reason: str) -> None:
        """Exclude a rank whose first process has ended, unless another process has joined, or it has sent a reason.

        Args:
            rank: Rank of the process.
            reason: The reason, for the records.
        """
        self._loop.call_soon_threadsafe(self._server.first_process_ended, rank, reason)

    def _gather(self, iteration: int) -> RoundOutcome:
        arrivals: SimpleQueue[int | None] = SimpleQueue()
        outcome = self._submit(self._server.round(iteration, arrivals.put))
        outcome.add_done_callback(lambda _: arrivals.put(None))
        while (rank := arrivals.get()) is not None:
            self._gathering.add(rank)
        return outcome.result()

    def close(self) -> None:
        """End the run, and wait until the present workers have ended their connections."""
        self._submit(self._server.end(CLOSE_TIMEOUT)).result()

    def stop(self) -> None:
        """Stop to serve, and end all connections."""
        for service in self._services:
            service.cancel()
        self._submit(_cancel_others()).result()
        self._submit(self._server.abort()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._socket.close()

    def _submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)


async def _cancel_others() -> None:
    """Cancel all other tasks of this loop, and wait for their ends."""
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
