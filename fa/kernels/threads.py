"""A few Python threads for compiled loops, which release the GIL."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch

_SERIAL = 1 << 19  # Number of entries below which one thread is faster than several.


def run_on_threads(work: Callable[[int, int], Any], size: int) -> list[Any]:
    """Call work(t, T) once for each t = 0 .. T - 1, on T threads, or on fewer if no more can start.

    Args:
        work: Function that releases the GIL.
        size: Number of entries that it reads; T = 1 if they are few.

    Returns:
        The results, in the order of t.
    """
    threads = 1 if size < _SERIAL else torch.get_num_threads()
    if threads == 1:
        return [work(0, 1)]
    results: list[Any] = [None] * threads
    shares = deque(range(threads))  # Every thread takes shares until none is left, so that each is done once.

    def take_shares() -> None:
        while True:
            try:
                t = shares.popleft()
            except IndexError:
                return
            results[t] = work(t, threads)

    others: list[Future[None]] = []
    with ThreadPoolExecutor(threads - 1) as pool:
        with suppress(RuntimeError):  # No further thread can start: the limit is reached, or the interpreter exits.
            for _ in range(threads - 1):
                others.append(pool.submit(take_shares))
        take_shares()
        for other in others:
            other.result()
    return results
