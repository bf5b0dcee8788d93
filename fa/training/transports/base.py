"""Interface between the training loop and the source of its gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64
from torch import Tensor, nn

from fa.attacks import Attack
from fa.training.config import TrainConfig
from fa.training.parameter_vector import Buffers
from fa.utils.addresses import is_loopback
from fa.utils.timing import PhaseTimer
from fa.utils.validation import check, check_integer, check_one_of, check_positive


class GatheredGradients(NamedTuple):
    """One iteration's gradients as the server receives them."""

    G: Tensor
    """(p, n) float32, with the attack in the Byzantine workers' rows; the next iteration overwrites it."""
    loss: Tensor
    """Scalar: the mean of the honest workers' minibatch losses."""
    missing: Mapping[int, str] = MappingProxyType({})
    """Reason for each worker without a gradient, whose row is NaN."""
    inner_products: Float64[np.ndarray, "p p"] | None = None
    """G G^T, if it was computed while the gradients arrived."""
    notes: Mapping[int, str] = MappingProxyType({})
    """Further remarks for the records, by worker."""


@runtime_checkable
class Transport(Protocol):
    """Source of the p gradients of an iteration."""

    def gradients(self, iteration: int) -> GatheredGradients:
        """Gather the gradients at the present parameters, of the vector that the transport was created with.

        Args:
            iteration: Iteration, from 0.

        Returns:
            The gradients.

        Raises:
            TooFewWorkersError: No honest worker has sent a gradient.
        """
        ...

    def statistics(self) -> list[Buffers]:
        """Return each worker's batch-norm statistics, by rank.

        Before the first iteration the caller may write to them: workers begin with those values.
        """
        ...

    def momenta(self) -> list[Tensor]:
        """Return each worker's momentum (n,), by rank; empty without worker momentum. May be written to likewise."""
        ...


@dataclass(frozen=True)
class ServedRun:
    """What the server of worker processes needs to know of a run.

    Attributes:
        model: The model, whose buffers each worker has a copy of.
        config: The configuration, which workers receive.
        parameters: Vector of all parameters (n,), which the training loop updates in place between rounds.
        checksum: Checksum of the data set, which workers must have too.
        needs_gram: True to compute the Gram matrix while gradients arrive.
        timer: Timer of the run's phases.
        attack: The attack; by default it is created from the configuration.
    """

    model: nn.Module
    config: TrainConfig
    parameters: Tensor
    checksum: str = ""
    needs_gram: bool = False
    timer: PhaseTimer = field(default_factory=PhaseTimer)
    attack: Attack | None = None


LOOPBACK = "127.0.0.1"
"""Address at which a server listens by default."""

_KEYS = "`fa keys DIR` writes keys."
_UDP = "Set channel (--gradients) to 'udp' or loss_fill (--lost) to 'zero'"


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
        check_positive("deadline", self.deadline)
        if self.quorum is not None:
            check_integer("quorum", self.quorum, 1)

    def check(self, config: TrainConfig) -> None:
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
    channel: str = "rpc"  # of the gradients: rpc, or udp: datagrams, which are not retransmitted
    loss_fill: str = "zero"  # value of lost coordinates: zero, or previous: the last one received there

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("channel", self.channel, ("rpc", "udp"))
        check_one_of("loss_fill", self.loss_fill, ("zero", "previous"))
        needs_udp = self.loss_fill != "zero"
        check("channel", self.channel, self.channel == "udp" or not needs_udp, f"'udp' with {self.loss_fill!r}", _UDP)

    def check(self, config: TrainConfig) -> None:
        """Check that worker processes can do a run.

        Args:
            config: The run's configuration.

        Raises:
            ValueError: The configuration needs the simulation, other datagrams or another quorum.
        """
        super().check(config)
        # A new process continues with the momentum that its predecessor sent, which datagrams may have changed.
        lossless = self.channel == "rpc" or not config.worker_momentum
        check("worker_momentum", config.worker_momentum, lossless, "0 where gradients come as datagrams")

    def description(self) -> dict[str, object]:
        """Return the settings on which results depend, as the records of a run store them."""
        settings = {"name": "rpc", "deadline": self.deadline, "quorum": self.quorum, "gradients": self.channel}
        return settings | ({"lost": self.loss_fill} if self.channel == "udp" else {})
