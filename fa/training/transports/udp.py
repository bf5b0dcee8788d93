"""Gradients in datagrams without retransmission: lost coordinates are zero, or keep their previous values.

A datagram is a header of three 32-bit integers (worker, iteration, chunk), CHUNK coordinates as float32, and a keyed
checksum of both. The key belongs to one rank of one run, so that no one else's datagram changes a gradient.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
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
_TAG = 16  # bytes of the checksum, BLAKE2b: with the headers of UDP and IPv4, 1496 bytes of Ethernet's 1500
_SLOT = _HEADER.size + 4 * CHUNK + _TAG + 4  # bytes of a datagram, and 4 more that reveal a longer one
KEY_SIZE = 32
_BATCH = 256  # datagrams read at a time
_BUFFER = 1 << 25  # bytes of the system's receive buffer; without privileges it may be smaller
_FORCE_RECEIVE_BUFFER = 33  # SO_RCVBUFFORCE, missing in Python's socket module
_SETTLE = 0.1  # seconds of silence after which missing datagrams count as lost
_RATE = 32e6  # bytes/s of all workers together, which a busy server can still read
_BURST = 16  # datagrams between two pauses


def create_sender(host: str, port: int) -> socket.socket:
    """Create a socket for `send`.

    Args:
        host: Host of the server.
        port: Port of its inbox.

    Returns:
        A connected socket.

    Raises:
        OSError: The host is unknown.
    """
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    sender = socket.socket(family, kind)
    sender.connect(address)
    return sender


def send(
    sender: socket.socket, worker: int, iteration: int, gradient: Tensor, key: bytes = b"", workers: int = 1
) -> None:
    """Send a gradient in datagrams, without waiting for an answer.

    Args:
        sender: A UDP socket that is connected to the inbox.
        worker: Rank of the worker.
        iteration: Iteration of the gradient.
        gradient: The gradient (n,), float32.
        key: Key of the rank.
        workers: Number of workers that share the server, and so its rate.

    Raises:
        OSError: The network cannot be reached.
    """
    pause = _BURST * _SLOT * workers / _RATE
    for index, chunk in enumerate(gradient.split(CHUNK)):
        if index and index % _BURST == 0:
            time.sleep(pause)
        data = _HEADER.pack(worker, iteration, index) + chunk.numpy().tobytes()
        with suppress(ConnectionRefusedError):  # the answer to an earlier datagram: the server has ended
            sender.send(data + _checksum(data, key))


def _checksum(data: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(data, key=key, digest_size=_TAG).digest()


class Inbox:
    """Receives the datagrams of all workers in a thread, until it is closed.

    Attributes:
        port: Port of the socket.
        chunks: Number of datagrams of a gradient.
        keys: Key of each rank, for `send`.
        discarded: Number of datagrams that changed nothing: forged, repeated, late, or of a wrong length.
    """

    def __init__(self, receiver: socket.socket, workers: int, n: int, previous: bool = False) -> None:
        """Start receiving.

        Args:
            receiver: A bound UDP socket, which `close` closes.
            workers: Number of workers p.
            n: Number of coordinates.
            previous: True to fill lost coordinates with the last received values; False for zeros.
        """
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        with suppress(OSError):  # beyond the system's limit, which needs privileges and Linux
            receiver.setsockopt(socket.SOL_SOCKET, _FORCE_RECEIVE_BUFFER, _BUFFER)
        receiver.setblocking(False)
        self.port: int = receiver.getsockname()[1]
        self.chunks = -(-n // CHUNK)
        self.keys = [secrets.token_bytes(KEY_SIZE) for _ in range(workers)]
        self.discarded = 0
        self._receiver = receiver
        self._n = n
        self._previous = previous
        self._rows = np.zeros((workers, self.chunks, CHUNK), dtype=np.float32)
        self._received = np.zeros((workers, self.chunks), dtype=bool)
        self._iteration = -1
        self._silences = 0  # number of periods of _SETTLE seconds without a new datagram
        self._failure: OSError | ValueError | None = None  # that ended the thread
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def begin(self, iteration: int) -> None:
        """Accept the datagrams of this iteration only.

        Args:
            iteration: Iteration, from 0.
        """
        with self._changed:
            self._iteration = iteration
            self._received[:] = False

    def collect(self, workers: Collection[int], G: Tensor, until: float = math.inf) -> dict[int, int]:
        """Copy received gradients into their rows of G; call it once the workers have sent them.

        Datagrams that are still missing after a silence, or at the deadline, count as lost.

        Args:
            workers: Ranks of the workers.
            G: Matrix (p, n), whose other rows are unchanged.
            until: Deadline, by `time.monotonic`. A silence after the call is waited for in any case.

        Returns:
            Number of lost chunks by rank, for ranks with losses.

        Raises:
            OSError: The socket failed.
        """
        rows = list(workers)
        with self._changed:
            before = self._silences
            # The first silence may have begun before the call; the second one is complete.
            self._changed.wait_for(
                lambda: self._failure is not None or self._received[rows].all() or self._silences >= before + 2,
                timeout=min(max(until - time.monotonic(), 2 * _SETTLE), threading.TIMEOUT_MAX),
            )
            if self._failure is not None:
                raise OSError(f"datagrams cannot be received: {self._failure}") from self._failure
            for worker in rows:
                if not self._previous:
                    self._rows[worker, ~self._received[worker]] = 0
                G[worker].copy_(torch.from_numpy(self._rows[worker].reshape(-1)[: self._n]))
            lost = {worker: int((~self._received[worker]).sum()) for worker in rows}
        return {worker: count for worker, count in lost.items() if count}

    def close(self) -> None:
        """Stop receiving, and close the socket."""
        self._closing.set()
        self._thread.join()
        self._receiver.close()

    def _run(self) -> None:
        try:
            self._receive()
        except (OSError, ValueError) as failure:  # select raises the second for a closed socket
            with self._changed:
                self._failure = failure
                self._changed.notify_all()

    def _receive(self) -> None:
        slots = np.zeros((_BATCH, _SLOT), dtype=np.uint8)
        last = time.monotonic()
        while not self._closing.is_set():
            select.select([self._receiver], [], [], _SETTLE)
            lengths = self._read(slots)
            with self._changed:
                if self._store(slots[: len(lengths)], np.array(lengths)):
                    last = time.monotonic()
                elif time.monotonic() - last >= _SETTLE:
                    last = time.monotonic()
                    self._silences += 1
                self._changed.notify_all()

    def _read(self, slots: np.ndarray) -> list[int]:
        """Read waiting datagrams into the slots, and return their lengths."""
        lengths = []
        with suppress(BlockingIOError):
            for slot in slots:
                lengths.append(self._receiver.recv_into(slot))
        return lengths

    def _store(self, slots: np.ndarray, lengths: np.ndarray) -> bool:
        """Copy valid chunks to their places; returns True if one of them is new."""
        if not len(slots):
            return False
        worker, iteration, index = slots[:, : _HEADER.size].view(">u4").astype(np.int64).T
        coordinates = np.minimum(CHUNK, self._n - index * CHUNK)  # the last chunk is shorter
        valid = (worker < len(self._received)) & (index < self.chunks) & (iteration == self._iteration)
        valid &= lengths == _HEADER.size + 4 * coordinates + _TAG
        stored = 0
        for k in np.flatnonzero(valid):
            place, datagram = (worker[k], index[k]), slots[k, : lengths[k]]
            if not self._received[place] and self._is_authentic(datagram.tobytes(), int(worker[k])):
                data = datagram[_HEADER.size : -_TAG].view(np.float32)
                self._rows[*place, : len(data)] = data
                self._received[place] = True
                stored += 1
        self.discarded += len(slots) - stored
        return stored > 0

    def _is_authentic(self, datagram: bytes, worker: int) -> bool:
        return hmac.compare_digest(datagram[-_TAG:], _checksum(datagram[:-_TAG], self.keys[worker]))
