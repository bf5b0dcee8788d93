"""Network namespaces of this machine in a star: one for the server and one per worker. Links may lose packets.

netem drops packets if the kernel has it; otherwise nftables does. Linux, iproute2 and root are required.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fa.utils.validation import check, check_integer, check_real

SERVER = "10.99.0.1"
"""The server's address in its namespace."""

_NAMES = Path("/run/netns")


@dataclass(frozen=True)
class Links:
    """The namespaces, while they exist.

    Attributes:
        server: Namespace of the server.
        workers: Namespaces of the workers.
        means: Mechanism of loss: netem, nftables, or "nothing" without lossy links.
    """

    server: str
    workers: tuple[str, ...]
    means: str

    @staticmethod
    def command_in(namespace: str, command: list[str]) -> list[str]:
        """Return a command that runs in a namespace, isolated from other processes.

        If TensorPipe finds another process on its host, it copies memory and bypasses the network.

        Args:
            namespace: The namespace.
            command: The command to run there.

        Returns:
            The command, as a list of arguments.
        """
        alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return ["ip", "netns", "exec", namespace, *alone, *command]

    def retransmitted_segments(self) -> int:
        """Return the number of segments that TCP has retransmitted in all namespaces."""
        count = 0
        for name in (self.server, *self.workers):
            counters = _run("ip", "netns", "exec", name, "cat", "/proc/net/snmp")
            names, values = (line.split()[1:] for line in counters.splitlines() if line.startswith("Tcp:"))
            count += int(dict(zip(names, values, strict=True))["RetransSegs"])
        return count


def unsupported_reason() -> str:
    """Return why namespaces with lossy links are unavailable; empty if they are available."""
    name = f"fa-{os.getpid()}-try"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
        with star_network(1, 1):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces with lossy links here: {getattr(error, 'stderr', None) or error}".strip()


@contextmanager
def star_network(workers: int, lossy: int = 0, loss: float = 0.1) -> Iterator[Links]:
    """Create a bridge at the server with a veth pair to each worker.

    All namespaces are removed at the end, also after an error. Those of a killed process are removed by the next call.

    Args:
        workers: Number of workers.
        lossy: Number of lossy links: those of the first workers.
        loss: Share of packets that these lose in both directions, rounded to whole per cents.

    Returns:
        A context manager, whose value is the namespaces.

    Raises:
        ValueError: A number is out of range.
        OSError: The system refuses the network.
        CalledProcessError: A command of the system failed.
    """
    check_integer("workers", workers, 1)
    check_integer("lossy", lossy, 0)
    check_real("loss", loss, 0)
    check("lossy", lossy, lossy <= workers, f"at most workers={workers}")
    check("workers", workers, workers <= 200, "at most 200")
    check("loss", loss, loss < 1, "less than 1")
    _remove_left_over()
    server, names = f"fa-{os.getpid()}-s", tuple(f"fa-{os.getpid()}-{rank}" for rank in range(workers))
    try:
        _ip("netns", "add", server)
        _ip("-n", server, "link", "add", "hub", "type", "bridge")
        _ip("-n", server, "addr", "add", f"{SERVER}/24", "dev", "hub")
        _ip("-n", server, "link", "set", "hub", "up")
        _ip("-n", server, "link", "set", "lo", "up")
        for rank, name in enumerate(names):
            _join(server, name, rank)
        means = "".join({_lose(server, names[rank], rank, round(100 * loss)) for rank in range(lossy)}) or "nothing"
        yield Links(server, names, means)
    finally:
        for name in (server, *names):
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)


def _address(rank: int) -> str:
    return f"10.99.0.{rank + 2}"


def _join(server: str, name: str, rank: int) -> None:
    """Create the worker's namespace, and its link to the hub, which carries one packet at a time like a wire."""
    _ip("netns", "add", name)
    _ip("-n", server, "link", "add", f"w{rank}", "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("-n", server, "link", "set", f"w{rank}", "master", "hub", "gso_max_segs", "1", "up")
    _ip("-n", name, "addr", "add", f"{_address(rank)}/24", "dev", "eth0")
    _ip("-n", name, "link", "set", "eth0", "gso_max_segs", "1", "up")
    _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", server, "link", "set", "hub", "gso_max_segs", "1")


def _lose(server: str, name: str, rank: int, percent: int) -> str:
    """Drop packets on the worker's link, and return the mechanism.

    They are dropped at the receiver, because the sender must not notice.
    """
    ends = ((server, f"w{rank}"), (name, "eth0"))
    try:
        for where, device in ends:
            _run(*f"ip netns exec {where} tc qdisc add dev {device} root netem loss {percent}%".split())
        return "netem"
    except (OSError, subprocess.CalledProcessError):
        for where, source in ((server, _address(rank)), (name, SERVER)):
            rules = f"""add table ip fa
add chain ip fa in {{ type filter hook prerouting priority 0; }}
add rule ip fa in ip saddr {source} numgen random mod 100 < {percent} counter drop
"""
            _run(*f"ip netns exec {where} nft -f -".split(), stdin=rules)
        return "nftables"


def _remove_left_over() -> None:
    for path in _NAMES.glob("fa-*-*"):
        owner = path.name.split("-")[1]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _ip("netns", "del", path.name)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str, stdin: str = "") -> str:
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout
