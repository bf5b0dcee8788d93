"""The server's rounds over TCP. All methods of `RoundServer` run in the event loop's thread."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import torch

import fa
from fa.training.transports.base import ServedRun
from fa.training.transports.gathering import Gathering
from fa.training.transports.rounds import NEW, GradientMessage, Reply, RoundOutcome, Rounds
from fa.training.transports.server_config import TcpConfig
from fa.training.transports.tcp.connection import Connection
from fa.training.transports.tcp.keys import is_of_rank
from fa.training.transports.tcp.messages import (
    MAX_CONFIG,
    MAX_TEXT,
    NO_RUN,
    RUN_SIZE,
    TOKEN_SIZE,
    Header,
    Kind,
    ProtocolError,
    Sizes,
    byte_views,
    decode,
    digest,
    size,
)
from fa.utils.addresses import same_user
from fa.utils.validation import check

_PING_INTERVAL = 5.0  # seconds
_DIGEST_SIZE = 32


class RoundServer:
    """Handles the messages of all connections; `Rounds` decides on every answer.

    A gradient is received in its row of G, if its header is that of the open round. Parameters are sent without a copy.
    A worker so slow that they change meanwhile computes a gradient that is ignored.
    """

    def __init__(
        self,
        run: ServedRun,
        gathering: Gathering,
        options: TcpConfig,
        tokens: Sequence[bytes] | None,
    ) -> None:
        """Prepare the rounds of a run; no worker has joined yet.

        Args:
            run: The run.
            gathering: Rows and states of the ranks.
            options: Deadline and quorum of a round.
            tokens: Secret of each rank; None if workers have none.
        """
        self.run_id = secrets.token_bytes(RUN_SIZE)
        self.rounds = Rounds[Connection](
            run.config.workers, gathering.G[0], gathering.buffers[0].tensors, options.quorum, options.deadline
        )
        text = run.config.to_json()
        check("rule_options", f"{len(text)} bytes", len(text) <= MAX_CONFIG, f"at most {MAX_CONFIG} bytes as JSON")
        self._configuration = text.encode()
        self._compared = digest(text) + run.checksum.encode()
        self._parameters = run.parameters
        self._gathering = gathering
        self._deadline = options.deadline
        self._tokens = tokens
        self._sizes = Sizes(len(run.parameters), size(gathering.buffers[0].tensors), size(gathering.carried(0)))
        self._received = [[torch.empty_like(b) for b in buffers.tensors] for buffers in gathering.buffers]
        self._connections: dict[int, Connection] = {}  # that take part in rounds: the newest of each rank
        self._joining: dict[int, Connection] = {}  # that have authenticated themselves: the newest of each rank
        self._lingering: dict[int, Connection] = {}  # that wait for the other end's consent: at most one of each rank
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrived: Callable[[int], None] = _ignore
        self._reported: set[tuple[int, str]] = set()

    # Headers: checked before anything is received or allocated.

    def place(self, connection: Connection, header: Header) -> list[memoryview] | None:
        """Check a header, and choose the memory for the bytes that follow.

        Args:
            connection: Connection of the message.
            header: Its header.

        Returns:
            The rank's row of G and its statistics for a gradient, else new memory. None to ignore a gradient that the
            open round does not expect.

        Raises:
            ProtocolError: The message is of another run or rank, or is not expected at this point.
        """
        if connection.rank is None:
            self._check_hello(header)
        elif header.run_id != self.run_id:
            raise ProtocolError("sent a message of another run")
        elif header.rank != connection.rank:
            raise ProtocolError(f"sent a message of rank {header.rank}, not {connection.rank}")
        elif connection.joined and not _is_reason(header):
            return self._place_gradient(connection, header)
        elif header.kind not in (Kind.JOIN, Kind.REFUSE) or header.length > MAX_TEXT:
            raise ProtocolError(f"sent {header.kind.name} of {header.length} bytes before it joined")
        connection.data = bytearray(header.length)
        return [memoryview(connection.data)] if header.length else []

    def _check_hello(self, header: Header) -> None:
        if header.kind is not Kind.HELLO or header.run_id != NO_RUN:
            raise ProtocolError(f"sent {header.kind.name} before it said HELLO")
        if not TOKEN_SIZE <= header.length <= TOKEN_SIZE + MAX_TEXT:
            raise ProtocolError(f"sent a HELLO of {header.length} bytes")
        if not 0 <= header.rank < len(self.rounds.slots):
            p = len(self.rounds.slots)
            raise ProtocolError(f"rank must be at least 0 and less than the run's {p} workers, got {header.rank}")

    def _place_gradient(self, connection: Connection, header: Header) -> list[memoryview] | None:
        if header.kind is not Kind.GRADIENT or connection.assigned is None:
            raise ProtocolError(f"sent {header.kind.name} although nothing was expected")
        if header.iteration != connection.assigned:
            raise ProtocolError(f"sent a gradient of iteration {header.iteration}, not {connection.assigned}")
        if (header.n, header.length) != (self._sizes.n, self._sizes.gradient):
            raise ProtocolError(f"sent {header.length} bytes of {header.n} coordinates, not of {self._sizes.n}")
        if connection.sending:
            raise ProtocolError("sent a gradient before it had read its parameters")
        connection.assigned = None
        rank = header.rank
        if not self.rounds.expects(rank, header.iteration):
            return None
        return byte_views([self._gathering.G[rank], *self._received[rank]])

    # Messages whose bytes have arrived.

    def receive(self, connection: Connection, header: Header, kept: bool) -> None:
        """Process a message whose bytes have arrived.

        The message authenticates a worker, lets it join, gives its reason to exit, or delivers a gradient.

        Args:
            connection: Connection of the message.
            header: Its header.
            kept: False if its bytes were ignored.

        Raises:
            ProtocolError: The worker does not authenticate itself as the rank.
        """
        if connection.rank is None:
            self._greet(connection, header.rank)
        elif not connection.joined:
            self._join(connection, header)
        elif _is_reason(header):
            connection.fail(decode(connection.data))
        else:
            self._use(connection, header, kept)

    def _greet(self, connection: Connection, rank: int) -> None:
        """Authenticate a worker, and send it the configuration."""
        self._authenticate(connection, rank)
        connection.rank = rank
        release = decode(connection.data[TOKEN_SIZE:])
        if release != fa.__version__:
            self._refuse(connection, f"release must be the server's {fa.__version__}, got {release}")
            return
        if connection.greeted.done():  # It has failed since.
            return
        if older := self._joining.get(rank):
            older.fail("another process has this rank")
        self._joining[rank] = connection
        connection.greeted.set_result(None)
        connection.post(Header(Kind.WELCOME, self.run_id, rank), self._configuration)

    def _authenticate(self, connection: Connection, rank: int) -> None:
        certificate = connection.peer("peercert")
        if certificate is not None:
            if not is_of_rank(certificate, rank):
                raise ProtocolError(f"certificate must be that of rank {rank}")
        elif self._tokens is not None:
            if not hmac.compare_digest(bytes(connection.data[:TOKEN_SIZE]), self._tokens[rank]):
                raise ProtocolError(f"token must be that of rank {rank}")
        else:
            try:
                same = same_user(connection.peer("socket"))
            except ConnectionError as error:
                raise ProtocolError(str(error)) from error
            if not same:
                raise ProtocolError("user must be the server's")

    def _join(self, connection: Connection, header: Header) -> None:
        """Compare what the worker has with the server's, and let it take part."""
        rank, data = header.rank, bytes(connection.data)
        if header.kind is Kind.REFUSE:
            self._refuse(connection, decode(data))
            return
        if header.n != self._sizes.n:
            self._refuse(connection, f"n must be {self._sizes.n}, got {header.n}: the model differs")
            return
        if data != self._compared:
            part = "configuration" if data[:_DIGEST_SIZE] != self._compared[:_DIGEST_SIZE] else "checksum of the data"
            self._refuse(connection, f"{part} must be the server's, got another")
            return
        connection.joined = True
        del self._joining[rank]
        older = self._connections.get(rank)
        self._connections[rank] = connection
        if older is not None:
            older.fail("another process has this rank")
        received, gradient = self._received[rank], self._gathering.G[rank]
        self.rounds.offer(GradientMessage(rank, NEW, gradient, torch.zeros(()), received))
        self._request(rank, connection)

    def _refuse(self, connection: Connection, reason: str) -> None:
        """End a connection; both ends report the reason."""
        assert connection.rank is not None
        self.rounds.refuse(connection.rank, f"refused: {reason}")
        self._changed.set()
        if (connection.rank, reason) not in self._reported and len(self._reported) < len(self.rounds.slots):
            self._reported.add((connection.rank, reason))
            print(f"worker {connection.rank} is refused: {reason}", file=sys.stderr)
        connection.fail(reason)

    def _use(self, connection: Connection, header: Header, kept: bool) -> None:
        """Deliver a gradient, and register the request that it implies."""
        rank = header.rank
        loss = torch.tensor(header.loss, dtype=self._parameters.dtype)
        message = GradientMessage(
            rank, header.iteration, self._gathering.G[rank], loss, self._received[rank], header.seconds
        )
        if not kept:
            self.rounds.skip(rank)
        elif self.rounds.offer(message):
            for buffer, value in zip(self._gathering.buffers[rank].tensors, self._received[rank], strict=True):
                buffer.copy_(value)
            self.rounds.deliver(message)
            self._arrived(rank)
        self._request(rank, connection)

    def _request(self, rank: int, connection: Connection) -> None:
        self._reply(self.rounds.request(rank, connection))
        self._changed.set()

    def _reply(self, replies: Iterable[Reply[Connection]]) -> None:
        for reply in replies:
            connection, rank = reply.request, reply.rank
            if reply.iteration is None:
                connection.finish(Header(Kind.END, self.run_id, rank))
                continue
            carried = self._gathering.carried(rank) if reply.with_carried else []
            views = byte_views([self._parameters, *carried])
            length = sum(map(len, views))
            connection.assigned, connection.sending = reply.iteration, True
            header = Header(Kind.WORK, self.run_id, rank, reply.iteration, self._sizes.n, length)
            self._start(connection.send(header, views))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def linger(self, connection: Connection) -> None:
        """Let a connection wait for the other end's consent to its end, and the rank's previous one no longer.

        Args:
            connection: The connection.
        """
        if connection.rank is None:  # `Listener` ends it.
            return
        older = self._lingering.get(connection.rank)
        self._lingering[connection.rank] = connection
        if older is not None:
            older.abort()

    def close(self, connection: Connection) -> None:
        """Exclude the rank of a connection that has ended, unless the rank has a newer connection.

        Args:
            connection: The connection. Its `reason` is recorded.
        """
        rank = connection.rank
        if rank is not None and self._joining.get(rank) is connection:
            del self._joining[rank]
        if rank is not None and self._lingering.get(rank) is connection:
            del self._lingering[rank]
        if rank is None or self._connections.get(rank) is not connection:
            return
        del self._connections[rank]
        self.rounds.newest_process_ended(rank, connection.reason)
        self._changed.set()

    # Called by the transport.

    def first_process_ended(self, rank: int, reason: str) -> None:
        """Exclude a rank whose first process has ended, unless another process has joined, or it has sent a reason.

        Args:
            rank: Rank of the process.
            reason: The reason, for the records.
        """
        self.rounds.first_process_ended(rank, reason)
        self._changed.set()

    async def join(self, timeout: float) -> None:
        """Wait until every worker has joined or ended. Ranks that have not joined in time are excluded.

        Args:
            timeout: Longest time to wait, in seconds.
        """
        if not await self._until(lambda: self.rounds.joined, timeout):
            self.rounds.pass_joining_deadline(timeout)

    async def round(self, iteration: int, arrived: Callable[[int], None]) -> RoundOutcome:
        """Gather the gradients of an iteration that arrive in time.

        Args:
            iteration: Iteration, from 0.
            arrived: Called with each rank whose row is complete.
        """
        rounds, loop, self._arrived = self.rounds, asyncio.get_running_loop(), arrived
        began = loop.time()
        self._reply(rounds.begin(iteration))
        complete = await self._until(lambda: rounds.complete, self._deadline)
        rounds.end()
        self._arrived = _ignore
        for connection in self._connections.values():
            connection.ignore_gradient()  # incomplete rows are not written to any more
        if not complete:
            rounds.pass_deadline()
        return rounds.outcome(loop.time() - began)

    async def end(self, timeout: float) -> None:
        """End the run, and wait until the present workers have ended their connections.

        Args:
            timeout: Longest time to wait, in seconds.
        """
        self._reply(self.rounds.close())
        await self._until(lambda: not self._connections, timeout)

    async def abort(self) -> None:
        """End all connections at once."""
        for connection in [*self._connections.values(), *self._joining.values(), *self._lingering.values()]:
            connection.abort()
        await asyncio.sleep(0)  # in which asyncio closes them

    async def ping(self) -> None:
        """Send every worker a sign of life from time to time, until cancelled."""
        while True:
            await asyncio.sleep(_PING_INTERVAL)
            for connection in [*self._connections.values(), *self._joining.values()]:
                assert connection.rank is not None
                connection.post(Header(Kind.PING, self.run_id, connection.rank))

    async def _until(self, condition: Callable[[], object], timeout: float) -> bool:
        """Wait for a condition, for at most that many seconds; returns whether it holds."""
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        return bool(condition())


def _is_reason(header: Header) -> bool:
    """Return True for a message with the reason for which a worker ends."""
    return header.kind is Kind.REFUSE and header.length <= MAX_TEXT


def _ignore(rank: int) -> None:
    """Ignore an arrival between two rounds."""
