"""Processes from a fork server that has already imported their modules; none outlives the process that started them.

The module uses the private `multiprocessing.forkserver._forkserver._forkserver_alive_fd`. Tested with Python 3.11.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from typing import Any

from fa.utils.validation import check

_PR_SET_PDEATHSIG = 1
_LONGEST = 107 - len("/pymp-12345678/listener-12345678")  # Linux has 107 bytes for a socket's path.


def forkserver_context(preload: str) -> Any:
    """Start the fork server of this process, if needed, and return the context in which to start processes.

    The server and its children ignore Ctrl-C for life. A terminal sends it to the whole group, but the parent decides.

    Args:
        preload: Module that the server imports once, so that its children inherit it.

    Returns:
        The `multiprocessing` context.

    Raises:
        ValueError: The name of the folder of temporary files is too long for sockets in it.
    """
    folder = tempfile.gettempdir()
    cure = "Set it to a folder with a shorter name."
    check("TMPDIR", folder, len(folder.encode()) <= _LONGEST, f"a folder of at most {_LONGEST} bytes", cure)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    resource_tracker.ensure_running()  # It must start first, since it unblocks SIGINT when it starts.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return context


@contextmanager
def without_main_module() -> Iterator[None]:
    """Start processes that do not import the parent's main module, in which nothing is looked up.

    A script without a main guard would otherwise start its work anew in each child, and one from standard input
    cannot be imported at all.
    """
    names = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: names.pop(name) for name in ("__file__", "__spec__") if name in names}
    names["__spec__"] = None
    try:
        yield
    finally:
        names.update(hidden)


def exit_when_parent_dies() -> None:
    """Make this child exit when its parent dies; call it first in the child.

    A running child exits by itself, and a stopped one with the fork server. For that, the child closes its copy of the
    pipe that keeps the fork server alive.
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
