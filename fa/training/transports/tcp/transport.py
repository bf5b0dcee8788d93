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

from torch import Tensor

from fa.training.parameter_vector import Buffers
from fa.training.transports.base import GatheredGradients
from fa.training.transports.gathering import Gathering
from fa.training.transports.tcp.connection import Connection
from fa.training.transports.tcp.listener import Listener
from fa.training.transports.tcp.server import RoundServer
from fa.utils.timing import PhaseTimer

_JOIN_TIMEOUT = 120.0  # seconds
_CLOSE_TIMEOUT = 5.0  # seconds

Result = TypeVar("Result")


class TcpTransport:
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
        self._server = server
        self._gathering = gathering
        self._timer = timer
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

    def join(self) -> None:
        """Wait until every worker has joined or ended."""
        with self._timer.phase("join"):
            self._submit(self._server.join(_JOIN_TIMEOUT)).result()

    def first_process_ended(self, rank: int, reason: str) -> None:
        """Exclude a rank whose first process has ended, unless another process has joined, or it has sent a reason.

        Args:
            rank: Rank of the process.
            reason: The reason, for the records.
        """
        self._loop.call_soon_threadsafe(self._server.first_process_ended, rank, reason)

    def gradients(self, iteration: int) -> GatheredGradients:
        """Gather gradients until the quorum has arrived or the deadline has passed.

        Args:
            iteration: Iteration, from 0.

        Returns:
            The gradients. The rows of missing workers are NaN, which rules exclude.

        Raises:
            TooFewWorkersError: No honest worker has sent a gradient.
        """
        arrivals: SimpleQueue[int | None] = SimpleQueue()
        self._gathering.begin()
        outcome = self._submit(self._server.round(iteration, arrivals.put))
        outcome.add_done_callback(lambda _: arrivals.put(None))
        while (rank := arrivals.get()) is not None:
            self._gathering.add(rank)
        missing, losses, seconds = outcome.result()
        self._timer.add("compute", seconds)
        return self._gathering.finish(iteration, missing, losses)

    def statistics(self) -> list[Buffers]:
        """Return each worker's batch-norm statistics as it last sent them."""
        return self._gathering.buffers

    def momenta(self) -> list[Tensor]:
        """Return each worker's momentum as it last sent it."""
        return self._gathering.momenta

    def close(self) -> None:
        """End the run, and wait until the present workers have ended their connections."""
        self._submit(self._server.end(_CLOSE_TIMEOUT)).result()

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
