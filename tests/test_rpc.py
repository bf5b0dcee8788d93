"""Training over worker processes: the simulation's numbers bit for bit, and what is left when processes die or hang."""

import math
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.rpc

import fa
from fa import cli, models
from fa.rules.decision import NOT_FINITE
from fa.training import Progress, Run, TrainConfig, train
from fa.training.parameter_vector import flatten
from fa.training.records import USED
from fa.training.transports import spawning
from fa.training.transports.base import ServedRun
from fa.training.transports.gathering import Gathering
from fa.training.transports.rounds import NEW, GradientMessage
from fa.training.transports.rpc import connection, server
from fa.training.transports.rpc import worker as over_rpc
from fa.training.transports.rpc.server import RpcTransport, exchange
from fa.training.transports.server_config import RpcConfig, TcpConfig
from fa.training.transports.tcp import worker as over_tcp
from fa.training.worker import Worker
from fa.utils.forkserver import exit_when_parent_dies
from fa.utils.validation import TooFewWorkersError
from tests.processes import (
    alive,
    beside,
    descendants,
    free_port,
    plain_worker,
    tcp_worker,
    wait_until,
    without_data,
    worked,
)

SMALL = TrainConfig(workers=4, byzantine=1, iterations=20, batch=4, lr=0.05, seed=5, evaluate_every=0)
KINDS = ("mean", "median", "krum", "bulyan", "fa")  # weights, order statistics, a choice, both, and weights by K
FEWER = {"bulyan": 0, "krum": 0}  # f, where four workers are too few for a faulty one


both = pytest.mark.parametrize("kind", [RpcConfig, TcpConfig], ids=["rpc", "tcp"])
_SLOW_OVER_TCP = [pytest.param(RpcConfig, id="rpc"), pytest.param(TcpConfig, id="tcp", marks=pytest.mark.long)]
one_of_both = pytest.mark.parametrize("kind", _SLOW_OVER_TCP)  # for tests that wait: over TCP they are long
Kind = type[RpcConfig] | type[TcpConfig]


def losses(config: TrainConfig, server: RpcConfig | TcpConfig | None) -> tuple[Run, list[float]]:
    seen: list[float] = []
    return train(config, threads=1, server=server, progress=lambda state: seen.append(float(state.loss))), seen


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
    there, seen = losses(SMALL, RpcConfig(gradients="udp", lost=lost))
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
    with pytest.raises(ValueError, match=r"^gradients must be .*\brpc, udp\b.*'tcp'"):
        RpcConfig(gradients="tcp")
    with pytest.raises(ValueError, match=r"^lost must be .*\bzero, previous\b.*'mean'"):
        RpcConfig(gradients="udp", lost="mean")
    with pytest.raises(ValueError, match=r"^gradients must be .*'udp'.*'previous'.*'rpc'"):
        RpcConfig(lost="previous")


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
    run = train(config, server=kind(), progress=at(5, lambda: os.kill(process(2), signal.SIGKILL)))
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
        train(config, server=kind(), progress=at(5, kill))
    assert not multiprocessing.active_children()


def without_loss(backend: str, rank: int, port: int) -> None:
    """A worker whose losses are NaN, and its gradients finite."""
    plain = Worker.write_gradient
    Worker.write_gradient = lambda worker, iteration: plain(worker, iteration) * torch.nan
    (plain_worker if backend == "rpc" else tcp_worker)(rank, port)


@both
def test_losses_of_nan_and_killed_workers_end_a_run_whose_rule_needs_more(kind: Kind) -> None:
    port, backend = free_port(), kind.__name__[:3].lower()
    work = plain_worker if backend == "rpc" else tcp_worker
    workers = [beside(work, rank, port) for rank in range(4)] + [beside(without_loss, backend, 4, port)]
    config = replace(SMALL, rule="multi_krum", workers=5, byzantine=0, f=0)
    seen: list[bool] = []

    def kill(state: Progress) -> None:
        seen.append(math.isfinite(float(state.loss)))
        if state.iteration == 5:
            for rank in (2, 3):
                os.kill(workers[rank].pid, signal.SIGKILL)

    named = r".*\bworker 2: .*\bworker 3: .*\bworker 4: .*nan"
    with pytest.raises(TooFewWorkersError, match=rf"\b[67]: .*\bmulti_krum\b{named}"):
        train(config, server=kind(port=port, spawn_workers=False, deadline=5), progress=kill)
    assert all(seen)  # the loss of NaN is not part of the mean
    for worker in workers:
        worker.join(20)


