"""Gradients in datagrams that nobody sends again: what is lost stays zero, or as it was before."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress

import torch
from torch import Tensor

from fa.attacks import CHUNK

_HEADER = struct.Struct("!III")  # worker, iteration, chunk
_BURST = 16  # datagrams between two pauses, so that buffers do not overflow
_PAUSE = 0.001  # s
_BUFFER = 1 << 22  # bytes
_FORCE_RECEIVE_BUFFER = 33  # SO_RCVBUFFORCE, which Python does not name


def send(sender: socket.socket, address: tuple[str, int], worker: int, iteration: int, gradient: Tensor) -> None:
    """Send a gradient (n,) float32 in datagrams of CHUNK coordinates, at most 23 MB/s; no answer is awaited."""
    for index, chunk in enumerate(gradient.split(CHUNK)):
        sender.sendto(_HEADER.pack(worker, iteration, index) + chunk.numpy().tobytes(), address)
        if index % _BURST == _BURST - 1:
            time.sleep(_PAUSE)


class Inbox:
    """Receives the datagrams of all workers on a bound socket, in a thread of its own, until it is closed.

    A gradient begins with zeros; with `previous`, with what it was in the iteration before. Datagrams of an iteration
    older than the newest of its worker, or of a shape that no chunk has, are thrown away.
    """

    def __init__(self, receiver: socket.socket, workers: int, n: int, previous: bool = False) -> None:
        with suppress(PermissionError):
            receiver.setsockopt(socket.SOL_SOCKET, _FORCE_RECEIVE_BUFFER, _BUFFER)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        receiver.settimeout(0.1)
        self._receiver = receiver
        self._previous = previous
        self._rows = torch.zeros(workers, n)
        self._here = torch.zeros(workers, -(-n // CHUNK), dtype=torch.bool)
        self._iterations = [-1] * workers
        self._heard = 0.0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def take(self, worker: int, iteration: int, row: Tensor, settle: float = 0.1) -> int:
        """Write into `row` (n,) what came of that worker's gradient; return how many chunks were lost.

        To be called when the worker has sent it. A chunk is lost once no datagram has come for `settle` seconds.
        """
        started = time.monotonic()
        while True:
            with self._lock:
                whole = self._iterations[worker] == iteration and bool(self._here[worker].all())
                if whole or time.monotonic() - max(self._heard, started) > settle:
                    self._begin(worker, iteration)  # where all was lost
                    row.copy_(self._rows[worker])
                    return int((~self._here[worker]).sum())
            time.sleep(0.001)

    def close(self) -> None:
        """Stop receiving, and close the socket."""
        self._closing.set()
        self._thread.join()
        self._receiver.close()

    def _receive(self) -> None:
        while not self._closing.is_set():
            with suppress(TimeoutError):
                datagram = self._receiver.recv(2048)
                with self._lock:
                    self._heard = time.monotonic()
                    self._keep(datagram)

    def _keep(self, datagram: bytes) -> None:
        if len(datagram) <= _HEADER.size or (len(datagram) - _HEADER.size) % 4:
            return
        worker, iteration, index = _HEADER.unpack_from(datagram)
        if worker >= len(self._rows) or index >= self._here.shape[1] or iteration < self._iterations[worker]:
            return
        place = self._rows[worker, index * CHUNK : (index + 1) * CHUNK]
        if len(datagram) == _HEADER.size + 4 * len(place):
            self._begin(worker, iteration)
            place.copy_(torch.frombuffer(bytearray(datagram), dtype=torch.float32, offset=_HEADER.size))
            self._here[worker, index] = True

    def _begin(self, worker: int, iteration: int) -> None:
        if iteration > self._iterations[worker]:
            self._iterations[worker] = iteration
            self._here[worker] = False
            if not self._previous:
                self._rows[worker] = 0
