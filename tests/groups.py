"""Real processes in one group, over gloo on loopback."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from fa.utils.forkserver import forkserver_context


def in_processes(work: Callable[[int, int, Path], None], p: int, folder: Path) -> None:
    """Run work(rank, p, folder) in p processes that are one process group; fail where one of them does."""
    context = forkserver_context(
        "fa.training.transports.rpc.worker"
    )  # which has loaded torch, so that the processes need not
    processes = [context.Process(target=_rank, args=(work, rank, p, folder), daemon=True) for rank in range(p)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(240)
        assert [process.exitcode for process in processes] == [0] * p
    finally:
        for process in processes:
            process.kill()


def _rank(work: Callable[[int, int, Path], None], rank: int, p: int, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    where = f"file://{folder / 'group'}"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=p, timeout=timedelta(seconds=120))
    work(rank, p, folder)
    if dist.is_initialized():
        dist.destroy_process_group()
