"""Training over worker processes: the simulation's numbers bit for bit, and what is left when processes die or hang."""

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fa import cli, models
from fa.rules.decision import NOT_FINITE
from fa.training import Progress, Run, TrainConfig, train
from fa.training.parameter_vector import flatten
from fa.training.records import USED
from fa.training.transports.base import RpcConfig, TcpConfig
from fa.training.transports.rounds import NEW, GradientMessage
from fa.training.transports.rpc import connection
from fa.training.transports.rpc.server import RpcTransport, exchange
from fa.utils.validation import TooFewWorkersError
from tests.processes import alive, beside, descendants, free_port, plain_worker, tcp_worker, wait_until

SMALL = TrainConfig(workers=4, byzantine=1, iterations=20, batch=4, lr=0.05, seed=5)
KINDS = (
    "mean",
    "median",
    "krum",
    "bulyan",
    "fa",
)  # weights, order statistics, a choice, both, and weights by K
FEWER = {"bulyan": 0, "krum": 0}  # f, where four workers are too few for a faulty one


both = pytest.mark.parametrize("kind", [RpcConfig, TcpConfig], ids=["rpc", "tcp"])
Kind = type[RpcConfig] | type[TcpConfig]


def served(server: RpcConfig | TcpConfig | None) -> dict[str, Any]:
    """The argument of `train` for a server."""
    return {"tcp": server} if isinstance(server, TcpConfig) else {"rpc": server}


def losses(config: TrainConfig, server: RpcConfig | TcpConfig | None) -> tuple[Run, list[float]]:
    seen: list[float] = []
    return train(config, threads=1, **served(server), progress=lambda state: seen.append(float(state.loss))), seen


@both
@pytest.mark.parametrize("rule", KINDS)
def test_same_trajectory_as_the_simulation(rule: str, kind: Kind) -> None:
    config = replace(SMALL, rule=rule, byzantine=FEWER.get(rule, 1))
    here, expected = losses(config, None)
    there, seen = losses(config, kind())
    assert seen == expected  # equal bits: the same arithmetic, with one thread each
    assert there.workers == here.workers
    assert there.final_accuracy == here.final_accuracy


@pytest.mark.parametrize("lost", ["zero", "previous"])
def test_datagrams_over_loopback_lose_nothing_and_give_the_simulations_numbers(lost: str) -> None:
    there, seen = losses(SMALL, RpcConfig(channel="udp", loss_fill=lost))
    here, expected = losses(SMALL, None)
    assert seen == expected
    assert there.workers == here.workers  # where a loss would be told
    assert there.backend == {"name": "rpc", "deadline": 60.0, "quorum": None, "gradients": "udp", "lost": lost}


@both
def test_mixed_precision_and_accumulated_gradients_are_the_simulations_bits(kind: Kind) -> None:
    config = replace(SMALL, precision="bfloat16", accumulate=2)
    here, expected = losses(config, None)
    there, seen = losses(config, kind())
    assert (seen, there.workers) == (expected, here.workers)


def test_what_datagrams_need_is_told() -> None:
    with pytest.raises(ValueError, match=r"^channel must be .*\brpc, udp\b.*'tcp'"):
        RpcConfig(channel="tcp")
    with pytest.raises(ValueError, match=r"^loss_fill must be .*\bzero, previous\b.*'mean'"):
        RpcConfig(channel="udp", loss_fill="mean")
    with pytest.raises(ValueError, match=r"^channel must be .*'udp'.*'previous'.*'rpc'"):
        RpcConfig(loss_fill="previous")


def at(iteration: int, act: Callable[[], None]) -> Callable[[Progress], None]:
    def progress(state: Progress) -> None:
        if state.iteration == iteration:
            act()

    return progress


def process(rank: int) -> int:
    (child,) = [child for child in multiprocessing.active_children() if child.name == f"fa-{rank}"]
    assert child.pid is not None
    return child.pid


def reasons(run: Run, worker: int) -> Counter[str]:
    return Counter(row.status for row in run.workers if row.worker == worker)


