"""The transport that carries numbers only: its format, its keys, and what attackers and Byzantine workers can do."""

import errno
import io
import multiprocessing
import os
import pickle
import random
import re
import resource
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fa
from fa import cli, models
from fa.rules.decision import NOT_FINITE
from fa.training import Progress, Run, TrainConfig, train
from fa.training.parameter_vector import flatten
from fa.training.records import USED
from fa.training.transports.base import ServedRun
from fa.training.transports.gathering import Gathering
from fa.training.transports.server_config import RpcConfig, TcpConfig
from fa.training.transports.tcp import link, listener
from fa.training.transports.tcp.keys import _Authority, create_keys, worker_context
from fa.training.transports.tcp.messages import (
    FLOAT32,
    HEADER_SIZE,
    NO_RUN,
    TOKEN_SIZE,
    Header,
    Kind,
    ProtocolError,
    Sizes,
    byte_views,
    decode,
)
from fa.training.transports.tcp.worker import work
from fa.utils.addresses import create_listener, format_address, is_loopback, parse_address, same_user
from fa.utils.open_files import raise_file_limit
from fa.utils.validation import TooFewWorkersError
from tests.processes import beside, free_port, tcp_worker, wait_until, without_data

SMALL = TrainConfig(
    rule="median", workers=4, byzantine=0, f=0, iterations=20, batch=4, lr=0.05, seed=5, evaluate_every=0
)
N = 21_840
HELLO = Header(Kind.HELLO, NO_RUN)


def losses(config: TrainConfig, **arguments: object) -> tuple[list[float], Run]:
    seen: list[float] = []
    run = train(config, threads=1, progress=lambda state: seen.append(float(state.loss)), **arguments)
    return seen, run


def statuses(run: Run, worker: int) -> set[str]:
    return {row.status for row in run.workers if row.worker == worker}


# The format.


def test_a_header_has_one_size_and_comes_back() -> None:
    header = Header(Kind.GRADIENT, b"r" * 16, 3, 7, N, 4 * N, 0.1, 2.5)
    assert len(header.pack()) == HEADER_SIZE
    assert Header.unpack(header.pack()) == header


@pytest.mark.parametrize(("start", "value"), [(0, b"X"), (4, b"\x7f"), (6, b"\x00"), (6, b"\x63"), (7, bytes([9]))])
def test_headers_of_others_are_refused(start: int, value: bytes) -> None:
    data = bytearray(HELLO.pack())
    assert data[7] == FLOAT32
    data[start : start + 1] = value
    with pytest.raises(ProtocolError):
        Header.unpack(data)


def test_random_bytes_and_flipped_bits_are_headers_or_errors_of_the_protocol() -> None:
    stream = random.Random(1)
    for _ in range(20_000):
        data = bytearray(HELLO.pack() if stream.random() < 0.7 else stream.randbytes(HEADER_SIZE))
        data[stream.randrange(HEADER_SIZE)] = stream.randrange(256)
        with suppress(ProtocolError):
            assert Header.unpack(data).kind in Kind


def test_sizes_of_messages_follow_from_the_model() -> None:
    assert Sizes(10, 24, 64).gradient == 64
    assert Sizes(10, 24, 64).work == (40, 104)


def test_bytes_are_views_of_the_tensors() -> None:
    tensor, count = torch.zeros(3), torch.tensor(5)
    first, second = byte_views([tensor, torch.zeros(0), count])
    first[:4] = struct.pack("=f", 2.0)
    assert tensor.tolist() == [2.0, 0.0, 0.0]
    assert len(second) == 8
    with pytest.raises(ValueError, match=r"^tensor must be contiguous"):
        byte_views([torch.zeros(2, 3).T])


def test_a_peers_text_is_printable_and_of_one_line() -> None:
    assert decode(b"a\n\x1b[31mb\xff") == "a??[31mb\ufffd"


# Addresses.


@pytest.mark.parametrize(
    ("text", "expected"), [("a:1", ("a", 1)), ("[::1]:29500", ("::1", 29500)), ("127.0.0.1:0", ("127.0.0.1", 0))]
)
def test_addresses_are_split_and_joined(text: str, expected: tuple[str, int]) -> None:
    assert parse_address("listen", text) == expected
    assert format_address(*expected) == text


@pytest.mark.parametrize("text", ["", "host", ":1", "h:", "h:x", "h:70000", "::1:29500", "h:²"])
def test_invalid_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^listen must be"):
        parse_address("listen", text)


def test_loopback_is_recognised() -> None:
    assert [is_loopback(host) for host in ("localhost", "127.0.0.2", "::1", "10.0.0.1", "::", "0.0.0.0", "host")] == [
        *(True, True, True),
        *(False, False, False, False),
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_user_at_the_other_end_is_recognised(host: str) -> None:
    with create_listener(host, 0) as server, socket.create_connection(server.getsockname()[:2]) as client:
        connection, _ = server.accept()
        with connection:
            assert same_user(connection)
            assert same_user(client)


def test_a_closed_connection_has_no_user() -> None:
    """The kernel shows root as the owner of a socket that is closed."""
    with create_listener("127.0.0.1", 0) as server:
        client = socket.create_connection(server.getsockname()[:2])
        connection, _ = server.accept()
        with connection:
            client.close()
            assert connection.recv(1) == b""
            with pytest.raises(ConnectionError):
                same_user(connection)


def server_of_another_user(port: int, ready: Any) -> None:
    """Accept as another user. Until then, the kernel shows the user who listens."""
    with create_listener("127.0.0.1", port) as listening:
        os.setuid(65534)
        ready.set()
        connection, _ = listening.accept()
        connection.sendall(welcome())
        with suppress(OSError):
            while connection.recv(1 << 16):
                pass


@pytest.mark.skipif(os.getuid() != 0, reason="starts a process of another user, which root alone can")
def test_the_server_of_another_user_is_recognised() -> None:
    port, ready = free_port(), multiprocessing.get_context("forkserver").Event()
    process = beside(server_of_another_user, port, ready)
    assert ready.wait(60)
    with pytest.raises(ValueError, match=rf"^server must .*127\.0\.0\.1:{port}"):
        work(0, "127.0.0.1", port, timeout=30.0)
    process.join(20)
    assert process.exitcode == 0


def test_a_server_that_cannot_be_reached_yet_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """No route, and a server that ends the connection before its user is known, may be different a moment later."""
    tried = []

    def unreachable(*_: object) -> None:
        tried.append(None)
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(link.socket, "create_connection", unreachable)
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1\b.*No route"):
        work(0, "127.0.0.1", 1, timeout=0.5)
    assert len(tried) > 1


def test_the_limit_of_open_files_is_raised_or_the_argument_named() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        raise_file_limit("workers", 20, 20)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 656
        raise_file_limit("workers", 1, 1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 656
        with pytest.raises(ValueError, match=rf"^workers must be at most \d+, got {10**9}\b"):
            raise_file_limit("workers", 10**9, 31)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Who may listen and join.


def test_without_keys_only_loopback_is_served() -> None:
    for host in ("0.0.0.0", "192.0.2.7", "::"):
        with pytest.raises(ValueError, match=r"^keys must be .*, got None"):
            TcpConfig(host=host, spawn_workers=False)
        with pytest.raises(ValueError, match=r"^keys must be .*, got None"):
            work(0, host, 1)
        with pytest.raises(ValueError, match=r"^host must be"):
            TcpConfig(host=host)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "keys"
    create_keys(folder, 2, days=1)
    return folder


def test_keys_are_readable_by_their_user_alone_and_never_overwritten(keys: Path) -> None:
    assert sorted(path.name for path in keys.iterdir()) == ["server", "worker-0", "worker-1"]
    for folder in keys.iterdir():
        assert {path.name for path in folder.iterdir()} == {"ca.pem", "certificate.pem", "key.pem"}
        assert (folder / "key.pem").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ValueError, match=r"^folder must be"):
        create_keys(keys, 2)


def test_an_interruption_leaves_all_keys_or_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = _Authority.write

    def interrupted(self: _Authority, folder: Path, *about: object, **more: object) -> None:
        if folder.name == "worker-1":
            raise KeyboardInterrupt
        write(self, folder, *about, **more)

    monkeypatch.setattr(_Authority, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        create_keys(tmp_path / "keys", 2)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert [folder.name for folder in create_keys(tmp_path / "new" / "keys", 1)] == ["server", "worker-0"]


@pytest.mark.parametrize("missing", ["nothing", "garbage"])
def test_folders_without_keys_are_named(tmp_path: Path, missing: str) -> None:
    if missing == "garbage":
        for name in ("ca.pem", "certificate.pem", "key.pem"):
            (tmp_path / name).write_text("garbage")
    with pytest.raises(ValueError, match=rf"^keys must be .*{re.escape(str(tmp_path))}"):
        worker_context(tmp_path)


def keyed_worker(rank: int, port: int, keys: Path, timeout: float) -> None:
    with suppress(ConnectionError):
        work(rank, "127.0.0.1", port, keys, timeout=timeout)


def test_a_run_over_tls_has_the_simulations_bits_and_a_certificate_is_good_for_its_rank(
    keys: Path, tmp_path: Path
) -> None:
    config, port = replace(SMALL, workers=2, iterations=5), free_port()
    create_keys(tmp_path / "others", 2)
    good = [beside(keyed_worker, rank, port, keys / f"worker-{rank}", 60.0) for rank in range(2)]
    bad = [keys / "worker-1", tmp_path / "others" / "worker-0", keys / "server"]
    refused: list[str] = []

    def attack(state: Progress) -> None:
        if state.iteration == 2:
            for folder in bad:
                with pytest.raises((ValueError, ConnectionError)) as error:
                    work(0, "127.0.0.1", port, folder, timeout=2.0)
                refused.append(str(error.value))
            with pytest.raises(ConnectionError):
                work(0, "127.0.0.1", port, timeout=0.5)  # without keys

    seen: list[float] = []

    def progress(state: Progress) -> None:
        seen.append(float(state.loss))
        attack(state)

    server = TcpConfig(port=port, spawn_workers=False, keys=keys / "server")
    train(config, threads=1, server=server, progress=progress)
    for process in good:
        process.join(20)
    assert [process.exitcode for process in good] == [0, 0]
    assert seen == losses(config)[0]
    assert "rank 0" in refused[0]
    assert len(refused) == len(bad)


def test_a_worker_takes_no_server_with_a_workers_certificate(keys: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "worker-1" / "certificate.pem", keys / "worker-1" / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(ssl.SSLError):
                context.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ValueError, match=r"^keys must be"):
            work(0, "127.0.0.1", server.getsockname()[1], keys / "worker-0", timeout=5.0)
        thread.join()


def logged(path: Path) -> set[int]:
    return set(map(int, path.read_text().split())) if path.exists() else set()


def test_files_of_the_user_run_where_the_documentation_says(tmp_path: Path) -> None:
    """A rule at the server, and an attack there and at Byzantine workers."""
    log = "from pathlib import Path\nimport os\nwith open({!r}, 'a') as log:\n    print(os.getpid(), file=log)\n"
    rule, attack = tmp_path / "rule.py", tmp_path / "attack.py"
    rule.write_text(
        log.format(str(tmp_path / "rules")) + "from fa.rules.mean import Mean\nclass Own(Mean):\n    pass\n"
    )
    attack.write_text(
        log.format(str(tmp_path / "attacks"))
        + "from fa.attacks import Attack\n\ndef write(G, byzantine, generator):\n    G[list(byzantine)] = 0\n\n"
        + "Own = Attack('own', False, write)\n"
    )
    config = replace(SMALL, rule=f"{rule}:Own", workers=3, byzantine=1, attack=f"{attack}:Own", iterations=1)
    train(config, threads=1, server=TcpConfig())
    assert logged(tmp_path / "rules") == {os.getpid()}
    assert len(logged(tmp_path / "attacks") - {os.getpid()}) == 1


# Attackers without authentication.


class Bomb:
    """Creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="a").do_handshake()
    return outgoing.read()


def attacks(bomb: Path) -> dict[str, bytes]:
    """Return what an attacker without authentication sends."""
    pickled = io.BytesIO()
    pickle.dump(Bomb(bomb), pickled)
    gradient = Header(Kind.GRADIENT, b"r" * 16, 1, 3, N, 4 * N)
    return {
        "nothing": b"",
        "random": random.Random(2).randbytes(100_000),
        "zeros": bytes(100_000),
        "HTTP": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "TLS": client_hello(),
        "pickle": pickled.getvalue(),
        "pickle in HELLO": HELLO._replace(length=TOKEN_SIZE + 600).pack() + pickled.getvalue().ljust(632, b"\0"),
        "half a header": HELLO.pack()[:20],
        "half a HELLO": HELLO._replace(length=TOKEN_SIZE).pack() + b"a",
        "guessed token": HELLO._replace(length=TOKEN_SIZE).pack() + bytes(TOKEN_SIZE),
        "10^18 bytes": HELLO._replace(length=10**18).pack(),
        "10^18 numbers": gradient._replace(n=10**18, length=4 * 10**18).pack(),
        "gradient": gradient.pack() + bytes(4 * N),
        "gradient of NaN": gradient.pack() + b"\xff" * 4 * N,
        "JOIN": Header(Kind.JOIN, NO_RUN, 1, n=N, length=32).pack() + bytes(32),
        "END": Header(Kind.END, NO_RUN).pack(),
        "no such rank": HELLO._replace(rank=7, length=TOKEN_SIZE).pack() + bytes(TOKEN_SIZE),
        "negative rank": HELLO._replace(rank=-1, length=TOKEN_SIZE).pack() + bytes(TOKEN_SIZE),
    }


def send_and_wait(port: int, data: bytes) -> bytes:
    """Send bytes, and return the answer; the server ends the connection."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection, suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(1 << 16):
            answer += chunk
        return answer
    return b""


@contextmanager
def half_open(port: int, count: int) -> Iterator[None]:
    """Hold connections open that send half a header."""
    connections = []
    try:
        for _ in range(count):
            connections.append(socket.create_connection(("127.0.0.1", port), 30))
            with suppress(ConnectionError):
                connections[-1].send(HELLO.pack()[:20])
        yield
    finally:
        for connection in connections:
            connection.close()


def test_attackers_change_no_bit_of_a_run(tmp_path: Path) -> None:
    port, bomb = free_port(), tmp_path / "bomb"
    sent = attacks(bomb)

    def attack(state: Progress) -> None:
        seen.append(float(state.loss))
        before = resources()[2]
        if state.iteration == 3:
            for name, data in sent.items():
                answer = send_and_wait(port, data)
                assert not answer or Header.unpack(answer[:HEADER_SIZE]).kind is Kind.REFUSE, name
        if state.iteration in (5, 10):
            with half_open(port, 300):
                wait_until(lambda: resources()[2] - 300 - before <= listener.PENDING, 10)

    seen: list[float] = []
    run = train(SMALL, threads=1, server=TcpConfig(port=port), progress=attack)
    expected, simulated = losses(SMALL)
    assert seen == expected
    assert run.workers == simulated.workers
    assert not bomb.exists()


@pytest.mark.long
def test_ten_thousand_half_open_connections_change_no_bit_of_a_run() -> None:
    port = free_port()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 12_000), hard))

    def attack(state: Progress) -> None:
        seen.append(float(state.loss))
        if state.iteration == 3:
            stack.enter_context(half_open(port, 10_000))

    seen: list[float] = []
    try:
        with ExitStack() as stack:
            train(SMALL, threads=1, server=TcpConfig(port=port), progress=attack)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert seen == losses(SMALL)[0]


def test_workers_join_while_others_hold_connections_open() -> None:
    """A port scan, a health check, and half a request at the port do not delay joining."""
    port, config = free_port(), replace(SMALL, workers=2, iterations=3)
    scanned = threading.Event()

    def scan() -> None:
        wait_until(lambda: connects(port))
        with half_open(port, 100):
            for _ in range(20):
                connects(port)
            workers.extend(beside(tcp_worker, rank, port) for rank in range(2))
            scanned.wait(60)

    workers: list = []
    thread = threading.Thread(target=scan)
    thread.start()
    seen, _ = losses(config, server=TcpConfig(port=port, spawn_workers=False))
    scanned.set()
    thread.join()
    for process in workers:
        process.join(20)
    assert seen == losses(config)[0]


def connects(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


# Byzantine workers, which are authenticated.

Send = Callable[[link.Link, Header, list], None]
plain_send = link.Link.send


def changed(**fields: object) -> Send:
    return lambda end, header, views: plain_send(end, header._replace(**fields), views)


def raw_header(**fields: object) -> Send:
    """Send a header as it is, with its length, and nothing after it."""

    def send(end: link.Link, header: Header, views: list) -> None:
        end._connection.sendall(header._replace(**fields).pack())

    return send


def of_another_rank(end: link.Link, header: Header, views: list) -> None:
    end._connection.sendall(header._replace(rank=19, length=sum(map(len, views))).pack())


def filled(value: float) -> Send:
    def send(end: link.Link, header: Header, views: list) -> None:
        plain_send(end, header, [torch.full((N,), value).numpy().tobytes()])

    return send


def replayed(end: link.Link, header: Header, views: list) -> None:
    for _ in range(2):
        plain_send(end, header, views)


def garbage(end: link.Link, header: Header, views: list) -> None:
    end._connection.sendall(b"\x00" * 200_000)


def stopping(end: link.Link, header: Header, views: list) -> None:
    plain = header._replace(rank=end._rank, run_id=end.run_id, length=sum(map(len, views))).pack()
    end._connection.sendall(plain + bytes(views[0][:1000]))
    time.sleep(30)


LIES: dict[str, tuple[Send, str]] = {
    "another rank": (of_another_rank, r"rank 19\b"),
    "another run": (raw_header(run_id=b"x" * 16), "another run"),
    "another iteration": (changed(iteration=7), r"iteration 7\b"),
    "10^18 numbers": (raw_header(n=10**18, length=4 * 10**18), rf"{10**18}\b"),
    "fewer numbers": (changed(n=N - 1), rf"{N - 1}\b"),
    "another kind": (changed(kind=Kind.WORK), "WORK"),
    "NaN": (filled(float("nan")), re.escape(NOT_FINITE)),
    "Inf": (filled(float("inf")), re.escape(NOT_FINITE)),
    "loss of NaN": (changed(loss=float("nan")), "loss of nan"),
    "seconds of NaN": (changed(seconds=float("nan")), "nan"),
    "negative seconds": (changed(seconds=-5.0), r"-5\.0"),
    "garbage": (garbage, "not a message"),
    "stopping": (stopping, r"\b2 s\b"),
}


def lying_worker(kind: str, rank: int, port: int) -> None:
    """In a process of its own: a worker that sends its gradients in another way."""

    def send(end: link.Link, header: Header, views: list = ()) -> None:
        (LIES[kind][0] if header.kind is Kind.GRADIENT else plain_send)(end, header, views)

    link.Link.send = send
    with suppress(link.Refused):
        tcp_worker(rank, port)


def trajectory(config: TrainConfig, **arguments: object) -> tuple[Run, list[Tensor]]:
    seen: list[Tensor] = []
    return train(config, threads=1, progress=lambda state: seen.append(state.G.clone()), **arguments), seen


def test_byzantine_workers_are_excluded_and_change_no_bit_of_the_others() -> None:
    kinds = list(LIES)
    liars, honest = len(kinds), 3
    config = replace(SMALL, workers=liars + honest, iterations=2)
    port = free_port()
    processes = [beside(lying_worker, kind, rank, port) for rank, kind in enumerate(kinds)]
    processes += [beside(tcp_worker, liars + rank, port) for rank in range(honest)]
    run, seen = trajectory(config, server=TcpConfig(port=port, spawn_workers=False, deadline=2.0))
    for process in processes:
        process.kill()
        process.join()
    for rank, kind in enumerate(kinds):
        assert all(re.search(LIES[kind][1], status) for status in statuses(run, rank)), (kind, statuses(run, rank))
    assert all(statuses(run, liars + rank) == {USED} for rank in range(honest))
    _, expected = trajectory(replace(config, byzantine=liars, attack="nan", f=0))
    assert all(torch.equal(G[liars:], other[liars:]) for G, other in zip(seen, expected, strict=True))


def replaying_worker(rank: int, port: int) -> None:
    link.Link.send = lambda end, header, views=(): (replayed if header.kind is Kind.GRADIENT else plain_send)(
        end, header, views
    )
    with suppress(link.Refused):
        tcp_worker(rank, port)


def test_a_gradient_counts_once_and_a_second_one_costs_the_connection() -> None:
    config, port = replace(SMALL, workers=3, iterations=3), free_port()
    processes = [beside(tcp_worker, 0, port), beside(tcp_worker, 1, port), beside(replaying_worker, 2, port)]
    run = train(config, server=TcpConfig(port=port, spawn_workers=False))
    for process in processes:
        process.join(20)
    status = [row.status for row in run.workers if row.worker == 2]
    assert status[0] in (USED, status[2])
    assert "GRADIENT" in status[2]
    assert statuses(run, 0) == {USED}


# Joining.


def other_release(rank: int, port: int) -> None:
    fa.__version__ = "9.9"
    refused_worker(rank, port)


def other_data(rank: int, port: int) -> None:
    from fa.training.transports import remote_worker

    load = remote_worker.load_dataset
    remote_worker.load_dataset = lambda config: replace(load(config), checksum="other")
    refused_worker(rank, port)


def other_model(rank: int, port: int) -> None:
    from tests.processes import build_normed

    models.build = build_normed
    refused_worker(rank, port)


def missing_data(rank: int, port: int) -> None:
    without_data(tcp_worker, rank, port)


def refused_worker(rank: int, port: int) -> None:
    with pytest.raises(link.Refused):
        tcp_worker(rank, port)


def test_both_ends_report_why_a_worker_may_not_join(capfd: pytest.CaptureFixture) -> None:
    config, port = replace(SMALL, workers=5, iterations=2), free_port()
    reasons = {other_release: "release", other_data: "checksum", other_model: "model", missing_data: "on this disk"}
    processes = [beside(target, rank, port) for rank, target in enumerate(reasons)]
    processes.append(beside(tcp_worker, 4, port))
    run = train(config, server=TcpConfig(port=port, spawn_workers=False))
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0] * 5
    printed = capfd.readouterr().err
    for rank, reason in enumerate(reasons.values()):
        (status,) = statuses(run, rank)
        assert reason in status
        assert re.search(rf"\b{rank}\b.*{reason}", printed)
    assert statuses(run, 4) == {USED}


def test_a_run_whose_workers_are_all_refused_ends_with_the_reasons() -> None:
    config, port = replace(SMALL, workers=2, iterations=2), free_port()
    processes = [beside(other_data, rank, port) for rank in range(2)]
    with pytest.raises(TooFewWorkersError, match=r"\bworker 0: .*checksum.*\bworker 1: .*checksum"):
        train(config, server=TcpConfig(port=port, spawn_workers=False))
    for process in processes:
        process.join(20)


def test_a_rank_that_the_run_does_not_have_is_refused() -> None:
    config, port = replace(SMALL, workers=2, iterations=5), free_port()
    processes = [beside(tcp_worker, rank, port) for rank in range(2)]

    def join(state: Progress) -> None:
        if state.iteration == 1:
            with pytest.raises(ValueError, match=r"\brank must be .*\b2 workers, got 7\b"):
                work(7, "127.0.0.1", port, timeout=5.0)

    run = train(config, server=TcpConfig(port=port, spawn_workers=False), progress=join)
    for process in processes:
        process.join(20)
    assert statuses(run, 1) == {USED}


# The end of a server.


def silent_server(messages: list[bytes]) -> int:
    """Serve one connection: send messages, then be silent."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = server.accept()
        with server, connection:
            connection.sendall(b"".join(messages))
            connection.settimeout(30)
            with suppress(OSError):
                while connection.recv(1 << 16):
                    pass

    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()[1]


def welcome() -> bytes:
    configuration = SMALL.to_json().encode()
    return Header(Kind.WELCOME, b"r" * 16, length=len(configuration)).pack() + configuration


def test_a_worker_ends_when_its_server_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    port = silent_server([welcome()])
    monkeypatch.setattr(link, "LEAST_SILENCE", 0.5)
    began = time.monotonic()
    with pytest.raises(ConnectionError):
        work(0, "127.0.0.1", port, timeout=0.5)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "message",
    [
        Header(Kind.WORK, b"r" * 16, 0, 0, 10**18, 4 * 10**18),
        Header(Kind.WORK, b"r" * 16, 0, 0, N, 4 * N + 1),
        Header(Kind.WORK, b"x" * 16, 0, 0, N, 4 * N),
        Header(Kind.GRADIENT, b"r" * 16, 0, 0, N, 4 * N),
        Header(Kind.REFUSE, b"r" * 16, length=10**12),
        Header(Kind.PING, b"r" * 16, length=1),
    ],
)
def test_a_worker_leaves_a_server_that_sends_something_else(message: Header) -> None:
    port = silent_server([welcome(), message.pack()])
    with pytest.raises(ConnectionError):
        work(0, "127.0.0.1", port, timeout=10.0)


def test_a_configuration_of_a_terabyte_is_not_read() -> None:
    port = silent_server([Header(Kind.WELCOME, b"r" * 16, length=10**12).pack()])
    with pytest.raises(ConnectionError):
        work(0, "127.0.0.1", port, timeout=0.5)


# Runs.


def test_two_runs_at_once_in_one_process() -> None:
    config = replace(SMALL, workers=2, iterations=5)
    results: list[list[float]] = []
    threads = [threading.Thread(target=lambda: results.append(losses(config, server=TcpConfig())[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [losses(config)[0]] * 2


def test_gradients_that_do_not_fit_in_memory_name_the_workers() -> None:
    model = models.build("convnet", (1, 28, 28), 10, seed=0)
    parameters = flatten(model)
    config = replace(SMALL, workers=10**12)
    with pytest.raises(ValueError, match=rf"^workers must be .*, got {10**12}"):
        Gathering(ServedRun(model, config, parameters))


def gathered(losses: dict[int, float], missing: dict[int, str]) -> tuple[Tensor, dict[int, str]]:
    model = models.build("convnet", (1, 28, 28), 10, seed=0)
    gathering = Gathering(ServedRun(model, SMALL, flatten(model), needs_gram=True))
    gathering.begin()
    for rank in losses:
        gathering.G[rank] = 1.0
        gathering.add(rank)
    result = gathering.finish(0, missing, {rank: torch.tensor(loss) for rank, loss in losses.items()})
    assert result.inner_products is not None
    for rank in range(4):
        assert bool(result.G[rank].isnan().all()) == (rank in result.missing)
        assert (result.inner_products[rank, 0] != N) == (rank in result.missing)
    return result.loss, dict(result.missing)


def test_a_loss_that_alone_is_not_finite_excludes_its_worker() -> None:
    loss, missing = gathered({0: 1.0, 1: float("nan"), 2: 3.0}, {3: "ended"})
    assert float(loss) == 2.0
    assert missing.keys() == {1, 3}
    loss, missing = gathered({0: float("nan"), 1: float("inf"), 2: float("nan")}, {3: "ended"})
    assert not torch.isfinite(loss)  # the model has diverged
    assert missing.keys() == {3}


UNGUARDED = """
from fa.training import TrainConfig, train
from fa.training.transports.server_config import RpcConfig, TcpConfig

config = TrainConfig(rule="median", workers=2, byzantine=0, iterations=2, batch=4, evaluate_every=0)
print(len(train(config, {server}).curve))
"""


@pytest.mark.long
@pytest.mark.parametrize(("server", "stdin"), [("server=RpcConfig()", True), ("server=TcpConfig()", False)])
def test_a_script_needs_no_main_guard(tmp_path: Path, server: str, stdin: bool) -> None:
    script = UNGUARDED.replace("{server}", server)
    (tmp_path / "script.py").write_text(script)
    arguments = ["-"] if stdin else [str(tmp_path / "script.py")]
    done = subprocess.run(
        [sys.executable, *arguments], input=script if stdin else None, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"


def test_the_command_line_writes_keys_and_says_who_can_join(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for arguments, code in ((["keys", str(tmp_path / "run"), "--workers", "2"], 0), (["keys", str(tmp_path)], 2)):
        with pytest.raises(SystemExit) as done:
            cli.main(arguments)
        assert done.value.code == code
    assert (tmp_path / "run" / "worker-1" / "key.pem").is_file()
    for listen, keys in (("0.0.0.0:1", []), ("127.0.0.1:1", ["--keys", str(tmp_path)])):
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main(["server", "--listen", listen, "--iterations", "1", *keys])
        assert done.value.code == 2
        assert re.match(r"fa: keys must be", capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "no-such-host:29500"])
def test_an_address_at_which_no_worker_can_join_is_named(
    keys: Path, listen: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget("no-such-host", monkeypatch)
    with pytest.raises(SystemExit) as done:
        cli.main(["server", "--listen", listen, "--iterations", "1", "--keys", str(keys / "server")])
    assert done.value.code != 0
    assert listen in capsys.readouterr().err.splitlines()[-1]


def test_a_worker_names_a_server_that_is_unknown(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget("no-such-host", monkeypatch)
    with pytest.raises(ValueError, match=r"^server must be .*'no-such-host'"):
        work(0, "no-such-host", 29500, keys / "worker-0", timeout=60.0)


def forget(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolve a host's name as on a machine that does not know it."""
    resolve = socket.getaddrinfo

    def unknown(host: str, *about: object, **more: object) -> object:
        if host == name:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *about, **more)

    monkeypatch.setattr(socket, "getaddrinfo", unknown)


# Long runs.


@pytest.mark.long
def test_sixty_workers_within_a_limit_of_1024_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    config = replace(SMALL, workers=60, byzantine=14, f=14, rule="fa", iterations=3)
    try:
        seen, run = losses(config, server=TcpConfig())
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1024
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    expected, simulated = losses(config)
    assert seen == expected
    assert run.workers == simulated.workers


def resources() -> tuple[int, int, int]:
    """Return this process's memory in pages, its threads, and its open files."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


@pytest.mark.long
@pytest.mark.parametrize("backend", ["tcp", "rpc"])
def test_a_long_run_keeps_memory_threads_and_files(backend: str) -> None:
    config = replace(SMALL, workers=8, iterations=2000)
    seen: list[tuple[int, int, int]] = []

    def progress(state: Progress) -> None:
        if state.iteration % 500 == 0:
            seen.append(resources())

    train(config, threads=1, progress=progress, server=TcpConfig() if backend == "tcp" else RpcConfig())
    (pages, threads, files), *others = seen
    for later in others:
        assert later[0] < 1.1 * pages
        assert later[1] <= threads
        assert later[2] <= files
