"""Processes from a fork server that has loaded what they need; none outlives the process that started them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from typing import Any

_PR_SET_PDEATHSIG = 1


def context(preload: str) -> Any:
    """Where to start processes from: a fork server, one in this process, that has the module `preload`.

    Ctrl-C is kept from it and from its children for life: it reaches the whole group, but their parent decides.
    """
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([preload])
    resource_tracker.ensure_running()  # first: when it starts, it lets SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return found


def end_with_parent() -> None:
    """To be called first in a child: it ends with its parent, by itself, or, stopped, with the fork server.

    Every child holds the pipe by which the fork server lives; a stopped one would keep it alive, and so itself.
    """
    alive = forkserver._forkserver._forkserver_alive_fd  # type: ignore[attr-defined]
    os.close(alive)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
