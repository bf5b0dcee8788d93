"""Gradients in datagrams that nobody sends again: what is lost is zero, or as it was before.

A datagram is a header of three 32-bit numbers (worker, iteration, chunk) and CHUNK coordinates as float32.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Collection
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from fa.attacks import CHUNK

_HEADER = struct.Struct("!III")
_SLOT = _HEADER.size + 4 * CHUNK + 4  # bytes: a datagram that is longer than ours shows as such
_BATCH = 256  # datagrams that are looked at together
_BUFFER = 1 << 25  # bytes that the system is asked to hold until they are read; without privileges it may hold less
_FORCE_RECEIVE_BUFFER = 33  # SO_RCVBUFFORCE, which Python does not name
_SETTLE = 0.1  # seconds without anything new after which what has not come is lost
_RATE = 32e6  # bytes/s of all workers together: more than that a busy server may be too slow to read
_BURST = 16  # datagrams between two pauses


def send(
    sender: socket.socket, address: tuple[str, int], worker: int, iteration: int, gradient: Tensor, workers: int = 1
) -> None:
    """Send a gradient (n,) float32 in datagrams, as one of so many workers that share the server; no answer is awaited.

    Raises OSError where the network cannot be reached.
    """
    pause = _BURST * _SLOT * workers / _RATE
    for index, chunk in enumerate(gradient.split(CHUNK)):
        if index and index % _BURST == 0:
            time.sleep(pause)
        sender.sendmsg([_HEADER.pack(worker, iteration, index), chunk.numpy().data], [], 0, address)


class Inbox:
    """Receives the datagrams of all workers on a bound socket, in a thread of its own, until it is closed.

    What is lost is zero; with `previous`, what last came there (at first zero). Thrown away are datagrams of another
    iteration than the present one, and of a shape that no chunk has.
    """

    def __init__(self, receiver: socket.socket, workers: int, n: int, previous: bool = False) -> None:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)  # as much of it as anybody may have
        with suppress(OSError):  # where that is allowed, and known
            receiver.setsockopt(socket.SOL_SOCKET, _FORCE_RECEIVE_BUFFER, _BUFFER)
        receiver.setblocking(False)
        self.port: int = receiver.getsockname()[1]
        self.chunks = -(-n // CHUNK)
        self._receiver = receiver
        self._n = n
        self._previous = previous
        self._rows = np.zeros((workers, self.chunks, CHUNK), dtype=np.float32)
        self._here = np.zeros((workers, self.chunks), dtype=bool)
        self._iteration = -1
        self._silences = 0  # how often nothing new has come for _SETTLE seconds
        self._failure: OSError | ValueError | None = None  # of the thread, which has ended then
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._receive_or_tell, daemon=True)
        self._thread.start()

    def begin(self, iteration: int) -> None:
        """From now on take the datagrams of that iteration, and of no other."""
        with self._changed:
            self._iteration = iteration
            self._here[:] = False

    def collect(self, workers: Collection[int], G: Tensor) -> dict[int, int]:
        """Write into those rows of G (p, n) what came of their gradients; how many chunks each has lost, if any.

        To be called once they have sent them.
        """
        rows = list(workers)
        with self._changed:
            before = self._silences
            # The first silence may have begun before the call: the second is a whole one.
            self._changed.wait_for(
                lambda: self._failure is not None or self._here[rows].all() or self._silences >= before + 2
            )
            if self._failure is not None:
                raise OSError(f"datagrams cannot be received: {self._failure}") from self._failure
            for worker in rows:
                if not self._previous:
                    self._rows[worker, ~self._here[worker]] = 0
                G[worker].copy_(torch.from_numpy(self._rows[worker].reshape(-1)[: self._n]))
            lost = {worker: int((~self._here[worker]).sum()) for worker in rows}
        return {worker: count for worker, count in lost.items() if count}

    def close(self) -> None:
        """Stop receiving, and close the socket."""
        self._closing.set()
        self._thread.join()
        self._receiver.close()

    def _receive_or_tell(self) -> None:
        try:
            self._receive()
        except (OSError, ValueError) as failure:  # the second of select, for a socket that it cannot wait for
            with self._changed:
                self._failure = failure
                self._changed.notify_all()

    def _receive(self) -> None:
        slots = np.zeros((_BATCH, _SLOT), dtype=np.uint8)
        heard = time.monotonic()
        while not self._closing.is_set():
            select.select([self._receiver], [], [], _SETTLE)
            lengths = self._read(slots)
            with self._changed:
                if self._keep(slots[: len(lengths)], np.array(lengths)):
                    heard = time.monotonic()
                elif time.monotonic() - heard >= _SETTLE:
                    heard = time.monotonic()
                    self._silences += 1
                self._changed.notify_all()

    def _read(self, slots: np.ndarray) -> list[int]:
        """Fill the slots with the datagrams that are there; their lengths."""
        lengths = []
        with suppress(BlockingIOError):
            for slot in slots:
                lengths.append(self._receiver.recv_into(slot))
        return lengths

    def _keep(self, slots: np.ndarray, lengths: np.ndarray) -> bool:
        """Put the chunks where they belong; whether any of them is new."""
        if not len(slots):
            return False
        worker, iteration, index = slots[:, : _HEADER.size].view(">u4").astype(np.int64).T
        coordinates = np.minimum(CHUNK, self._n - index * CHUNK)  # the last chunk is shorter
        ours = (worker < len(self._here)) & (index < self.chunks) & (iteration == self._iteration)
        ours &= lengths == _HEADER.size + 4 * coordinates
        if not ours.any():
            return False
        places = worker[ours], index[ours]
        new = not self._here[places].all()
        self._rows[places] = slots[ours, _HEADER.size : -4].copy().view(np.float32)
        self._here[places] = True
        return bool(new)