def poor_worker(backend: str, rank: int, port: int) -> None:
    """A worker whose memory does not suffice from the third iteration on."""
    plain = Worker.write_gradient

    def write(worker: Worker, iteration: int) -> torch.Tensor:
        if iteration == 2:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**20,) * 2)
        return plain(worker, iteration)

    Worker.write_gradient = write
    with suppress(ValueError):
        (plain_worker if backend == "rpc" else tcp_worker)(rank, port)


@both
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs Linux")
def test_too_little_memory_in_a_worker_excludes_it_and_names_the_batch(kind: Kind) -> None:
    port, backend = free_port(), kind.__name__[:3].lower()
    work = plain_worker if backend == "rpc" else tcp_worker
    workers = [beside(work, 0, port), beside(work, 1, port), beside(poor_worker, backend, 2, port)]
    config = replace(SMALL, rule="median", workers=3, byzantine=0, f=0, iterations=4, batch=2000)
    run = train(config, server=kind(port=port, spawn_workers=False))
    for worker in workers:
        worker.join(20)
    statuses = [row.status for row in run.workers if row.worker == 2]
    assert statuses[:2] == [USED] * 2
    assert all(re.search(r"\bbatch must be .*\b2000\b", status) for status in statuses[2:])


@one_of_both
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

    run = train(config, server=kind(deadline=0.5), progress=act)
    silent = [status for status in reasons(run, 3) if re.search(r"\b0\.5 s\b", status)]
    assert sum(reasons(run, 3)[status] for status in silent) >= 24
    last = [row.status for row in run.workers if row.worker == 3][-50:]
    assert USED in last


@one_of_both
def test_a_quorum_does_not_wait_for_the_slowest(kind: Kind) -> None:
    config = replace(SMALL, rule="median", byzantine=0, f=1)
    stopped: list[int] = []

    def act() -> None:
        stopped.append(process(0))
        os.kill(stopped[0], signal.SIGSTOP)

    run = train(config, server=kind(quorum=3), progress=at(2, act))
    late = [status for status in reasons(run, 0) if re.search(r"\b3\b", status)]
    assert sum(reasons(run, 0)[status] for status in late) >= 17
    with pytest.raises(ValueError, match=r"^quorum must be .*\bworkers=4\b.*\b5\b"):
        train(config, server=kind(quorum=5))


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
        train(config, server=kind(port=port, spawn_workers=spawned, deadline=30), progress=act)
    assert seen.value.args[0] > 6
    for worker in (*first, *again):
        worker.join(10)
    assert not multiprocessing.active_children()


class Rejoined(Exception):
    pass


def honest(_: None, rank: int, port: int) -> None:
    plain_worker(rank, port)


def gradient_of(change: Callable[[torch.Tensor], object]) -> Callable[..., tuple[object, ...]]:
    return lambda gradient, loss, *others: (change(gradient), loss, *others)


def loss_of(change: Callable[[torch.Tensor], object]) -> Callable[..., tuple[object, ...]]:
    return lambda gradient, loss, *others: (gradient, change(loss), *others)


LIES: dict[str, Callable[..., tuple[object, ...]]] = {
    "NaN": gradient_of(lambda gradient: gradient.clone().index_fill_(0, torch.tensor([7]), torch.nan)),
    "Inf": gradient_of(lambda gradient: gradient.clone().index_fill_(0, torch.tensor([7]), torch.inf)),
    "length": gradient_of(lambda gradient: gradient[:-1].clone()),
    "dtype": gradient_of(lambda gradient: gradient.double()),
    "shape": gradient_of(lambda gradient: gradient[None].clone()),
    "layout": gradient_of(lambda gradient: gradient.to_sparse()),
    "gradient": gradient_of(lambda gradient: None),
    "loss": loss_of(lambda loss: loss.repeat(2)),
    "float8": loss_of(lambda loss: loss.to(torch.float8_e4m3fn)),
    "NaN loss": loss_of(lambda loss: loss * torch.nan),
    "seconds": lambda gradient, loss, statistics, seconds: (gradient, loss, statistics, None),
    "statistics": lambda gradient, loss, statistics, seconds: (gradient, loss, "none", seconds),
}


