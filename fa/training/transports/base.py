"""The seam between the loop and where gradients come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from fa.training.config import TrainConfig
from fa.training.parameter_vector import Buffers
from fa.utils.validation import check, check_integer, check_one_of, check_real


class Gathered(NamedTuple):
    """One iteration's gradients as the server receives them."""

    G: Tensor
    """(p, n) float32, faulty rows as their workers sent them; overwritten by the next iteration."""
    loss: Tensor
    """Scalar: the mean of the honest workers' minibatch losses."""
    missing: Mapping[int, str] = MappingProxyType({})
    """Workers whose gradients did not come, whose rows are NaN, and why."""
    products: Float64[np.ndarray, "p p"] | None = None
    """The rows' inner products, where they were taken while the gradients came."""
    remarks: Mapping[int, str] = MappingProxyType({})
    """What else the records are to say of workers' gradients."""


@runtime_checkable
class Transport(Protocol):
    """Hands the loop the p gradients of an iteration, however they come."""

    def gradients(self, iteration: int, parameters: Tensor) -> Gathered:
        """The gradients at `parameters` (n,), which all workers hold once this returns."""
        ...

    def statistics(self) -> list[Buffers]:
        """Each worker's batch-norm statistics, by rank. Before the first iteration they may be written to, and the
        workers then begin with those.
        """
        ...

    def momenta(self) -> list[Tensor]:
        """Each worker's momentum (n,), by rank, if they have one; may be written to likewise."""
        ...


LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Cluster:
    """Where the server listens, and how long it waits for workers."""

    host: str = LOOPBACK
    port: int = 0  # 0: any that is free
    spawn: bool = True  # whether the workers are started here; else they are awaited
    store_kept: bool = False  # whether somebody else keeps the store at host:port, as torchrun does
    deadline: float = 60.0  # seconds that an iteration waits for a worker, who then is left out until it is heard again
    quorum: int | None = None  # go on with the gradients of so many workers, the fastest; None: of all
    gradients: str = "rpc"  # how they come: by RPC, or in datagrams (udp), which are not sent again
    lost: str = "zero"  # what stands for lost coordinates: zero, or what came there last (previous)

    def __post_init__(self) -> None:
        check("host", self.host, self.host != "", "a host's name or address")
        check_integer("port", self.port, 0)
        check("port", self.port, self.port < 1 << 16, f"at most {(1 << 16) - 1}")
        check_real("deadline", self.deadline, 0)
        check("deadline", self.deadline, self.deadline > 0, "greater than 0")
        if self.quorum is not None:
            check_integer("quorum", self.quorum, 1)
        check_one_of("gradients", self.gradients, ("rpc", "udp"))
        check_one_of("lost", self.lost, ("zero", "previous"))
        said = self.gradients == "udp" or self.lost == "zero"
        check("gradients", self.gradients, said, f"'udp' where lost is {self.lost!r}")

    def check(self, config: TrainConfig) -> None:
        """Raise ValueError for a run that cannot be done over it."""
        check("device", config.device, config.device == "cpu", "cpu where workers are processes")
        # What arrives is not what a worker sent, and so not the momentum from which its successor would go on.
        plain = self.gradients == "rpc" or not config.worker_momentum
        check("worker_momentum", config.worker_momentum, plain, "0 where gradients come as datagrams")
        if self.quorum is not None:
            check("quorum", self.quorum, self.quorum <= config.workers, f"at most workers={config.workers}")
            # Faulty workers that compute nothing answer first.
            check("quorum", self.quorum, self.quorum > config.byzantine, f"more than byzantine={config.byzantine}")

    def description(self) -> dict[str, object]:
        """What a run's numbers may depend on, for its records."""
        said = {"name": "rpc", "deadline": self.deadline, "quorum": self.quorum, "gradients": self.gradients}
        return said | ({"lost": self.lost} if self.gradients == "udp" else {})