@both
def test_goes_on_after_a_worker_is_killed(kind: Kind) -> None:
    config = replace(SMALL, rule="median", byzantine=0, f=1)
    run = train(config, **served(kind()), progress=at(5, lambda: os.kill(process(2), signal.SIGKILL)))
    used = reasons(run, 2)[USED]
    assert used in (5, 6)  # it may have sent its sixth gradient before it died
    assert reasons(run, 1) == {USED: 20}
    assert not multiprocessing.active_children()


@both
def test_ends_where_too_few_are_left(kind: Kind) -> None:
    config = replace(SMALL, rule="multi_krum", byzantine=0, f=0)

    def kill() -> None:
        for rank in range(3):
            os.kill(process(rank), signal.SIGKILL)

    with pytest.raises(TooFewWorkersError, match=r"\b[67]: .*\bmulti_krum\b.*\bworker 2: .*ended"):
        train(config, **served(kind()), progress=at(5, kill))
    assert not multiprocessing.active_children()


@both
def test_a_stopped_worker_is_left_out_and_comes_back(kind: Kind) -> None:
    config = replace(SMALL, rule="median", byzantine=0, f=1, iterations=250)
    stopped: list[int] = []

    def stop() -> None:
        stopped.append(process(3))
        os.kill(stopped[0], signal.SIGSTOP)

    def act(state: Progress) -> None:
        if state.iteration == 5:
            stop()
        if state.iteration == 30:
            os.kill(stopped[0], signal.SIGCONT)
            threading.Event().wait(0.5)

    run = train(config, **served(kind(deadline=0.5)), progress=act)
    silent = [status for status in reasons(run, 3) if re.search(r"\b0\.5 s\b", status)]
    assert sum(reasons(run, 3)[status] for status in silent) >= 24
    last = [row.status for row in run.workers if row.worker == 3][-50:]
    assert USED in last


@both
def test_a_quorum_does_not_wait_for_the_slowest(kind: Kind) -> None:
    config = replace(SMALL, rule="median", byzantine=0, f=1)
    stopped: list[int] = []

    def act() -> None:
        stopped.append(process(0))
        os.kill(stopped[0], signal.SIGSTOP)

    run = train(config, **served(kind(quorum=3)), progress=at(2, act))
    late = [status for status in reasons(run, 0) if re.search(r"\b3\b", status)]
    assert sum(reasons(run, 0)[status] for status in late) >= 17
    with pytest.raises(ValueError, match=r"^quorum must be .*\bworkers=4\b.*\b5\b"):
        train(config, **served(kind(quorum=5)))


@both
def test_a_worker_that_is_killed_in_mid_iteration_may_be_started_again(kind: Kind) -> None:
    """It is stopped, so that it cannot answer, then killed while the server waits; a new process takes its rank."""
    config = replace(SMALL, rule="median", byzantine=0, f=1, iterations=4000)
    port, again = free_port(), []
    spawned = kind is RpcConfig  # over TCP, a worker of another process has no token
    work = plain_worker if spawned else tcp_worker
    first = [] if spawned else [beside(work, rank, port) for rank in range(4)]

    def act(state: Progress) -> None:
        if state.iteration == 5:
            victim = process(2) if spawned else first[2].pid
            os.kill(victim, signal.SIGSTOP)
            threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
        if state.iteration == 6:
            again.append(beside(work, 2, port))
        if again and bool(state.G[2].isfinite().all()):
            raise Rejoined(state.iteration)

    with pytest.raises(Rejoined) as seen:
        train(config, **served(kind(port=port, spawn_workers=spawned, deadline=30)), progress=act)
    assert seen.value.args[0] > 6
    for worker in (*first, *again):
        worker.join(10)
    assert not multiprocessing.active_children()


class Rejoined(Exception):
    pass


def honest(_: None, rank: int, port: int) -> None:
    plain_worker(rank, port)


LIES: dict[str, Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "NaN": lambda gradient, loss: (gradient.clone().index_fill_(0, torch.tensor([7]), torch.nan), loss),
    "Inf": lambda gradient, loss: (gradient.clone().index_fill_(0, torch.tensor([7]), torch.inf), loss),
    "length": lambda gradient, loss: (gradient[:-1].clone(), loss),
    "dtype": lambda gradient, loss: (gradient.double(), loss),
    "shape": lambda gradient, loss: (gradient[None].clone(), loss),
    "layout": lambda gradient, loss: (gradient.to_sparse(), loss),
    "loss": lambda gradient, loss: (gradient, loss.repeat(2)),
}


