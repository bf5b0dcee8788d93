"""Network addresses: hosts and ports as text, interfaces, and the user at the other end of a local connection."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from fa.utils.validation import check

_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


def parse_address(name: str, text: str) -> tuple[str, int]:
    """Split an address.

    Args:
        name: Name of the argument, for the message.
        text: HOST:PORT, or [HOST]:PORT with an IPv6 address.

    Returns:
        Host and port.

    Raises:
        ValueError: The host is empty or the port is no number below 65536.

    Example:
        >>> parse_address("listen", "[::1]:29500")
        ('::1', 29500)
    """
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    valid = host != "" and port.isascii() and port.isdecimal() and int(port) < 1 << 16
    check(name, text, valid and (bracketed or ":" not in host), "HOST:PORT, or [HOST]:PORT with an IPv6 address")
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """Return HOST:PORT, with brackets around an IPv6 address.

    Args:
        host: Name or address of a host.
        port: Port.
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return True if a host's name or address is one of loopback.

    Args:
        host: Name or address of a host.
    """
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def is_unspecified(host: str) -> bool:
    """Return True for the address of all interfaces, as 0.0.0.0 or ::.

    Args:
        host: Name or address of a host.
    """
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_unspecified
    return False


def create_listener(host: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """Bind a socket at one address of this host, IPv4 or IPv6; a stream's also listens.

    Args:
        host: Name or address of this host.
        port: Port; 0 for any free port.
        kind: SOCK_STREAM or SOCK_DGRAM.

    Returns:
        The socket.

    Raises:
        OSError: The host is unknown, or the port is in use.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=kind)[0]
    except socket.gaierror as error:
        raise OSError(error.errno, f"{error.strerror}: {format_address(host, port)}") from error
    listener = socket.socket(family, kind)
    try:
        if kind is socket.SOCK_STREAM:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        if kind is socket.SOCK_STREAM:
            listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{error.strerror}: {format_address(host, port)}") from error
    return listener


_BACKLOG = 1024  # connections that wait for the server


def interface_towards(host: str) -> str | None:
    """Return the name of this host's network interface that reaches a host; None if it cannot be determined.

    Args:
        host: Name or address of the other host.
    """
    if is_loopback(host):
        return "lo" if sys.platform == "linux" else "lo0"
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        return _interface_of(probe.getsockname()[0], probe)
    return None


def _interface_of(address: str, probe: socket.socket) -> str | None:
    """Return the interface with an IPv4 address."""
    for _, name in socket.if_nameindex():
        with suppress(OSError):  # an interface without IPv4, or a system other than Linux
            reply = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            if socket.inet_ntoa(reply[20:24]) == address:
                return name
    return None


_ESTABLISHED = "01"  # state of a connection in /proc/net/tcp


def same_user(connection: Any) -> bool:
    """Return True if the other end of a loopback connection belongs to this process's user, or to root.

    Linux alone shows that. Elsewhere every user counts as the same.

    Args:
        connection: A connected socket, or asyncio's object for one.

    Raises:
        ConnectionError: The connection has ended.
    """
    table = Path("/proc/net/tcp6" if connection.family == socket.AF_INET6 else "/proc/net/tcp")
    if not table.is_file():
        return True
    try:
        names = connection.getpeername(), connection.getsockname()
    except OSError as error:
        raise ConnectionError("the connection has ended") from error
    ends = [_as_in_table(connection.family, *name[:2]) for name in names]
    for line in table.read_text(encoding="utf-8").splitlines()[1:]:
        fields = line.split()
        if fields[1:3] == ends and fields[3] == _ESTABLISHED:  # A closed socket shows root as its user.
            return int(fields[7]) in (os.getuid(), 0)
    raise ConnectionError("the connection has ended")


def _as_in_table(family: int, host: str, port: int) -> str:
    """Format an address as in /proc/net/tcp: 32-bit words in the byte order of the machine, in hexadecimal."""
    packed = socket.inet_pton(family, host.partition("%")[0])
    words = struct.unpack(f"!{len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in struct.unpack(f"={len(words)}I", packed)) + f":{port:04X}"
