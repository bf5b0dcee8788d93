"""Training over worker processes: the simulation's numbers bit for bit, and what is left when processes die or hang."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fa import models
from fa.checks import ConditionError
from fa.rules import RULES
from fa.training import Progress, Run, TrainConfig, train
from fa.training.flat import flatten
from fa.training.rpc.server import NEW, Remote, Sent
from fa.training.transport import Cluster

SMALL = TrainConfig(workers=4, byzantine=1, iterations=20, batch=4, lr=0.05, seed=5)
FEWER = {"bulyan": 0, "krum": 0, "multi_krum": 0}  # f, where four workers are too few for a faulty one


def losses(config: TrainConfig, cluster: Cluster | None) -> tuple[Run, list[float]]:
    seen: list[float] = []
    return train(config, threads=1, cluster=cluster, progress=lambda state: seen.append(float(state.loss))), seen


@pytest.mark.parametrize("rule", RULES)
def test_same_trajectory_as_the_simulation(rule: str) -> None:
    config = replace(SMALL, rule=rule, byzantine=FEWER.get(rule, 1))
    here, expected = losses(config, None)
    there, seen = losses(config, Cluster())
    assert seen == expected  # equal bits: the same arithmetic, with one thread each
    assert there.workers == here.workers
    assert there.final_accuracy == here.final_accuracy


@pytest.mark.parametrize("lost", ["zero", "previous"])
def test_datagrams_over_loopback_lose_nothing_and_give_the_simulations_numbers(lost: str) -> None:
    there, seen = losses(SMALL, Cluster(gradients="udp", lost=lost))
    here, expected = losses(SMALL, None)
    assert seen == expected
    assert there.workers == here.workers  # where a loss would be told
    assert there.backend == {"name": "rpc", "deadline": 60.0, "quorum": None, "gradients": "udp", "lost": lost}


def test_what_datagrams_need_is_told() -> None:
    with pytest.raises(ValueError, match="gradients must be one of rpc, udp; it is 'tcp'"):
        Cluster(gradients="tcp")
    with pytest.raises(ValueError, match="lost must be one of zero, previous; it is 'mean'"):
        Cluster(gradients="udp", lost="mean")
    with pytest.raises(ValueError, match="gradients must be 'udp' where lost is 'previous'; it is 'rpc'"):
        Cluster(lost="previous")


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


def test_goes_on_after_a_worker_is_killed() -> None:
    config = replace(SMALL, rule="median", byzantine=0, assumed_byzantine=1)
    run = train(config, cluster=Cluster(), progress=at(5, lambda: os.kill(process(2), signal.SIGKILL)))
    out = reasons(run, 2)["left out: its process has ended"]
    assert out in (14, 15)  # it may have sent its sixth gradient before it died
    assert reasons(run, 1) == {"used": 20}
    assert not multiprocessing.active_children()


def test_ends_where_too_few_are_left() -> None:
    config = replace(SMALL, rule="multi_krum", byzantine=0, assumed_byzantine=0)

    def kill() -> None:
        for rank in range(3):
            os.kill(process(rank), signal.SIGKILL)

    with pytest.raises(ConditionError, match=r"iteration [67]: .* needs"):
        train(config, cluster=Cluster(), progress=at(5, kill))
    assert not multiprocessing.active_children()


def test_a_stopped_worker_is_left_out_and_comes_back() -> None:
    config = replace(SMALL, rule="median", byzantine=0, assumed_byzantine=1, iterations=400)
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

    run = train(config, cluster=Cluster(deadline=0.5), progress=act)
    assert reasons(run, 3)["left out: no gradient within 0.5 s"] >= 24
    last = [row.status for row in run.workers if row.worker == 3][-50:]
    assert "used" in last


def test_a_quorum_does_not_wait_for_the_slowest() -> None:
    config = replace(SMALL, rule="median", byzantine=0, assumed_byzantine=1)
    stopped: list[int] = []

    def act() -> None:
        stopped.append(process(0))
        os.kill(stopped[0], signal.SIGSTOP)

    run = train(config, cluster=Cluster(quorum=3), progress=at(2, act))
    assert reasons(run, 0)["left out: not among the fastest 3"] >= 17
    with pytest.raises(ValueError, match="quorum must be at most workers=4; it is 5"):
        train(config, cluster=Cluster(quorum=5))


SERVER = """
from fa.training import TrainConfig, train
from fa.training.transport import Cluster
import multiprocessing