def lie(kind: str, rank: int, port: int) -> None:
    """In a process of its own: a worker whose gradients are changed before they are sent."""
    call = connection.call_server

    def lying(function: Callable, *arguments: object) -> object:
        if function is exchange and arguments[1] != NEW:
            arguments = (*arguments[:2], *LIES[kind](*arguments[2:4]), *arguments[4:])
        return call(function, *arguments)

    connection.call_server = lying
    plain_worker(rank, port)


def test_what_cannot_be_a_gradient_is_left_out_whatever_it_is() -> None:
    kinds = [None, None, None, *LIES]
    config = replace(SMALL, rule="median", workers=len(kinds), byzantine=0, iterations=3)
    port = free_port()
    others = [beside(lie if kind else honest, kind, rank, port) for rank, kind in enumerate(kinds)]
    run = train(config, rpc=RpcConfig(port=port, spawn_workers=False))
    for other in others:
        other.join(20)
    n = 21_840
    named = {
        "NaN": [NOT_FINITE],
        "Inf": [NOT_FINITE],
        "length": [f"({n - 1},)", f"({n},)"],
        "dtype": ["torch.float64", "torch.float32"],
        "shape": [f"(1, {n})", f"({n},)"],
        "layout": ["torch.sparse_coo"],
        "loss": ["(2,)"],
    }
    for rank, kind in enumerate(kinds):
        ((status, times),) = reasons(run, rank).items()
        assert times == 3
        assert all(value in status for value in named[kind]) if kind else status == USED, status
    assert [other.exitcode for other in others] == [0] * len(kinds)


SERVER = """
from fa.training import TrainConfig, train
from fa.training.transports.base import RpcConfig, TcpConfig

def tell(state):
    if state.iteration == 2:
        print("training", flush=True)

if __name__ == "__main__":
    config = TrainConfig(rule="median", workers=3, byzantine=0, iterations=100000, batch=4)
    train(config, {server}, progress=tell)
"""


@both
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs Linux")
@pytest.mark.parametrize(
    ("victim", "how", "stopping"),
    [
        ("server", signal.SIGKILL, True),
        ("server", signal.SIGTERM, False),
        ("server", signal.SIGINT, False),
        ("forks", signal.SIGKILL, True),
    ],
    ids=["server-SIGKILL-stopped", "server-SIGTERM", "server-SIGINT", "forks-SIGKILL-stopped"],
)
def test_nobody_is_left_whoever_is_killed(
    tmp_path: Path, victim: str, how: signal.Signals, stopping: bool, kind: Kind
) -> None:
    script = tmp_path / "serve.py"
    script.write_text(SERVER.replace("{server}", f"{kind.__name__[:3].lower()}={kind.__name__}()"))
    command = [sys.executable, script]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == "training\n"
        below = descendants(server.pid)
        (forks,) = (child for child in below if len(descendants(child)) == 3)
        if stopping:  # a stopped process cannot end itself
            os.kill(min(descendants(forks)), signal.SIGSTOP)
        os.kill(forks if victim == "forks" else server.pid, how)
        _, told = server.communicate(timeout=300)
        wait_until(lambda: not any(map(alive, below)))
    finally:
        server.kill()
    if victim == "forks":
        last = told.splitlines()[-1]
        assert all(f"worker {rank}" in last for rank in range(3)), told


