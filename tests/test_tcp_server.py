"""The server of `transports.tcp` without sockets: what a connection may write, and when."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch
from torch import nn

import fa
from fa.training import TrainConfig
from fa.training.transports.base import ServedRun
from fa.training.transports.gathering import Gathering
from fa.training.transports.rounds import WorkerPhase
from fa.training.transports.server_config import TcpConfig
from fa.training.transports.tcp import listener
from fa.training.transports.tcp import server as tcp_server
from fa.training.transports.tcp.connection import Connection
from fa.training.transports.tcp.messages import HEADER_SIZE, NO_RUN, TOKEN_SIZE, Header, Kind
from fa.training.transports.tcp.server import RoundServer
from fa.utils.addresses import create_listener

N = 400_000  # Parameters of more than one chunk, so that a message waits for its reader.
TOKENS = [bytes([rank]) * TOKEN_SIZE for rank in range(2)]


class Wire(asyncio.Transport):
    """Keeps what is written; writing pauses beyond a limit, since nobody reads."""

    def __init__(self, protocol: Connection) -> None:
        super().__init__()
        self.written, self.closed, self.aborted = bytearray(), False, False
        self._protocol, self._limit = protocol, 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._limit = high or 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: Any) -> None:
        self.written += bytes(data)
        if len(self.written) > self._limit:
            self._protocol.pause_writing()

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


def feed(connection: Connection, data: bytes) -> None:
    while data:
        place = connection.get_buffer(-1)
        count = min(len(place), len(data))
        place[:count] = data[:count]
        connection.buffer_updated(count)
        data = data[count:]


def connect(server: RoundServer, rank: int, release: str = fa.__version__) -> Connection:
    """A connection of a worker that has said HELLO."""
    connection = Connection(server)
    connection.connection_made(Wire(connection))
    hello = TOKENS[rank] + release.encode()
    feed(connection, Header(Kind.HELLO, NO_RUN, rank, length=len(hello)).pack() + hello)
    return connection


def join(server: RoundServer, rank: int) -> Connection:
    connection = connect(server, rank)
    feed(
        connection, Header(Kind.JOIN, server.run_id, rank, n=N, length=len(server._compared)).pack() + server._compared
    )
    assert connection.joined
    return connection


def gradient(server: RoundServer, rank: int, iteration: int, value: float) -> bytes:
    data = torch.full((N,), value).numpy().tobytes()
    return Header(Kind.GRADIENT, server.run_id, rank, iteration, N, len(data), 1.0, 0.1).pack() + data


def serve(work: Callable[[RoundServer, Gathering], Awaitable[None]], quorum: int = 2, deadline: float = 600.0) -> None:
    """Call a coroutine function with a server of two workers."""

    async def main() -> None:
        config = TrainConfig(rule="mean", workers=2, byzantine=0)
        run = ServedRun(nn.Identity(), config, torch.zeros(N), "sum")
        gathering = Gathering(run)
        await work(RoundServer(run, gathering, TcpConfig(quorum=quorum, deadline=deadline), TOKENS), gathering)

    asyncio.run(main())


def read_all(connection: Connection) -> None:
    connection._transport.written.clear()
    connection.resume_writing()


def test_a_row_whose_round_has_ended_is_written_no_more() -> None:
    async def work(server: RoundServer, gathering: Gathering) -> None:
        one, late = join(server, 0), join(server, 1)
        rounds = asyncio.create_task(server.round(0, lambda rank: None))
        await asyncio.sleep(0)
        while one.sending or late.sending:
            read_all(one)
            read_all(late)
            await asyncio.sleep(0)
        message = gradient(server, 1, 0, 2.0)
        feed(late, message[: len(message) // 2])
        feed(one, gradient(server, 0, 0, 1.0))
        outcome = await rounds
        G = gathering.finish(0, outcome.missing, outcome.losses).G
        feed(late, message[len(message) // 2 :])
        assert G[0].eq(1.0).all()
        assert G[1].isnan().all()

    serve(work, quorum=1)


def test_a_workers_reason_outlives_the_round() -> None:
    async def work(server: RoundServer, gathering: Gathering) -> None:
        connection, text = join(server, 1), b"batch must be smaller"
        feed(connection, Header(Kind.REFUSE, server.run_id, 1, length=len(text)).pack())
        await server.round(0, lambda rank: None)
        feed(connection, text)
        assert connection.reason == text.decode()

    serve(work, deadline=0.01)


def test_a_process_whose_rank_another_takes_is_not_told_that_the_run_ended() -> None:
    async def work(server: RoundServer, gathering: Gathering) -> None:
        older, newer = join(server, 1), join(server, 1)
        last = Header.unpack(bytes(older._transport.written[-HEADER_SIZE - len(older.reason) :][:HEADER_SIZE]))
        assert last.kind is Kind.REFUSE
        assert older._transport.closed
        assert not newer._transport.closed

    serve(work)


def test_nothing_is_written_into_a_long_message() -> None:
    async def work(server: RoundServer, gathering: Gathering) -> None:
        connection = join(server, 0)
        rounds = asyncio.create_task(server.round(0, lambda rank: None))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert connection.sending
        before = len(connection._transport.written)
        connection.post(Header(Kind.PING, server.run_id, 0))
        assert len(connection._transport.written) == before
        rounds.cancel()

    serve(work)


@pytest.mark.parametrize("passes", [1, 3])
def test_a_gradient_before_its_parameters_are_read_ends_the_connection(passes: int) -> None:
    """Otherwise a worker that reads nothing would have one unfinished message more in each iteration."""

    async def work(server: RoundServer, gathering: Gathering) -> None:
        connection = join(server, 0)
        rounds = asyncio.create_task(server.round(0, lambda rank: None))
        for _ in range(passes):
            await asyncio.sleep(0)
        feed(connection, gradient(server, 0, 0, 1.0))
        assert connection._transport.aborted
        connection.connection_lost(None)
        assert server.rounds.slots[0].phase is WorkerPhase.EXCLUDED
        assert "parameters" in server.rounds.slots[0].reason
        rounds.cancel()

    serve(work)


@pytest.mark.parametrize("release", [fa.__version__, "9.9"])
def test_of_a_ranks_ended_connections_one_waits_for_the_other_end(release: str) -> None:
    """TLS waits 30 s for an answer; the files of a worker that repeats its HELLO would run out."""

    async def work(server: RoundServer, gathering: Gathering) -> None:
        ended = [connect(server, 1, release) for _ in range(50)][: -1 if release == fa.__version__ else None]
        assert all(connection._transport.closed for connection in ended)
        assert [connection._transport.aborted for connection in ended] == [True] * (len(ended) - 1) + [False]

    serve(work)


def test_all_present_workers_hear_a_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that have joined, and those that load their data."""
    monkeypatch.setattr(tcp_server, "_PING_INTERVAL", 0.0)

    async def work(server: RoundServer, gathering: Gathering) -> None:
        present = [join(server, 0), connect(server, 1)]
        for connection in present:
            read_all(connection)
        pinging = asyncio.create_task(server.ping())
        while not all(connection._transport.written for connection in present):
            await asyncio.sleep(0)
        pinging.cancel()
        for connection in present:
            assert Header.unpack(connection._transport.written).kind is Kind.PING

    serve(work)