def lie(kind: str, rank: int, port: int) -> None:
    """In a process of its own: a worker whose messages are changed before they are sent."""
    call = connection.call_server

    def lying(function: Callable, *arguments: object, **options: object) -> object:
        if function is exchange and arguments[1] != NEW:
            arguments = (*arguments[:2], *LIES[kind](*arguments[2:]))
        return call(function, *arguments, **options)

    connection.call_server = lying
    plain_worker(rank, port)


def test_what_cannot_be_a_gradient_is_left_out_whatever_it_is() -> None:
    kinds = [None, None, None, *LIES]
    config = replace(SMALL, rule="median", workers=len(kinds), byzantine=0, iterations=3)
    port = free_port()
    others = [beside(lie if kind else honest, kind, rank, port) for rank, kind in enumerate(kinds)]
    run = train(config, server=RpcConfig(port=port, spawn_workers=False))
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
        "gradient": ["NoneType"],
        "loss": ["(2,)"],
        "float8": ["float8"],
        "NaN loss": ["loss of nan"],
        "seconds": ["None"],
        "statistics": ["batch-norm"],
    }
    for rank, kind in enumerate(kinds):
        ((status, times),) = reasons(run, rank).items()
        assert times == 3
        assert all(value in status for value in named[kind]) if kind else status == USED, status
    assert [other.exitcode for other in others] == [0] * len(kinds)


def ahead(rank: int, port: int) -> None:
    """A worker whose gradients are said to be of iteration 7."""
    call = connection.call_server

    def lying(function: Callable, *arguments: object, **options: object) -> object:
        if function is exchange and arguments[1] != NEW:
            arguments = (arguments[0], 7, *arguments[2:])
        return call(function, *arguments, **options)

    connection.call_server = lying
    plain_worker(rank, port)


def test_gradients_of_another_iteration_are_left_out_without_a_wait() -> None:
    config, port = replace(SMALL, rule="median", workers=3, byzantine=0, iterations=3), free_port()
    workers = [beside(plain_worker, 0, port), beside(plain_worker, 1, port), beside(ahead, 2, port)]
    run = train(config, server=RpcConfig(port=port, spawn_workers=False, deadline=600))
    for worker in workers:
        worker.join(20)
    assert all(re.search(r"\biteration 7\b", status) for status in reasons(run, 2))
    assert reasons(run, 0) == {USED: 3}


def intruder(port: int, path: str) -> None:
    """A process without any secret, which has the server execute code."""
    with connection.rpc_agent(connection.connect_store("127.0.0.1", port), "127.0.0.1", server=False):
        torch.distributed.rpc.rpc_sync(connection.SERVER, os.mkdir, (path,))


@pytest.mark.long
def test_any_peer_executes_code_at_the_server(tmp_path: Path) -> None:
    """What RPC does not withstand, as docs/security.md says."""
    port = free_port()

    def attack(state: Progress) -> None:
        if state.iteration == 3:
            process = beside(intruder, port, str(tmp_path / "bomb"))
            process.join(60)

    train(replace(SMALL, rule="median"), server=RpcConfig(port=port), progress=attack)
    assert (tmp_path / "bomb").exists()


GARBAGE = {"HTTP": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "zeros": bytes(100_000), "ones": b"\xff" * 100_000}


@pytest.mark.long
@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs Linux")
def test_garbage_at_a_port_of_rpc_may_end_the_server(tmp_path: Path, name: str) -> None:
    """It aborts, hangs or goes on: docs/security.md promises nothing. Our part is that no process remains."""
    script = tmp_path / "serve.py"
    script.write_text(SERVER.replace("{server}", "server=RpcConfig()").replace("100000", "300"))
    serving = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert serving.stdout is not None
    try:
        assert serving.stdout.readline() == "training\n"
        below = descendants(serving.pid)
        for address in listening(serving.pid):
            port = int(address.partition(":")[2], 16)
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as attacker:
                attacker.sendall(GARBAGE[name])
        with suppress(subprocess.TimeoutExpired):
            serving.wait(30)
    finally:
        serving.kill()
        serving.communicate()
    assert serving.returncode in (0, 1, 2, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGKILL)
    wait_until(lambda: not any(map(alive, below)))


SERVER = """
from fa.training import TrainConfig, train
from fa.training.transports.server_config import RpcConfig, TcpConfig

def tell(state):
    if state.iteration == 2:
        print("training", flush=True)

if __name__ == "__main__":
    config = TrainConfig(rule="median", workers=3, byzantine=0, iterations=100000, batch=4)
    train(config, {server}, progress=tell)
"""


