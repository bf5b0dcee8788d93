"""Worker processes of this machine, from a fork server that has imported torch; none outlives the server."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from fa.utils.forkserver import exit_when_parent_dies, forkserver_context, without_main_module
from fa.utils.malloc import retain_freed_memory

_EXIT_TIMEOUT = 5.0  # seconds for all workers together


@contextmanager
def spawn_workers(
    workers: int,
    work: Callable[..., None],
    arguments: Callable[[int], tuple[Any, ...]],
    on_exit: Callable[[int, str], None],
) -> Iterator[None]:
    """Run worker processes while the context lasts.

    Args:
        workers: Number of processes.
        work: Function that each process calls; the fork server imports its module for all of them.
        arguments: Returns the arguments of `work` for a rank.
        on_exit: Called in another thread with the rank and a reason when a process ends.
    """
    processes: list[Any] = []
    watcher = threading.Thread(target=_watch, args=(processes, on_exit), daemon=True)
    try:
        for rank in range(workers):
            context = forkserver_context(work.__module__)
            process = context.Process(target=_run, args=(rank, work, arguments(rank)), name=f"fa-{rank}", daemon=True)
            with without_main_module():
                process.start()
            processes.append(process)  # one after another, so that all are killed if a later start fails
        watcher.start()
        yield
        deadline = time.monotonic() + _EXIT_TIMEOUT
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        if watcher.ident is not None:
            watcher.join()


def _watch(processes: list[Any], on_exit: Callable[[int, str], None]) -> None:
    """Report every process that ends."""
    ranks = {process.sentinel: rank for rank, process in enumerate(processes)}
    while ranks:
        for sentinel in wait(list(ranks)):
            on_exit(ranks.pop(sentinel), "its process has ended")


def _run(rank: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Run one worker in the child process."""
    exit_when_parent_dies()
    retain_freed_memory()
    import torch

    torch.set_num_threads(1)
    try:
        work(*arguments)
    except (ConnectionError, ValueError) as error:
        print(f"worker {rank}: {error}", file=sys.stderr)
        os._exit(1)