@pytest.mark.parametrize("found", [False, ConnectionError("the connection has ended")])
def test_without_tokens_workers_of_other_users_are_refused(found: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def same_user(_: object) -> bool:
        if isinstance(found, Exception):
            raise found
        return False

    monkeypatch.setattr(tcp_server, "same_user", same_user)

    async def work(server: RoundServer, gathering: Gathering) -> None:
        server._tokens = None
        connection = connect(server, 0)
        assert connection.rank is None
        assert connection._transport.closed

    serve(work)


def test_a_connection_that_says_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "GREETING_TIMEOUT", 0.05)

    async def work(server: RoundServer, gathering: Gathering) -> None:
        with create_listener("127.0.0.1", 0) as listening:
            listening.setblocking(False)
            accepting = listener.Listener(listening, None, lambda: Connection(server))
            running = asyncio.create_task(accepting.run())
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            assert await asyncio.wait_for(reader.read(), 60) == b""
            assert accepting.refused == 1
            writer.close()
            running.cancel()

    serve(work)


def test_a_gradient_that_is_not_finite_is_no_momentum_to_continue_with() -> None:
    """A new process of the rank would otherwise send nothing else."""
    config = TrainConfig(rule="median", workers=3, byzantine=0, f=0, worker_momentum=0.9)
    gathering = Gathering(ServedRun(nn.Identity(), config, torch.zeros(4), "sum"))
    losses = {rank: torch.tensor(0.5) for rank in range(3)}
    for value in (1.0, torch.nan):
        gathering.G.fill_(1.0)
        gathering.G[1].fill_(value)
        gathering.finish(0, {}, losses)
    assert gathering.momenta[1].eq(1.0).all()