@pytest.mark.long
@one_of_both
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
    script.write_text(SERVER.replace("{server}", f"server={kind.__name__}()"))
    command = [sys.executable, script]
    serving = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert serving.stdout is not None
    try:
        assert serving.stdout.readline() == "training\n"
        below = descendants(serving.pid)
        (forks,) = (child for child in below if len(descendants(child)) == 3)
        if stopping:  # a stopped process cannot end itself
            os.kill(min(descendants(forks)), signal.SIGSTOP)
        os.kill(forks if victim == "forks" else serving.pid, how)
        _, told = serving.communicate(timeout=300)
        wait_until(lambda: not any(map(alive, below)))
    finally:
        serving.kill()
    if victim == "forks":
        last = told.splitlines()[-1]
        assert all(f"worker {rank}" in last for rank in range(3)), told


def command_line(*words: str) -> None:
    """Run `fa WORDS`, in a process of its own or in this one."""
    with pytest.raises(SystemExit) as done:
        cli.main(words)
    assert done.value.code == 0


def command_line_with_messages(path: Path, *words: str) -> None:
    """Run `fa WORDS`, and write what it prints to stderr to a file."""
    with path.open("w") as file, redirect_stderr(file):
        command_line(*words)


@pytest.mark.parametrize(
    ("backend", "command", "host"),
    [
        ("rpc", "train", "[::1]"),
        ("tcp", "server", "[::1]"),
        pytest.param("rpc", "server", "127.0.0.1", marks=pytest.mark.long),
        pytest.param("tcp", "train", "127.0.0.1", marks=pytest.mark.long),
        ("tcp by default", "train", "127.0.0.1"),
    ],
)
def test_workers_started_by_hand(tmp_path: Path, backend: str, command: str, host: str) -> None:
    """The command line's files are those of the simulation, but for what tells the time."""
    run = ["--rule", "median", "--workers", "2", "--byzantine", "0", "--iterations", "5", "--batch", "4"]
    run += ["--threads", "1", "--out"]
    kind, where = [] if backend == "tcp by default" else ["--backend", backend], f"{host}:{free_port()}"
    messages = [tmp_path / f"{rank}.txt" for rank in range(2)]
    workers = [
        beside(command_line_with_messages, path, "worker", *kind, "--rank", str(rank), "--server", where)
        for rank, path in enumerate(messages)
    ]
    command_line(command, *run, str(tmp_path / backend), *kind, "--listen", where)
    for process in workers:
        process.join(20)
    assert [process.exitcode for process in workers] == [0, 0]
    for rank, path in enumerate(messages):
        ready, ended = path.read_text().splitlines()
        assert ready.startswith(f"worker {rank}: ")
        assert where in ready
        assert ended.startswith(f"worker {rank}: ")
    command_line("train", *run, str(tmp_path / "simulate"))
    one, other = (tmp_path / name / "workers.csv" for name in (backend, "simulate"))
    assert one.read_text() == other.read_text()


def small_transport(**options: Any) -> RpcTransport:
    model = models.build("convnet", (1, 28, 28), 10, seed=0)
    config = replace(SMALL, rule="median", workers=2, byzantine=0)
    run = ServedRun(model, config, flatten(model), **options)
    return RpcTransport(run, Gathering(run), RpcConfig())


@pytest.mark.parametrize("rank", [-1, 2, 0.5, "0", None, True, torch.tensor(0)])
def test_a_rank_that_the_run_has_not_is_told_so_and_harms_nobody(rank: object) -> None:
    transport = small_transport()
    with pytest.raises(ValueError, match=rf"^rank must be .*\b2\b.*{re.escape(repr(rank))}"):
        transport.exchange(GradientMessage(rank, NEW, torch.ones(1), torch.ones(()), []))
    with pytest.raises(ValueError, match=r"^rank must be"):
        transport.compare(rank, "")
    with pytest.raises(ValueError, match=r"^rank must be"):
        transport.describe(rank, fa.__version__)
    with pytest.raises(ValueError, match=r"^rank must be"):
        transport.refuse(rank, "no data")


def seventh_worker(port: int) -> None:
    with pytest.raises(ValueError, match=r"^rank must be .*\b2 workers, got 7$"):
        over_rpc.work(7, "127.0.0.1", port)


