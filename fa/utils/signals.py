"""Signals that end a process: held back until its state is saved, or raised as KeyboardInterrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that end a process unless it handles them: Ctrl-C, `kill`, and a closed terminal."""


@contextmanager
def raised_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt(signal) for every signal of `ENDING`, so that open files and processes are closed."""

    def interrupt(signum: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt(signum)

    previous = _handle(interrupt)
    try:
        yield
    finally:
        _restore(previous)


@contextmanager
def held_back(enabled: bool = True) -> Iterator[Callable[[], bool]]:
    """Hold back the first signal of `ENDING` until the block ends, and then act on it; a second one acts at once.

    Args:
        enabled: False to let signals act as usual.

    Yields:
        A function that returns True if a signal is held back.
    """
    pending: list[int] = []

    def note(signum: int, _: FrameType | None) -> None:
        pending.append(signum)
        _restore(previous)

    previous = _handle(note) if enabled else {}
    try:
        yield lambda: bool(pending)
    finally:
        _restore(previous)
    if pending:
        signal.raise_signal(pending[0])


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Set a handler for the signals that are not ignored, and return the former ones; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    former = {signum: signal.getsignal(signum) for signum in ENDING}
    return {
        signum: signal.signal(signum, handler) for signum, was in former.items() if was not in (signal.SIG_IGN, None)
    }


def _restore(previous: dict[int, Any]) -> None:
    for signum, handler in previous.items():
        signal.signal(signum, handler)
