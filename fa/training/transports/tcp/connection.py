"""The server's end of one connection: frames of messages, read directly into their places in memory.

All methods run in the event loop's thread. A failure ends this connection, and raises nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from fa.training.transports.tcp.messages import HEADER_SIZE, MAX_TEXT, Header, Kind, ProtocolError

_CHUNK = 1 << 20  # bytes written at a time; larger ones are copied by asyncio
_DISCARDED = memoryview(bytearray(1 << 18))  # for bytes that are read and ignored


@runtime_checkable
class Handler(Protocol):
    """Server of connections."""

    run_id: bytes

    def place(self, connection: Connection, header: Header) -> list[memoryview] | None:
        """Check a header, and choose the memory for the bytes that follow.

        Args:
            connection: Connection of the message.
            header: Its header.

        Returns:
            Views whose total length is `header.length`, in order; None to ignore the bytes.

        Raises:
            ProtocolError: The message is not expected.
        """
        ...

    def receive(self, connection: Connection, header: Header, kept: bool) -> None:
        """Process a message whose bytes have arrived, and are in their place if `kept`.

        Args:
            connection: Connection of the message.
            header: Its header.
            kept: False if its bytes were ignored.

        Raises:
            ProtocolError: The message is not valid.
        """
        ...

    def linger(self, connection: Connection) -> None:
        """Process a connection that ends once its last message is sent and the other end agrees.

        Args:
            connection: The connection.
        """
        ...

    def close(self, connection: Connection) -> None:
        """Process the end of a connection.

        Args:
            connection: The connection, which has its `reason`.
        """
        ...


class Connection(asyncio.BufferedProtocol):
    """Reads messages, and passes them to a handler.

    Attributes:
        rank: Rank of the worker, once it has authenticated itself; otherwise None.
        joined: True once the worker takes part in rounds.
        assigned: Iteration whose gradient is expected next; None if no message is.
        data: Bytes of a message that is not a gradient.
        sending: True while a long message is being sent, or is about to be.
        greeted: Completed once the worker has authenticated itself, or the connection has ended.
        reason: Why the connection has ended.
    """

    def __init__(self, handler: Handler) -> None:
        self.rank: int | None = None
        self.joined = False
        self.assigned: int | None = None
        self.sending = False
        self.data = bytearray()
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.reason = "its connection has ended"
        self._handler = handler
        self._transport: Any = None
        self._head = memoryview(bytearray(HEADER_SIZE))
        self._filled = 0  # bytes of the header
        self._header: Header | None = None  # of the message whose bytes arrive
        self._left = 0  # bytes of it that are missing
        self._views: list[memoryview] | None = None  # places for them; None to ignore them
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed = False

    def peer(self, name: str) -> Any:
        """Return information about the other end.

        Args:
            name: Name of the information for `asyncio.BaseTransport.get_extra_info`, such as "peercert" or "socket".

        Returns:
            The information, or None if the transport has none of this name.
        """
        return self._transport.get_extra_info(name)

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport of the new connection."""
        self._transport = transport
        self._transport.set_write_buffer_limits(high=_CHUNK)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the connection, and report its end to the handler."""
        self._end()
        self._handler.close(self)

    def pause_writing(self) -> None:
        """Let writers wait."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let writers continue."""
        self._writable.set()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the memory for the next bytes: the header, the message's place, or memory whose content is ignored."""
        if self._closed:
            return _DISCARDED
        if self._header is None:
            return self._head[self._filled :]
        return _DISCARDED[: self._left] if self._views is None else self._views[0]

    def buffer_updated(self, nbytes: int) -> None:
        """Process bytes that have arrived in that memory; end the connection if they violate the protocol."""
        if self._closed:
            return
        try:
            self._advance(nbytes)
        except ProtocolError as error:
            self.fail(str(error))

    # Reading.

    def _advance(self, count: int) -> None:
        if self._header is None:
            self._filled += count
            if self._filled == HEADER_SIZE:
                self._begin(Header.unpack(self._head))
        else:
            self._left -= count
            if self._views is not None:
                self._views[0] = self._views[0][count:]
                if not self._views[0]:
                    self._views.pop(0)
        if self._header is not None and self._left == 0:
            header, self._header = self._header, None
            self._handler.receive(self, header, self._views is not None)

    def _begin(self, header: Header) -> None:
        """Begin to receive the bytes of a message."""
        self._views = self._handler.place(self, header)
        self._filled, self._header, self._left = 0, header, header.length

    def ignore_gradient(self) -> None:
        """Ignore the rest of a gradient that arrives at present, and write to its place no longer."""
        if self._header is not None and self._header.kind is Kind.GRADIENT:
            self._views = None

    # Writing.

    async def send(self, header: Header, views: Sequence[memoryview]) -> None:
        """Send a message in chunks, as fast as the other end reads them; returns early if the connection ends.

        Args:
            header: Header of the message, with its length.
            views: The bytes that follow it.
        """
        self.sending = True
        self._transport.write(header.pack())
        for view in views:
            for start in range(0, len(view), _CHUNK):
                await self._writable.wait()
                if self._closed:
                    return
                self._transport.write(view[start : start + _CHUNK])
        self.sending = False

    def post(self, header: Header, data: bytes = b"") -> None:
        """Send a short message, unless a long one is being sent.

        Args:
            header: Header of the message, without its length.
            data: The bytes that follow it.
        """
        if not self._closed and not self.sending:
            self._transport.write(header._replace(length=len(data)).pack() + data)

    def finish(self, header: Header, data: bytes = b"") -> None:
        """Send a last short message, and end the connection once it has been sent.

        Args:
            header: As for `post`.
            data: As for `post`.
        """
        if self._closed:
            return
        if self.sending:
            self._transport.abort()
        else:
            self.post(header, data)
            self._transport.close()
            self._handler.linger(self)
        self._end()

    def fail(self, reason: str) -> None:
        """End the connection, and send the reason to the other end.

        Args:
            reason: The reason, also for the records.
        """
        self.reason = reason
        self.finish(Header(Kind.REFUSE, self._handler.run_id), reason.encode()[:MAX_TEXT])

    def abort(self) -> None:
        """End the connection at once."""
        self._end()
        if self._transport is not None:
            self._transport.abort()

    def _end(self) -> None:
        """Stop reading and writing."""
        self._closed, self._views = True, None
        self._writable.set()
        if not self.greeted.done():
            self.greeted.set_result(None)