def test_a_process_of_such_a_rank_ends_with_that_message() -> None:
    config, port = replace(SMALL, workers=2, byzantine=0, rule="median"), free_port()
    workers = [beside(plain_worker, rank, port) for rank in range(2)]
    others = [beside(seventh_worker, port)]

    def wait(state: Progress) -> None:
        if state.iteration == 1:
            others[0].join(20)

    train(config, server=RpcConfig(port=port, spawn_workers=False), progress=wait)
    for worker in (*workers, *others):
        worker.join(20)
        assert worker.exitcode == 0


def test_an_iteration_is_an_integer() -> None:
    with pytest.raises(ValueError, match=r"^iteration must be .*'0'"):
        small_transport().exchange(GradientMessage(0, "0", torch.ones(1), torch.ones(()), []))


@pytest.mark.parametrize("other", ["9.9", None])
def test_a_worker_of_another_release_or_with_other_data_may_not_join(other: object) -> None:
    transport = small_transport(checksum="data")
    with pytest.raises(ValueError, match=r"^release must be"):
        transport.describe(0, other)
    with pytest.raises(ValueError, match=r"^checksum of the data must be"):
        transport.compare(0, other)
    assert TrainConfig.from_json(transport.describe(1, fa.__version__)) == transport.config
    transport.compare(1, "data")


def test_a_worker_that_cannot_be_prepared_is_not_awaited() -> None:
    config, port = replace(SMALL, rule="median", workers=2, byzantine=0, iterations=1), free_port()
    workers = [beside(plain_worker, 0, port), beside(without_data, plain_worker, 1, port)]
    run = train(config, server=RpcConfig(port=port, spawn_workers=False))
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0
    assert all("on this disk" in status for status in reasons(run, 1))


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_rpc_needs_one_interface(host: str) -> None:
    with pytest.raises(ValueError, match=r"^host must be"):
        RpcConfig(host=host, spawn_workers=False)


class Hung:
    """A process that does not end by itself, with a clock that waiting advances."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock
        self.end, self._alive = socket.socketpair()
        self.sentinel = self.end.fileno()

    def start(self) -> None:
        pass

    def join(self, timeout: float = 0.0) -> None:
        self.clock.append(self.clock[-1] + timeout)

    def kill(self) -> None:
        self._alive.close()


def test_hung_processes_are_awaited_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    processes = [Hung(clock) for _ in range(5)]
    started = iter(processes)
    monkeypatch.setattr(spawning, "forkserver_context", lambda _: SimpleNamespace(Process=lambda **_: next(started)))
    monkeypatch.setattr(spawning, "time", SimpleNamespace(monotonic=lambda: clock[-1]))
    with spawning.spawn_workers(5, print, lambda rank: (rank,), lambda rank, reason: None):
        pass
    assert clock[-1] == spawning._EXIT_TIMEOUT
    for process in processes:
        process.end.close()


def test_one_run_over_rpc_at_a_time() -> None:
    server.set_active(small_transport())
    try:
        with pytest.raises(ValueError, match=r"^backend must be .*'rpc'"):
            train(replace(SMALL, iterations=1), server=RpcConfig())
    finally:
        server.clear_active()


def listening(pid: int | str) -> set[str]:
    """The addresses at which a process listens."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            inodes.add(os.readlink(descriptor))
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    return {line[1] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in inodes}


@both
@pytest.mark.skipif(not Path("/proc/net/tcp").is_file(), reason="needs Linux")
def test_every_port_binds_to_loopback_if_the_server_does(kind: Kind) -> None:
    bound: set[str] = set()

    def look() -> None:
        bound.update(listening("self"), *(listening(process(rank)) for rank in range(4)))

    before = listening("self")
    train(replace(SMALL, iterations=2), progress=at(1, look), server=kind(host="127.0.0.2"))
    assert bound - before
    assert all(address.partition(":")[0][-2:] == "7F" for address in bound - before), bound


def lasting_server(kind: Kind, port: int) -> None:
    exit_when_parent_dies()
    config = replace(SMALL, workers=2, byzantine=0, rule="median", iterations=10**6)
    train(config, threads=1, server=kind(port=port, spawn_workers=False))


def impatient_worker(kind: Kind, rank: int, port: int) -> None:
    exit_when_parent_dies()
    work = over_tcp.work if kind is TcpConfig else over_rpc.work
    work(rank, "127.0.0.1", port, timeout=60.0 if rank else 8.0)


