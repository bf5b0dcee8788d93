"""Real processes for tests: workers that are started apart, and who is alive."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout, suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from fa import models
from fa.training.transports.rpc import worker
from fa.training.transports.server_config import LOOPBACK
from fa.training.transports.tcp import worker as over_tcp
from fa.utils.forkserver import exit_when_parent_dies, forkserver_context


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as free:
        return free.getsockname()[1]


def beside(work: Callable[..., None], *arguments: object) -> multiprocessing.Process:
    """A process that does `work`, a function of a module of the tests, from the fork server of the workers."""
    started = forkserver_context("fa.training.transports.rpc.worker").Process(target=work, args=arguments, daemon=True)
    started.start()
    return started


def printed_beside(code: str, folder: Path) -> str:
    """Return what code prints in a process of its own, where no type checker is before the checks of fa."""
    process = beside(_execute, code, folder / "printed.txt")
    process.join(240)
    assert process.exitcode == 0
    return (folder / "printed.txt").read_text()


def refusals(calls: Iterable[str], setup: str, folder: Path) -> list[str]:
    """The messages of the ValueErrors that calls raise in another process, where no type checker is before ours."""
    code = f"""
{setup}
for call in {list(calls)!r}:
    try:
        eval(call)
    except ValueError as error:
        print(error)
"""
    return printed_beside(code, folder).splitlines()


def _execute(code: str, out: Path) -> None:
    with out.open("w") as file, redirect_stdout(file):
        exec(code, {"__name__": "__main__"})


def plain_worker(rank: int, port: int) -> None:
    exit_when_parent_dies()
    torch.set_num_threads(1)
    worker.work(rank, LOOPBACK, port)


def tcp_worker(rank: int, port: int) -> None:
    exit_when_parent_dies()
    torch.set_num_threads(1)
    with suppress(ConnectionError):  # the server may be gone first
        over_tcp.work(rank, LOOPBACK, port)


def without_data(work: Callable[[int, int], None], rank: int, port: int) -> None:
    """A worker whose data set is not on its disk; it must raise the error."""
    from fa.training.transports import remote_worker

    def load(config: object) -> None:
        raise ValueError("dataset must be on this disk")

    remote_worker.load_dataset = load
    with pytest.raises(ValueError, match="on this disk"):
        work(rank, port)


def normed_worker(rank: int, port: int) -> None:
    """A worker whose model has batch norm."""
    models.build = build_normed
    plain_worker(rank, port)


def normed_tcp_worker(rank: int, port: int) -> None:
    """A worker over TCP whose model has batch norm."""
    models.build = build_normed
    tcp_worker(rank, port)


def build_normed(*_: object, seed: int) -> nn.Module:
    """The smallest model with batch norm, in the place of the one that a run names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 10))


def descendants(pid: int) -> set[int]:
    """Everybody below this process, the fork server's children among them."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found, todo = set(), {pid}
    while todo:
        todo = {child for child, parent in parents.items() if parent in todo} - found
        found |= todo
    return found


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def worked(pid: int) -> float:
    """The seconds that a process has had of a core."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def wait_until(condition: Callable[[], bool], seconds: float = 240.0) -> None:
    """Wait for a condition; the limit, which only a failing test reaches, is for a machine with much else to do."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
