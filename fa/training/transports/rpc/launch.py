"""Workers as processes of this machine, from a fork server that has loaded torch; none outlives the server."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import wait
from typing import Any

from torch import Tensor, nn

from fa.training.config import TrainConfig
from fa.training.transports.base import Cluster
from fa.training.transports.rpc import connection
from fa.training.transports.rpc.server import Remote, install, uninstall
from fa.training.transports.udp import Inbox
from fa.utils.forkserver import exit_when_parent_dies, forkserver_context
from fa.utils.malloc import retain_freed_memory
from fa.utils.timing import PhaseTimer

_LEAVE = 5.0  # seconds for workers to leave by themselves


@contextmanager
def serving(
    model: nn.Module, config: TrainConfig, parameters: Tensor, measured: bool, cluster: Cluster, parts: PhaseTimer
) -> Iterator[Remote]:
    """The transport of a run whose server is this process, with its workers where `cluster` has them started here.

    It is there once the workers have joined. `measured` is whether the rule looks at the Gram matrix; `parts` is told
    what time is spent on.
    """
    with ExitStack() as stack:
        inbox = stack.enter_context(_inbox(cluster, config.workers, len(parameters)))
        remote = Remote(model, config, parameters, cluster, measured, parts, inbox)
        install(remote)
        stack.callback(uninstall)
        if cluster.store_kept:
            store, port = connection.reach(cluster.host, cluster.port), cluster.port
        else:
            store, port = connection.serve(cluster.host, cluster.port)
        stack.enter_context(connection.agent(store, cluster.host, server=True))
        workers: list[Any] = []
        try:
            if cluster.spawn:
                _spawn(workers, config.workers, cluster.host, port)
            threading.Thread(target=_watch, args=(workers, remote.lose), daemon=True).start()
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
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((cluster.host, cluster.port))
        inbox = Inbox(receiver, workers, n, previous=cluster.lost == "previous")
        try:
            yield inbox
        finally:
            inbox.close()


def _spawn(processes: list[Any], workers: int, host: str, port: int) -> None:
    """Start the workers, each of which is among `processes` as soon as it runs."""
    context = forkserver_context(preload="fa.training.transports.rpc.worker")
    for rank in range(workers):
        process = context.Process(target=_work, args=(rank, host, port), name=f"fa-{rank}", daemon=True)
        process.start()
        processes.append(process)


def _watch(processes: list[Any], lose: Callable[[int, str], None]) -> None:
    left = {process.sentinel: rank for rank, process in enumerate(processes)}
    while left:
        for sentinel in wait(list(left)):
            rank = left.pop(sentinel)
            lose(rank, "its process has ended")


def _work(rank: int, host: str, port: int) -> None:
    """In the child."""
    exit_when_parent_dies()
    retain_freed_memory()
    import torch

    from fa.training.transports.rpc.worker import work

    torch.set_num_threads(1)
    try:
        work(rank, host, port)
    except ConnectionError as error:
        print(f"worker {rank}: {error}", file=sys.stderr)
        os._exit(1)