@pytest.mark.long
@one_of_both
def test_a_worker_ends_when_its_server_is_silent(kind: Kind) -> None:
    """The server is stopped, so that its connections stay open; one worker waits for 8 s, and the other for longer."""
    port = free_port()
    serving = beside(lasting_server, kind, port)
    workers = [beside(impatient_worker, kind, rank, port) for rank in range(2)]
    wait_until(lambda: all(worked(worker.pid) > 1 for worker in workers))
    assert serving.pid is not None
    os.kill(serving.pid, signal.SIGSTOP)
    workers[0].join(20)
    assert workers[0].exitcode == 1
    assert workers[1].is_alive()
    for each in (serving, *workers):
        each.kill()
        each.join()


@pytest.mark.long
def test_a_soft_limit_of_open_files_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        run = train(replace(SMALL, workers=40, iterations=2), server=RpcConfig())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {row.status for row in run.workers} == {USED}


def test_of_two_processes_of_a_rank_the_later_stays() -> None:
    transport = small_transport()
    first, second = (transport.exchange(GradientMessage(0, NEW, torch.ones(1), torch.ones(()), [])) for _ in range(2))
    assert first.value() is None
    assert not second.done()


def test_the_end_waits_until_every_worker_has_acknowledged_it_or_is_excluded() -> None:
    """A process that another one has replaced acknowledges earlier, which does not count."""
    transport = small_transport()
    for rank in range(2):
        transport.exchange(GradientMessage(rank, NEW, torch.ones(1), torch.ones(()), []))
    transport.acknowledge(0)
    ending = threading.Thread(target=transport.close)
    ending.start()
    transport.leave(1, "it is excluded")
    ending.join(0.5)
    assert ending.is_alive()
    transport.acknowledge(0)
    ending.join(4)
    assert not ending.is_alive()


def test_a_gradient_that_fails_to_be_copied_ends_no_round(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = small_transport()
    n = transport._gathering.G.shape[1]

    def send(rank: int, iteration: int) -> None:
        with suppress(OSError):
            transport.exchange(GradientMessage(rank, iteration, torch.ones(n), torch.ones(()), []))

    for rank in range(2):
        send(rank, -1)

    class Unreadable:
        def copy_(self, _: object) -> None:
            raise OSError("no memory")

    transport._rows[1] = Unreadable()  # type: ignore[assignment]
    answers = [threading.Timer(0.2, send, (1, 0)), threading.Timer(0.4, send, (0, 0))]
    for answer in answers:
        answer.start()
    gathered = transport.gradients(0)
    assert list(gathered.missing) == [1]
    assert "no memory" in gathered.missing[1]


def test_a_gradient_of_another_length_is_left_out() -> None:
    config = replace(SMALL, rule="median", workers=2, byzantine=0, iterations=1)
    model = models.build("convnet", (1, 28, 28), 10, seed=0)
    parameters = flatten(model)
    run = ServedRun(model, config, parameters, needs_gram=True)
    transport = RpcTransport(run, Gathering(run), RpcConfig())

    def send(rank: int, iteration: int, length: int) -> None:
        transport.exchange(GradientMessage(rank, iteration, torch.ones(length), torch.ones(()), []))

    for rank in range(2):
        send(rank, -1, 1)
    answers = [threading.Timer(0.5, send, (0, 0, len(parameters))), threading.Timer(0.6, send, (1, 0, 3))]
    for answer in answers:
        answer.start()
    gathered = transport.gradients(0)
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
        ({"server": RpcConfig(quorum=5)}, r"^quorum must be .*\bworkers=4\b.*\b5\b"),
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


@pytest.mark.parametrize("backend", ["rpc", pytest.param("tcp", marks=pytest.mark.long)])
@pytest.mark.parametrize("silent", [False, True])
def test_a_worker_that_finds_no_server_says_so(capsys: pytest.CaptureFixture, backend: str, silent: bool) -> None:
    """Nothing listens at the port, or something that accepts and stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1] if silent else free_port()
        with pytest.raises(SystemExit) as leaving:
            cli.main(["worker", "--rank", "0", "--server", f"127.0.0.1:{port}", "--timeout", "1", "--backend", backend])
    assert leaving.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf"fa: .*\b127\.0\.0\.1:{port}\b.*\b1 s\b", last), last
