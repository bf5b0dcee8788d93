"""More than 10^5 random inputs: arrays, messages, datagrams, files, configurations and command lines.

Each input is drawn from a seed. The outcome is a result, or an error of the declared class that names what is wrong.
"""

import asyncio
import json
import random
import socket
import struct
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

import fa
from fa import cli, models
from fa.experiments.runs.store import RunStore
from fa.training import TrainConfig, train
from fa.training.checkpoint import read
from fa.training.parameter_vector import flatten
from fa.training.transports import udp
from fa.training.transports.base import ServedRun
from fa.training.transports.gathering import Gathering
from fa.training.transports.server_config import TcpConfig
from fa.training.transports.tcp.connection import Connection
from fa.training.transports.tcp.messages import HEADER_SIZE, MAX_TEXT, NO_RUN, TOKEN_SIZE, Header, Kind, ProtocolError
from fa.training.transports.tcp.server import RoundServer
from fa.utils.addresses import parse_address
from tests.test_fuzz import attempt

pytestmark = pytest.mark.long

ARRAYS, STREAMS, HEADERS, DATAGRAMS, CONFIGURATIONS, ADDRESSES, LINES = (
    20_000,
    20_000,
    30_000,
    20_000,
    20_000,
    20_000,
    1_500,
)
CONFIG = TrainConfig(rule="median", workers=3, byzantine=0, iterations=2, batch=4)

# Arrays.


def extreme(stream: np.random.Generator) -> np.ndarray | torch.Tensor:
    """Gradients of random size and dtype, with values of all magnitudes, repeated rows, NaN and Inf."""
    p, n = int(stream.integers(1, 10)), int(stream.integers(1, 9))
    G = stream.standard_normal((p, n)) * 10.0 ** stream.integers(-320, 308, (p, 1)) ** stream.integers(0, 2)
    for value in (np.nan, np.inf, -np.inf, 0.0, 5e-324, 1.7e308):
        if stream.random() < 0.15:
            G[stream.integers(p), stream.integers(n)] = value
    if stream.random() < 0.3:
        G[stream.integers(p)] = G[stream.integers(p)]
    if stream.random() < 0.1:
        G[:] = G[0]
    with np.errstate(over="ignore", under="ignore"):
        tensor = torch.from_numpy(G).to(
            [torch.float64, torch.float32, torch.float16, torch.bfloat16][stream.integers(4)]
        )
    return G if stream.random() < 0.3 else tensor


STEPS = [None, (), ("nnm",), ("clip",), ("arc",), ("unit",), ("median_norm",), ("bucketing",), ("nnm", "median_norm")]


@pytest.mark.parametrize("name", fa.RULES)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of options that do not suit the rule
def test_arrays(name: str) -> None:
    stream = np.random.default_rng(sum(name.encode()))
    for _ in range(-(-ARRAYS // len(fa.RULES))):
        G, f, steps = extreme(stream), int(stream.integers(0, 4)), STEPS[stream.integers(len(STEPS))]
        before = G.clone() if isinstance(G, torch.Tensor) else G.copy()
        d, refusal = attempt(fa.make_rule(name, f=f, preaggregators=steps), G)
        if refusal is not None:
            assert "must" in str(refusal) or "needs" in str(refusal), refusal
        else:
            assert np.isfinite(d).all() if isinstance(d, np.ndarray) else bool(d.isfinite().all())
            assert d.shape == G.shape[1:]
        assert (
            np.asarray(before.double() if isinstance(before, torch.Tensor) else before).tobytes()
            == np.asarray(G.double() if isinstance(G, torch.Tensor) else G).tobytes()
        )


# Messages.


def test_headers() -> None:
    stream = random.Random(1)
    for _ in range(HEADERS):
        fields_of = [stream.choice([-(2**31), -1, 0, 1, 2**31 - 1]), stream.choice([-(2**63), -1, 0, 2**63 - 1])]
        header = Header(Kind(stream.randint(1, 8)), stream.randbytes(16), *fields_of, stream.getrandbits(64))
        data = bytearray(header.pack())
        assert repr(Header.unpack(data)) == repr(header)
        for _ in range(stream.randint(0, 3)):
            data[stream.randrange(HEADER_SIZE)] = stream.randrange(256)
        with suppress(ProtocolError):
            Header.unpack(data)


class Wire(asyncio.Transport):
    """A transport that discards what is written."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_extra_info(self, name: str, default: object = None) -> object:
        return None

    def write(self, data: object) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


def feed(connection: Connection, data: bytes, stream: random.Random) -> None:
    """Let bytes arrive in pieces of random lengths."""
    while data:
        buffer = connection.get_buffer(-1)
        count = min(len(buffer), len(data), stream.choice([1, 7, 68, 5000, 10**6]))
        buffer[:count] = data[:count]
        connection.buffer_updated(count)
        data = data[count:]


def message(server: RoundServer, tokens: list[bytes], n: int, stream: random.Random) -> bytes:
    """A message that is valid, or has some fields changed."""
    rank = stream.randrange(3)
    plain = [
        (Header(Kind.HELLO, NO_RUN, rank), tokens[rank] + fa.__version__.encode()),
        (Header(Kind.JOIN, server.run_id, rank, n=n), server._compared),
        (Header(Kind.GRADIENT, server.run_id, rank, 0, n, 0, 1.0, 0.1), bytes(4 * n)),
        (Header(Kind.REFUSE, server.run_id, rank), stream.randbytes(9)),
        (Header(Kind.PING, server.run_id, rank), b""),
    ]
    header, data = stream.choice(plain)
    header = header._replace(length=len(data))
    for _ in range(stream.choice([0, 0, 1, 2])):
        changes: list[dict[str, object]] = [
            {"rank": stream.randint(-2, 4)},
            {"iteration": stream.choice([-1, 1, 2**63 - 1])},
            {"n": stream.choice([0, n - 1, 2**63])},
            {"length": stream.choice([0, len(data) + 1, 2**64 - 1])},
            {"loss": stream.choice([float("nan"), float("inf"), 1e308])},
            {"seconds": stream.choice([float("nan"), -1.0, 1e308])},
            {"run_id": stream.randbytes(16)},
            {"kind": stream.choice(list(Kind))},
        ]
        header = header._replace(**stream.choice(changes))
    packed = bytearray(header.pack() + data)
    if stream.random() < 0.1:
        packed[stream.randrange(len(packed))] = stream.randrange(256)
    return bytes(packed)


def test_streams_of_messages(capfd: pytest.CaptureFixture) -> None:
    """Any bytes on a connection end that connection, or write a gradient to its own row; no rank is let in unasked."""
    model = models.build("convnet", (1, 28, 28), 10, seed=0)
    parameters = flatten(model)[:50].clone()
    stream, tokens = random.Random(2), [bytes([rank]) * TOKEN_SIZE for rank in range(3)]
    joined = delivered = 0

    async def fuzz() -> None:
        nonlocal joined, delivered
        for _ in range(STREAMS // 20):
            run = ServedRun(torch.nn.Identity(), CONFIG, parameters, "sum")
            gathering = Gathering(run)
            server = RoundServer(run, gathering, TcpConfig(), tokens)
            server.rounds.begin(0)
            for _ in range(20):
                connection = Connection(server)
                connection.connection_made(Wire())
                rank = stream.randrange(3)
                data = [message(server, tokens, 50, stream) for _ in range(stream.randint(0, 3))]
                if stream.random() < 0.7:
                    hello = tokens[rank] + fa.__version__.encode()
                    data.insert(0, Header(Kind.HELLO, NO_RUN, rank, length=len(hello)).pack() + hello)
                if stream.random() < 0.7:
                    compared = server._compared
                    data.insert(1, Header(Kind.JOIN, server.run_id, rank, n=50, length=len(compared)).pack() + compared)
                feed(connection, b"".join(data), stream)
                assert len(connection.data) <= TOKEN_SIZE + MAX_TEXT
                joined += connection.joined
                if stream.random() < 0.5:
                    connection.connection_lost(None)
            assert bool(gathering.G.isfinite().all())
            delivered += len(server.rounds.delivered)
            for connection in [*server._connections.values(), *server._joining.values()]:
                connection.abort()
            for task in server._tasks:
                task.cancel()
            await asyncio.sleep(0)

    asyncio.run(fuzz())
    assert joined > STREAMS / 50
    assert delivered > 0
    capfd.readouterr()


def test_datagrams() -> None:
    """Random and changed datagrams change no gradient, and are counted."""
    stream, n = random.Random(3), 2000
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        inbox = udp.Inbox(receiver, 3, n)
        inbox.close()
    inbox.begin(4)
    slots = np.zeros((1, udp._SLOT), dtype=np.uint8)
    for _ in range(DATAGRAMS):
        index = stream.randrange(inbox.chunks)
        count = min(udp.CHUNK, n - index * udp.CHUNK)
        data = udp._HEADER.pack(stream.randrange(3), 4, index) + struct.pack(f"={count}f", *[1.0] * count)
        changed = bytearray(
            data + udp._checksum(data, inbox.keys[0] if stream.random() < 0.5 else stream.randbytes(16))
        )
        changed[stream.randrange(len(changed))] ^= 1 << stream.randrange(8)
        changed = changed[: stream.choice([len(changed), stream.randrange(len(changed)), 0])]
        slots[0, : len(changed)] = np.frombuffer(bytes(changed), dtype=np.uint8)
        assert not inbox._store(slots, np.array([len(changed)]))
    assert inbox.discarded == DATAGRAMS
    assert not inbox._rows.any()


# Files.


def flips(data: bytes, count: int, seed: int) -> list[bytes]:
    """Copies of a file with a bit flipped, cut off, or with bytes in the place of others."""
    stream, changed = random.Random(seed), []
    for _ in range(count):
        copy = bytearray(data)
        if stream.random() < 0.8:
            copy[stream.randrange(len(copy))] ^= 1 << stream.randrange(8)
        elif stream.random() < 0.5:
            del copy[stream.randrange(len(copy)) :]
        else:
            copy += stream.randbytes(stream.randint(1, 9))
        changed.append(bytes(copy))
    return changed


def test_checkpoints_with_flipped_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    kept: list[bytes] = []
    train(CONFIG, None, lambda state: kept.append(path.read_bytes()), 1, checkpoint=path, checkpoint_every=0)
    good = tmp_path / "good"
    good.write_bytes(kept[0])
    assert read(good)["state"]["iteration"] == 1
    for data in flips(kept[0], 2_000, 4):
        good.write_bytes(data)
        with pytest.raises(ValueError, match="checksum"):
            read(good)


def test_records_with_flipped_bits_are_not_used(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    record = store.save(train(CONFIG, threads=1))
    for path in sorted(record.folder.iterdir()):
        good = path.read_bytes()
        for data in flips(good, 500, 5):
            path.write_bytes(data)
            found = store.find(CONFIG)
            # Space in the manifest is harmless: the sums are those that were written.
            assert found is None or path.name == "manifest.json"
        path.write_bytes(good)
    assert store.find(CONFIG) is not None


# Configurations and command lines.

VALUES: list[object] = [
    *(None, True, -1, 0, 1, 3, 10**30, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf")),
    *("", "fa", "median", "ü", "\0", "a" * 1000, "../x", "[]", [], [1], {}, {"m": 1}, {"": None}, [[[]]]),
]


def test_configurations() -> None:
    """Settings of any type make a configuration that comes back from JSON, or raise a ValueError."""
    stream, names = random.Random(6), [field.name for field in fields(TrainConfig)]
    made = 0
    for _ in range(CONFIGURATIONS):
        described = json.loads(CONFIG.to_json())
        for name in stream.sample(names, stream.randint(1, 3)):
            described[name] = stream.choice(VALUES)
        try:
            config = TrainConfig.from_json(json.dumps(described))
        except (ValueError, TypeCheckError):  # numbers are checked by the constructor, and in tests by beartype
            continue
        made += 1
        assert TrainConfig.from_json(config.to_json()) == config
        assert replace(config) == config
    assert made


def test_text_that_is_not_a_configuration() -> None:
    for data in flips(CONFIG.to_json().encode(), 5_000, 7):
        with suppress(ValueError):
            TrainConfig.from_json(data.decode(errors="surrogateescape"))


def test_addresses() -> None:
    stream = random.Random(8)
    for _ in range(ADDRESSES):
        text = "".join(stream.choice("a:1[]0.9%é-\x00 ²") for _ in range(stream.randint(0, 12)))
        address, refusal = attempt(parse_address, "listen", text)
        if refusal is not None:
            assert str(refusal).startswith("listen must be")
        else:
            host, port = address
            assert host
            assert 0 <= port < 1 << 16


WORDS = ["nan", "inf", "-1", "0", "1e400", "", "ü", "fa", "0x10", "1_0", "9" * 50, "true", "[1]", "{}", "=", "a=b", "/"]


@pytest.mark.filterwarnings("ignore")
def test_command_lines(capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any values of the options of `fa train` give a run or one line and exit code 2."""
    monkeypatch.chdir(tmp_path)
    stream = random.Random(9)
    command = cli.cli.get_command(click.Context(cli.cli), "train")
    assert command is not None
    heavy = {
        "iterations",
        "workers",
        "batch",
        "accumulate",
        "device",
        "model",
        "dataset",
        "listen",
        "backend",
        "threads",
    }
    options = [o.opts[0] for o in command.params if o.name not in heavy and not getattr(o, "is_flag", False)]
    few = [
        "--workers",
        "3",
        "--byzantine",
        "1",
        "--rule",
        "median",
        "--iterations",
        "1",
        "--batch",
        "2",
        "--threads",
        "1",
    ]
    for _ in range(LINES):
        line = [*few]
        for option in stream.sample(options, stream.randint(1, 2)):
            line += [option, stream.choice(WORDS)]
        with pytest.raises(SystemExit) as done:
            cli.main(["train", *line])
        errors = capsys.readouterr().err
        assert done.value.code in (0, 2), line
        assert done.value.code == 0 or errors.strip().count("\n") <= 4, (line, errors)


def test_there_are_more_than_a_hundred_thousand_inputs() -> None:
    assert ARRAYS + HEADERS + STREAMS + DATAGRAMS + CONFIGURATIONS + ADDRESSES + LINES >= 10**5
