"""Workers as processes of this machine, from a fork server that has loaded torch; none outlives the server."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from typing import Any

from torch import Tensor, nn

from fa.network.chunks import Inbox
from fa.timing import Parts
from fa.training.config import TrainConfig
from fa.training.rpc import star
from fa.training.rpc.server import Remote, install
from fa.training.transport import Cluster

_LEAVE = 5.0  # seconds for workers to leave by themselves
_PR_SET_PDEATHSIG = 1


@contextmanager
def serving(
    model: nn.Module, config: TrainConfig, parameters: Tensor, measured: bool, cluster: Cluster, parts: Parts
) -> Iterator[Remote]:
    """The transport of a run whose server is this process, with its workers where `cluster` has them started here.

    It is there once the workers have joined. `measured` is whether the rule looks at the Gram matrix; `parts` is told
    what time is spent on.
    """
    with ExitStack() as stack:
        inbox = stack.enter_context(_inbox(cluster, config.workers, len(parameters)))
        remote = Remote(model, config, parameters, cluster, measured, parts, inbox)
        install(remote)
        store, port = star.serve(cluster.host, cluster.port)
        stack.enter_context(star.agent(store, cluster.host, server=True))
        workers = _spawn(config.workers, cluster.host, port) if cluster.spawn else []
        threading.Thread(target=_watch, args=(workers, remote.lose), daemon=True).start()
        try:
            remote.join()
            yield remote
            remote.close()
            for process in workers:
                process.join(_LEAVE)
        finally:
            for process in workers:
                process.kill()
            for process in workers:
                process.join()


@contextmanager
def _inbox(cluster: Cluster, workers: int, n: int) -> Iterator[Inbox | None]:
    """Where datagrams come in: at the port of that number, if one is given."""
    if cluster.gradients != "udp":
        yield None
        return
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind((cluster.host, cluster.port))
    inbox = Inbox(receiver, workers, n, previous=cluster.lost == "previous")
    try:
        yield inbox
    finally:
        inbox.close()


def _spawn(workers: int, host: str, port: int) -> list[Any]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fa.training.rpc.worker"])
    resource_tracker.ensure_running()  # first: when it starts, it lets SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for the server to act on
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    processes = [
        context.Process(target=_work, args=(r, host, port), name=f"fa-{r}", daemon=True) for r in range(workers)
    ]
    for process in processes:
        process.start()
    return processes


def _watch(processes: list[Any], lose: Callable[[int, str], None]) -> None:
    left = {process.sentinel: rank for rank, process in enumerate(processes)}
    while left:
        for sentinel in wait(list(left)):
            rank = left.pop(sentinel)
            lose(rank, "its process has ended")


def _work(rank: int, host: str, port: int) -> None:
    """In the child: it ends with the fork server, even when stopped, and that with the server; or by itself."""
    # Every child holds the pipe by which the fork server lives; a stopped one would keep it alive, and so itself.
    alive = forkserver._forkserver._forkserver_alive_fd  # type: ignore[attr-defined]
    os.close(alive)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    import torch

    from fa.training.rpc.worker import work

    torch.set_num_threads(1)
    try:
        work(rank, host, port)
    except RuntimeError as error:
        print(f"worker {rank}: {str(error).splitlines()[0]}", file=sys.stderr)
        os._exit(1)
