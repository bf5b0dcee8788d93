"""The common half of the transports over worker processes: how a round becomes the gradients of an iteration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from fa.training.parameter_vector import Buffers
from fa.training.transports.base import GatheredGradients
from fa.training.transports.gathering import Gathering
from fa.training.transports.rounds import RoundOutcome
from fa.utils.timing import PhaseTimer

JOIN_TIMEOUT = 120.0
"""Seconds to wait for workers to join."""

CLOSE_TIMEOUT = 5.0
"""Seconds to wait for workers to exit after the end of the run."""


class ProcessTransport(ABC):
    """A transport over worker processes, whose messages fill the rows of a `Gathering`."""

    def __init__(self, gathering: Gathering, timer: PhaseTimer) -> None:
        """Begin without any worker.

        Args:
            gathering: Rows and states of the ranks.
            timer: Timer of the run's phases.
        """
        self._gathering = gathering
        self._timer = timer

    def join(self) -> None:
        """Wait until every worker has joined or ended."""
        with self._timer.phase("join"):
            self._join(JOIN_TIMEOUT)

    def gradients(self, iteration: int) -> GatheredGradients:
        """Gather gradients until the quorum has arrived or the deadline has passed.

        Args:
            iteration: Iteration, from 0.

        Returns:
            The gradients. The rows of missing workers are NaN, which rules exclude.

        Raises:
            TooFewWorkersError: No honest worker has sent a gradient.
        """
        self._gathering.begin()
        outcome = self._gather(iteration)
        self._timer.add("compute", outcome.seconds)
        return self._gathering.finish(iteration, outcome.missing, outcome.losses, self._notes())

    def statistics(self) -> list[Buffers]:
        """Return each worker's batch-norm statistics as it last sent them."""
        return self._gathering.buffers

    def momenta(self) -> list[Tensor]:
        """Return each worker's momentum as it last sent it: it is the worker's gradient."""
        return self._gathering.momenta

    @abstractmethod
    def first_process_ended(self, rank: int, reason: str) -> None:
        """Exclude a rank whose first process has ended, unless another process has joined, or it has sent a reason.

        Args:
            rank: Rank of the process.
            reason: The reason, for the records.
        """

    @abstractmethod
    def close(self) -> None:
        """End the run, and wait until the present workers have left."""

    @abstractmethod
    def _join(self, timeout: float) -> None:
        """Wait until every worker has joined or ended. Ranks that have not joined in time are excluded."""

    @abstractmethod
    def _gather(self, iteration: int) -> RoundOutcome:
        """Do a round, and report each rank whose row is complete to the `Gathering`."""

    def _notes(self) -> Mapping[int, str]:
        """Return remarks on the round's gradients, by rank."""
        return MappingProxyType({})
