"""Settings of the servers of worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fa.training.config import TrainConfig
from fa.utils.addresses import is_loopback, is_unspecified
from fa.utils.validation import check, check_integer, check_one_of, check_seconds

LOOPBACK = "127.0.0.1"
"""Address at which a server listens by default."""

_KEYS = "`fa keys DIR` writes keys."


@dataclass(frozen=True)
class _ServerConfig:
    """Settings that all servers of worker processes share."""

    host: str = LOOPBACK  # name or address at which the server listens
    port: int = 0  # 0: any free port
    spawn_workers: bool = True  # False: workers are started elsewhere, and awaited
    deadline: float = 60.0  # seconds that a round waits for a worker, which is then excluded until its next message
    quorum: int | None = None  # number of gradients, the fastest, that complete a round; None: all

    def __post_init__(self) -> None:
        check("host", self.host, self.host != "", "a host's name or address")
        check_integer("port", self.port, 0)
        check("port", self.port, self.port < 1 << 16, f"at most {(1 << 16) - 1}")
        check_seconds("deadline", self.deadline)
        if self.quorum is not None:
            check_integer("quorum", self.quorum, 1)

    def check_run(self, config: TrainConfig) -> None:
        """Check that worker processes can do a run.

        Raises:
            ValueError: The configuration needs the simulation or another quorum.
        """
        check("device", config.device, config.device == "cpu", "cpu where workers are processes")
        if self.quorum is not None:
            check("quorum", self.quorum, self.quorum <= config.workers, f"at most workers={config.workers}")
            # Byzantine workers may compute nothing, and then answer first.
            check("quorum", self.quorum, self.quorum > config.byzantine, f"more than byzantine={config.byzantine}")


@dataclass(frozen=True)
class TcpConfig(_ServerConfig):
    """Address of the server of `transports.tcp`, its keys, and its patience with worker processes.

    Example:
        >>> TcpConfig(quorum=12).description()
        {'name': 'tcp', 'deadline': 60.0, 'quorum': 12}
    """

    keys: Path | None = None  # folder of the server's certificate, as `fa keys` writes it; None: loopback only

    def __post_init__(self) -> None:
        super().__post_init__()
        needs_keys = not self.spawn_workers and not is_loopback(self.host)
        check("keys", self.keys, self.keys is not None or not needs_keys, f"a folder with host {self.host!r}", _KEYS)
        local = not self.spawn_workers or is_loopback(self.host)
        check("host", self.host, local, "a loopback address where workers start on this host")
        check("keys", self.keys, self.keys is None or not self.spawn_workers, "None where workers start on this host")

    def description(self) -> dict[str, object]:
        """Return the settings on which results depend, as the records of a run store them."""
        return {"name": "tcp", "deadline": self.deadline, "quorum": self.quorum}


@dataclass(frozen=True)
class RpcConfig(_ServerConfig):
    """Address of the server of `transports.rpc`, and its patience with worker processes.

    Example:
        >>> RpcConfig(quorum=12).description()
        {'name': 'rpc', 'deadline': 60.0, 'quorum': 12, 'gradients': 'rpc'}
    """

    external_store: bool = False  # True: another process, such as torchrun, keeps the store at host:port
    gradients: str = "rpc"  # path of the gradients: rpc, or udp: datagrams, which are not retransmitted
    lost: str = "zero"  # value of lost coordinates: zero, or previous: the last one received there

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("gradients", self.gradients, ("rpc", "udp"))
        check_one_of("lost", self.lost, ("zero", "previous"))
        # RPC's ports are those of one interface.
        check("host", self.host, not is_unspecified(self.host), "an address at which workers reach the server")
        used = self.lost == "zero" or self.gradients == "udp"
        check("gradients", self.gradients, used, f"'udp' with lost={self.lost!r}")

    def check_run(self, config: TrainConfig) -> None:
        """Check that worker processes can do a run.

        Args:
            config: The run's configuration.

        Raises:
            ValueError: The configuration needs the simulation, other datagrams or another quorum.
        """
        super().check_run(config)
        # A new process continues with the momentum that its predecessor sent, which datagrams may have changed.
        lossless = self.gradients == "rpc" or not config.worker_momentum
        check("worker_momentum", config.worker_momentum, lossless, "0 where gradients come as datagrams")

    def description(self) -> dict[str, object]:
        """Return the settings on which results depend, as the records of a run store them."""
        settings = {"name": "rpc", "deadline": self.deadline, "quorum": self.quorum, "gradients": self.gradients}
        return settings | ({"lost": self.lost} if self.gradients == "udp" else {})
