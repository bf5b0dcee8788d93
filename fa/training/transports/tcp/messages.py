"""Messages between server and worker: a header of fixed size, and the number of raw bytes that it announces.

The kinds::

    kind     sender  n            bytes
    HELLO    worker  0            the run's token, then the release
    WELCOME  server  0            the configuration as JSON
    JOIN     worker  coordinates  digest of the configuration, then the data's checksum
    WORK     server  coordinates  parameters, then the state of the rank if the process is new
    GRADIENT worker  coordinates  gradient, then batch-norm statistics; the header has loss and seconds
    PING     server  0            none; the server is alive
    END      server  0            none; the run is over
    REFUSE   both    0            the reason, as text
"""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from torch import Tensor

from fa.utils.validation import printable

MAGIC = b"FLAG"
VERSION = 1
"""Version of the protocol. Both ends must have the same one."""

TOKEN_SIZE = 32
RUN_SIZE = 16
NO_RUN = bytes(RUN_SIZE)
"""The run id in a HELLO, whose sender does not have it yet."""

MAX_TEXT = 1 << 10
"""Bytes of a release, a checksum or a reason."""

MAX_CONFIG = 1 << 20
"""Bytes of a configuration."""

FLOAT32 = 1 if sys.byteorder == "little" else 2
"""Code of the coordinates' dtype, float32 in this machine's byte order."""

_FORMAT = struct.Struct("!4sHBB16siqQQdd")
HEADER_SIZE = _FORMAT.size


class Kind(IntEnum):
    """Kind of a message."""

    HELLO = 1
    WELCOME = 2
    JOIN = 3
    WORK = 4
    GRADIENT = 5
    PING = 6
    END = 7
    REFUSE = 8


class ProtocolError(ConnectionError):
    """Error for a message that is not one of the protocol, or not one that is expected."""


class Header(NamedTuple):
    """Header of a message."""

    kind: Kind
    run_id: bytes
    rank: int = 0  # of the worker
    iteration: int = -1  # of parameters or gradient
    n: int = 0  # number of coordinates
    length: int = 0  # number of bytes that follow
    loss: float = 0.0  # of the gradient's minibatch
    seconds: float = 0.0  # time that the gradient took

    def pack(self) -> bytes:
        """Return the header's bytes."""
        kind, run_id, rank, *rest = self
        return _FORMAT.pack(MAGIC, VERSION, kind, FLOAT32, run_id, rank, *rest)

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> Header:
        """Parse a header.

        Args:
            data: HEADER_SIZE bytes.

        Raises:
            ProtocolError: The bytes are not a header of this protocol, version and dtype.
        """
        magic, version, kind, dtype, run_id, rank, *rest = _FORMAT.unpack(data)
        if magic != MAGIC:
            raise ProtocolError("sent something that is not a message of this protocol")
        if version != VERSION:
            raise ProtocolError(f"uses version {version} of the protocol, not {VERSION}")
        if kind not in Kind.__members__.values():
            raise ProtocolError(f"sent a message of unknown kind {kind}")
        if dtype != FLOAT32:
            raise ProtocolError(f"sent numbers of dtype {dtype}, not {FLOAT32}: float32 in the server's byte order")
        return cls(Kind(kind), run_id, rank, *rest)


class Sizes(NamedTuple):
    """Sizes of a run's messages, which follow from its model."""

    n: int
    """Number of coordinates."""
    statistics: int
    """Bytes of a worker's batch-norm statistics."""
    state: int
    """Bytes of a worker's `Worker.carried`."""

    @property
    def gradient(self) -> int:
        """Bytes of a GRADIENT."""
        return 4 * self.n + self.statistics

    @property
    def work(self) -> tuple[int, int]:
        """Bytes of a WORK without and with a state."""
        return 4 * self.n, 4 * self.n + self.state


def byte_views(tensors: Sequence[Tensor]) -> list[memoryview]:
    """Return the bytes of tensors on the CPU without a copy; empty tensors are omitted.

    Args:
        tensors: Contiguous tensors on the CPU.

    Returns:
        One view for each tensor that is not empty.

    Raises:
        ValueError: A tensor is not contiguous.
    """
    views = []
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise ValueError(f"tensor must be contiguous, got strides {tensor.stride()}")
        if tensor.numel():
            views.append(memoryview(tensor.detach().reshape(-1).numpy().data).cast("B"))
    return views


def size(tensors: Sequence[Tensor]) -> int:
    """Compute the size of tensors in a message.

    Args:
        tensors: Tensors of any shape and dtype.

    Returns:
        The number of bytes of all entries.

    Example:
        >>> import torch
        >>> size([torch.zeros(3), torch.zeros((), dtype=torch.int64)])
        20
    """
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def digest(text: str) -> bytes:
    """Compute the SHA-256 digest of a text.

    Args:
        text: The text, which is hashed as UTF-8.

    Returns:
        The digest, 32 bytes.

    Example:
        >>> digest("").hex()[:16]
        'e3b0c44298fc1c14'
    """
    return hashlib.sha256(text.encode()).digest()


def decode(data: bytes | bytearray | memoryview) -> str:
    """Return a text of a peer, with printable characters only and without line breaks.

    Args:
        data: The text in UTF-8.

    Returns:
        The text.
    """
    return printable(bytes(data).decode(errors="replace"))
