"""The worker's end of a connection: a blocking socket, whose server must not be silent for longer than a timeout."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fa.training.transports.tcp import keys as certificates
from fa.training.transports.tcp.messages import (
    HEADER_SIZE,
    MAX_CONFIG,
    MAX_TEXT,
    NO_RUN,
    Header,
    Kind,
    ProtocolError,
    decode,
)
from fa.utils.addresses import format_address, is_loopback, same_user
from fa.utils.validation import check

TIMEOUT = 60.0
"""Seconds of silence after which a worker gives its server up, and for which it waits for one to start."""

LEAST_SILENCE = 10.0
"""Least seconds of silence after which it gives up: twice the time between two heartbeats of the server."""

_CHUNK = 1 << 20  # bytes sent at a time, each within the timeout
_RETRY = 0.2  # seconds between two attempts to connect


class Refused(ValueError):
    """Error for a worker that the server refuses, with the server's reason."""


class Link:
    """A connection to the server of a run."""

    def __init__(self, connection: socket.socket, rank: int) -> None:
        self._connection = connection
        self._rank = rank
        self.run_id = NO_RUN  # until the server has sent it

    def greet(self, hello: bytes) -> bytes:
        """Send the first message, and return the configuration with which the server answers.

        Args:
            hello: Bytes of the first message.

        Returns:
            The configuration as JSON.

        Raises:
            ConnectionError: The server is gone, silent, or sends another message.
            Refused: The server refuses the worker.
        """
        self.send(Header(Kind.HELLO, NO_RUN), [hello])
        header = self.receive(Kind.WELCOME)
        if header.length > MAX_CONFIG:
            raise ProtocolError(f"the server announced {header.length} bytes of configuration")
        configuration = bytes(self.read(header.length))
        self.run_id = header.run_id
        return configuration

    def refuse(self, reason: str) -> None:
        """Send the reason for which this worker does not take part.

        Args:
            reason: The reason.
        """
        with suppress(ConnectionError):
            self.send(Header(Kind.REFUSE, self.run_id), [reason.encode()[:MAX_TEXT]])

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def send(self, header: Header, views: Sequence[bytes | memoryview] = ()) -> None:
        """Send a message, whose rank, run and length are filled in.

        Args:
            header: Header of the message.
            views: The bytes that follow it.

        Raises:
            ConnectionError: The server is gone, or reads nothing for the timeout.
        """
        length = sum(map(len, views))
        with _translated():
            self._connection.sendall(header._replace(rank=self._rank, run_id=self.run_id, length=length).pack())
            for data in views:
                view = memoryview(data)
                for start in range(0, len(view), _CHUNK):
                    self._connection.sendall(view[start : start + _CHUNK])

    def receive(self, *expected: Kind) -> Header:
        """Return the header of the next message other than a PING; the caller reads the bytes that follow.

        Args:
            *expected: Kinds that may follow now.

        Raises:
            ConnectionError: The server is gone, silent, or sends another message.
            Refused: The server refuses the worker.
        """
        while True:
            header = Header.unpack(self.read(HEADER_SIZE))
            if header.kind is Kind.REFUSE and header.length <= MAX_TEXT:
                raise Refused(f"the server refuses worker {self._rank}: {decode(self.read(header.length))}")
            if header.kind is Kind.PING and header.length == 0:
                continue
            if header.kind not in expected or self.run_id not in (NO_RUN, header.run_id):
                raise ProtocolError(f"the server sent an unexpected message, {header.kind.name}")
            return header

    def read(self, length: int) -> bytearray:
        """Return that many bytes; the caller has checked the number.

        Args:
            length: Number of bytes.

        Returns:
            The bytes.

        Raises:
            ConnectionError: The server is gone or silent.
        """
        data = bytearray(length)
        self.read_into([memoryview(data)])
        return data

    def read_into(self, views: Sequence[memoryview]) -> None:
        """Fill the views with the next bytes.

        Args:
            views: Memory of the bytes, which is filled in this order.

        Raises:
            ConnectionError: The server is gone or silent.
        """
        with _translated():
            for view in views:
                while len(view):
                    count = self._connection.recv_into(view)
                    if count == 0:
                        raise ConnectionError("it has closed the connection")
                    view = view[count:]


