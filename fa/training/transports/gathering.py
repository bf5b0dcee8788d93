"""Matrix of the gradients that worker processes send, and the completion of an iteration from it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from fa.gradients.incremental import IncrementalGram
from fa.training.parameter_vector import Buffers, zero_gradients
from fa.training.setup import configured_attack
from fa.training.transports.base import GatheredGradients, ServedRun
from fa.training.transports.completion import complete


class Gathering:
    """Gradients, batch-norm statistics and momenta of all ranks, as the server of worker processes keeps them.

    Byzantine workers send their true gradients. The attack is applied here, because it depends on all rows.

    Attributes:
        G: Gradients (p, n).
        buffers: Batch-norm statistics as each worker last sent them, by rank.
        momenta: Last finite momentum of each worker, by rank: it is the worker's gradient.
    """

    def __init__(self, run: ServedRun) -> None:
        """Allocate the rows.

        Args:
            run: The run.

        Raises:
            ValueError: The gradients do not fit in memory.
        """
        config = run.config
        self.G = zero_gradients(config.workers, run.parameters)
        self.buffers = [Buffers(run.model) for _ in range(config.workers)]
        with_momentum = config.workers if config.worker_momentum else 0
        self.momenta = [torch.zeros_like(run.parameters) for _ in range(with_momentum)]
        self._config = config
        self._attack = run.attack or configured_attack(config)
        self._needs_gram = run.needs_gram
        self._timer = run.timer
        self._gram: IncrementalGram | None = None

    def carried(self, rank: int) -> list[Tensor]:
        """Return the `Worker.carried` of a rank, with which a new process of the rank continues.

        Args:
            rank: Rank of the worker.

        Returns:
            Its batch-norm statistics and, if the run has it, its momentum.
        """
        return self.buffers[rank].tensors + self.momenta[rank : rank + 1]

    def begin(self) -> None:
        """Begin an iteration."""
        self._gram = IncrementalGram(self.G) if self._needs_gram else None

    def add(self, rank: int) -> None:
        """Use a row that has arrived. Byzantine rows are used later, since the attack changes them.

        Args:
            rank: Rank of the row.
        """
        if self._gram is not None and rank >= self._config.byzantine:
            with self._timer.phase("gram"):
                self._gram.add_row(rank)

    def finish(
        self,
        iteration: int,
        missing: Mapping[int, str],
        losses: Mapping[int, Tensor],
        notes: Mapping[int, str] = MappingProxyType({}),
    ) -> GatheredGradients:
        """Write the attack and the missing rows into G.

        Args:
            iteration: Iteration, from 0.
            missing: Reason for each rank without a gradient.
            losses: Scalar loss of each rank with a gradient.
            notes: Further remarks for the records, by rank.

        Returns:
            The iteration's gradients. A rank whose loss alone is not finite is missing too.

        Raises:
            TooFewWorkersError: No honest worker has sent a gradient.
        """
        if self.momenta:
            for rank in losses:
                if self.G[rank].isfinite().all():
                    self.momenta[rank].copy_(self.G[rank])
        loss, excluded = complete(self.G, self._attack, self._config, iteration, losses, missing)
        return GatheredGradients(self.G, loss, excluded, self._inner_products(list(excluded)), notes)

    def _inner_products(self, absent: list[int]) -> np.ndarray | None:
        if self._gram is None:
            return None
        with self._timer.phase("gram"):
            for rank in range(self._config.byzantine):
                self._gram.add_row(rank)
            matrix = self._gram.matrix()
        matrix[absent] = matrix[:, absent] = np.nan
        return matrix