def tell(state):
    if state.iteration == 2:
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)

if __name__ == "__main__":
    config = TrainConfig(rule="median", workers=3, byzantine=0, iterations=100000, batch=4)
    train(config, cluster=Cluster(), progress=tell)
"""


def test_no_process_outlives_the_server(tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text(SERVER)
    server = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    workers = [int(pid) for pid in server.stdout.readline().split()]
    assert len(workers) == 3
    os.kill(workers[0], signal.SIGSTOP)  # a stopped process cannot end itself
    server.kill()
    server.communicate()
    until = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [pid for pid in workers if alive(pid)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_started_by_hand(tmp_path: Path) -> None:
    """The command line's files are those of the simulation, but for what tells the time."""
    fa = [sys.executable, "-c", "from fa.cli import main; main()"]
    run = [*fa, "train", "--rule", "median", "--workers", "2", "--byzantine", "0", "--iterations", "5", "--batch", "4"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = f"127.0.0.1:{free.getsockname()[1]}"
    out = [*run, "--threads", "1", "--out"]
    workers = [subprocess.Popen([*fa, "worker", "--rank", str(rank), "--master", where]) for rank in range(2)]
    subprocess.run([*out, tmp_path / "rpc", "--backend", "rpc", "--listen", where], check=True)
    assert [worker.wait(20) for worker in workers] == [0, 0]
    subprocess.run([*out, tmp_path / "simulate"], check=True)
    one, other = (tmp_path / name / "workers.csv" for name in ("rpc", "simulate"))
    assert one.read_text() == other.read_text()


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_that_the_run_has_not_is_told_so_and_harms_nobody(rank: int) -> None:
    model = models.build("convnet", 1, 10, 28, seed=0)
    remote = Remote(model, replace(SMALL, rule="median", workers=2, byzantine=0), flatten(model), Cluster())
    with pytest.raises(ValueError, match=f"rank must be at least 0 and less than the run's 2 workers; it is {rank}"):
        remote.exchange(Sent(rank, NEW, torch.ones(1), torch.ones(()), []))


def test_of_two_processes_of_a_rank_the_later_stays() -> None:
    model = models.build("convnet", 1, 10, 28, seed=0)
    remote = Remote(model, replace(SMALL, rule="median", workers=2, byzantine=0), flatten(model), Cluster())
    first, second = (remote.exchange(Sent(0, NEW, torch.ones(1), torch.ones(()), [])) for _ in range(2))
    assert first.value() is None
    assert not second.done()


def test_a_gradient_of_another_length_is_left_out() -> None:
    config = replace(SMALL, rule="median", workers=2, byzantine=0, iterations=1)
    model = models.build("convnet", 1, 10, 28, seed=0)
    parameters = flatten(model)
    remote = Remote(model, config, parameters, Cluster(), measured=True)

    def send(rank: int, iteration: int, length: int) -> None:
        remote.exchange(Sent(rank, iteration, torch.ones(length), torch.ones(()), []))

    for rank in range(2):
        send(rank, -1, 1)
    answers = [threading.Timer(0.5, send, (0, 0, len(parameters))), threading.Timer(0.6, send, (1, 0, 3))]
    for answer in answers:
        answer.start()
    gathered = remote.gradients(0, parameters)
    assert gathered.missing == {1: f"sent (3,) of torch.float32, not ({len(parameters)},) of torch.float32"}
    assert bool(gathered.G[1].isnan().all())
    assert bool((gathered.G[0] == 1).all())
    assert gathered.products is not None
    assert gathered.products[0, 0] == len(parameters)
    assert np.isnan(gathered.products[1]).all()