@contextmanager
def _translated() -> Iterator[None]:
    """Raise a ConnectionError of one line for every failure of a socket."""
    try:
        yield
    except TimeoutError:
        raise ConnectionError("the server has been silent for too long") from None
    except OSError as error:
        raise ConnectionError(f"the server is gone: {error}") from error


def connect(host: str, port: int, rank: int, keys: Path | None, hello: bytes, timeout: float) -> tuple[Link, bytes]:
    """Connect to a server, which may start later.

    Args:
        host: Host of the server.
        port: Its port.
        rank: Rank of the worker, from 0.
        keys: Folder of the worker's keys; None for a server on loopback.
        hello: Bytes of the first message.
        timeout: Seconds to wait for a server, and, if more than `LEAST_SILENCE`, for any message.

    Returns:
        The link, and the bytes of the server's answer, which is its configuration.

    Raises:
        ConnectionError: No server answers.
        ValueError: The keys are missing, or the server refuses the worker.
    """
    address = format_address(host, port)
    safe = keys is not None or is_loopback(host)
    check("keys", keys, safe, f"a folder with the server at {address}", "`fa keys DIR` writes keys.")
    context = None if keys is None else certificates.worker_context(keys)
    end, reason = time.monotonic() + timeout, ""
    while (left := end - time.monotonic()) > 0:
        try:
            connection = _open(host, port, context, left)
        except _TRANSIENT as error:
            reason = str(error)
        else:
            link = Link(connection, rank)
            try:
                welcome = link.greet(hello)
                if context is None:
                    # Some kernels show root as the user at the other end of a connection that is not yet accepted.
                    _check_user(connection, address)
                connection.settimeout(max(timeout, LEAST_SILENCE))
                return link, welcome
            except ValueError:
                link.close()
                raise
            except ConnectionError as error:
                link.close()
                reason = str(error)
        time.sleep(_RETRY)
    cure = "" if keys is not None else ". A server with keys needs a worker with --keys."
    raise ConnectionError(f"no server answers at {address}, after {timeout:g} s: {reason}{cure}")


_TRANSIENT = (ssl.SSLEOFError, ConnectionError, TimeoutError)
"""Failures to connect after which a further attempt may succeed."""


def _open(host: str, port: int, context: ssl.SSLContext | None, timeout: float) -> socket.socket:
    """Open one connection, which no other user of this host serves.

    Raises:
        ValueError: The other end has other keys, or belongs to another user.
        OSError: There is no connection.
    """
    try:
        connection = socket.create_connection((host, port), timeout)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise ConnectionError(f"{error.strerror}: {host}") from error
        raise ValueError(f"server must be a host that is known here, got {host!r}") from error
    except OSError as error:  # such as no route
        raise ConnectionError(error.strerror or str(error)) from error
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            return context.wrap_socket(connection, server_hostname=certificates.SERVER_NAME)
        _check_user(connection, format_address(host, port))
    except _TRANSIENT:
        connection.close()
        raise
    except ssl.SSLError as error:
        connection.close()
        if error.reason == "WRONG_VERSION_NUMBER":
            raise ValueError(f"keys must be omitted for a server without keys, got {error}") from error
        raise ValueError(f"keys must be those of the server's run, got {error}") from error
    except OSError as error:
        connection.close()
        raise ConnectionError(error.strerror or str(error)) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _check_user(connection: socket.socket, address: str) -> None:
    """Raise ValueError if the server belongs to another user of this host, and ConnectionError if it has gone."""
    if not same_user(connection):
        raise ValueError(f"server must belong to this user, got another at {address}")
