"""Interface between the training loop and the source of its gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64
from torch import Tensor, nn

from fa.attacks import Attack
from fa.training.config import TrainConfig
from fa.training.parameter_vector import Buffers
from fa.utils.timing import PhaseTimer


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