@pytest.mark.parametrize("backend", ["rpc", "tcp"])
def test_workers_started_by_hand(tmp_path: Path, backend: str) -> None:
    """The command line's files are those of the simulation, but for what tells the time."""
    fa = [sys.executable, "-c", "from fa.cli import main; main()"]
    run = ["train", "--rule", "median", "--workers", "2", "--byzantine", "0", "--iterations", "5", "--batch", "4"]
    where = f"127.0.0.1:{free_port()}"
    out = [*run, "--threads", "1", "--out"]
    workers = [
        subprocess.Popen([*fa, "worker", "--backend", backend, "--rank", str(rank), "--server", where])
        for rank in range(2)
    ]
    subprocess.run([*fa, *out, tmp_path / backend, "--backend", backend, "--listen", where], check=True)
    assert [process.wait(20) for process in workers] == [0, 0]
    with pytest.raises(SystemExit) as done:
        cli.main([*out, str(tmp_path / "simulate")])
    assert done.value.code == 0
    one, other = (tmp_path / name / "workers.csv" for name in (backend, "simulate"))
    assert one.read_text() == other.read_text()


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_that_the_run_has_not_is_told_so_and_harms_nobody(rank: int) -> None:
    model = models.build("convnet", 1, 10, 28, seed=0)
    transport = RpcTransport(model, replace(SMALL, rule="median", workers=2, byzantine=0), flatten(model), RpcConfig())
    with pytest.raises(ValueError, match=rf"^rank must be .*\b2\b.*{rank}\b"):
        transport.exchange(GradientMessage(rank, NEW, torch.ones(1), torch.ones(()), []))


def test_of_two_processes_of_a_rank_the_later_stays() -> None:
    model = models.build("convnet", 1, 10, 28, seed=0)
    transport = RpcTransport(model, replace(SMALL, rule="median", workers=2, byzantine=0), flatten(model), RpcConfig())
    first, second = (transport.exchange(GradientMessage(0, NEW, torch.ones(1), torch.ones(()), [])) for _ in range(2))
    assert first.value() is None
    assert not second.done()


def test_a_gradient_of_another_length_is_left_out() -> None:
    config = replace(SMALL, rule="median", workers=2, byzantine=0, iterations=1)
    model = models.build("convnet", 1, 10, 28, seed=0)
    parameters = flatten(model)
    transport = RpcTransport(model, config, parameters, RpcConfig(), needs_gram=True)

    def send(rank: int, iteration: int, length: int) -> None:
        transport.exchange(GradientMessage(rank, iteration, torch.ones(length), torch.ones(()), []))

    for rank in range(2):
        send(rank, -1, 1)
    answers = [threading.Timer(0.5, send, (0, 0, len(parameters))), threading.Timer(0.6, send, (1, 0, 3))]
    for answer in answers:
        answer.start()
    gathered = transport.gradients(0, parameters)
    assert list(gathered.missing) == [1]
    assert all(f"({length},)" in gathered.missing[1] for length in (3, len(parameters)))
    assert bool(gathered.G[1].isnan().all())
    assert bool((gathered.G[0] == 1).all())
    assert gathered.inner_products is not None
    assert gathered.inner_products[0, 0] == len(parameters)
    assert np.isnan(gathered.inner_products[1]).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rpc": RpcConfig(quorum=5)}, r"^quorum must be .*\bworkers=4\b.*\b5\b"),
        ({"checkpoint": "kept", "checkpoint_every": -1.0}, r"^checkpoint_every must be .*-1\.0\b"),
    ],
)
def test_bad_settings_are_told_before_data_are_loaded(
    given: dict, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fa.training.loop.load_dataset", lambda _: pytest.fail("data are loaded"))
    with pytest.raises(ValueError, match=message):
        train(SMALL, **given)


def test_a_port_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^port must be .*\b65535\b.*\b70000\b"):
        RpcConfig(port=70000)


@pytest.mark.parametrize("backend", ["rpc", "tcp"])
@pytest.mark.parametrize("silent", [False, True])
def test_a_worker_that_finds_no_server_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys, backend: str, silent: bool
) -> None:
    """Nothing listens at the port, or something that accepts and stays silent."""
    monkeypatch.setattr("fa.training.transports.rpc.connection.TIMEOUT", timedelta(seconds=1))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1] if silent else free_port()
        with pytest.raises(SystemExit) as leaving:
            cli.main(["worker", "--rank", "0", "--server", f"127.0.0.1:{port}", "--timeout", "1", "--backend", backend])
    assert leaving.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf"fa: .*\b127\.0\.0\.1:{port}\b.*\b1 s\b", last), last
