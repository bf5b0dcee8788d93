"""The workers simulated in one process, one after another: the reference for every other transport."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fa.attacks import make_attack
from fa.data import Dataset
from fa.training.config import TrainConfig
from fa.training.parameter_vector import Buffers
from fa.training.transports.base import Gathered
from fa.training.worker import Worker, own_images


class Simulation:
    """p workers that share one model, whose parameters are the server's vector itself, and one (p, n) buffer.

    A faulty worker whose attack does not need its own gradient computes none.
    """

    def __init__(self, model: nn.Module, dataset: Dataset, config: TrainConfig, parameters: Tensor) -> None:
        self._config = config
        self._attack = make_attack(config.attack)
        self._byzantine = range(config.byzantine)
        self._G = _memory(config.workers, parameters)
        own = own_images(config, dataset)
        self.workers = [Worker(rank, model, dataset, config, row, own.get(rank)) for rank, row in enumerate(self._G)]

    def gradients(self, iteration: int, parameters: Tensor) -> Gathered:
        """Each worker's gradient straight into its row, then the attack on the faulty rows."""
        losses = []
        for worker in self.workers:
            faulty = worker.rank in self._byzantine
            if not faulty or self._attack.uses_own_gradient:
                loss = worker.gradient(iteration)
                if not faulty:
                    losses.append(loss)
        self._attack.apply(self._G, self._byzantine, self._config.seed, iteration)
        return Gathered(self._G, torch.stack(losses).mean())

    def statistics(self) -> list[Buffers]:
        """Each worker's batch-norm statistics, which may be written to."""
        return [worker.buffers for worker in self.workers]

    def momenta(self) -> list[Tensor]:
        """Each worker's momentum, if they have one."""
        return [worker.momentum for worker in self.workers if worker.momentum is not None]


def _memory(workers: int, parameters: Tensor) -> Tensor:
    """Zeros (p, n); ValueError where there is no such memory."""
    n = len(parameters)
    try:
        return torch.zeros(workers, n, dtype=parameters.dtype, device=parameters.device)
    except (RuntimeError, TypeError) as error:  # no memory, or no such number
        raise ValueError(
            f"workers must be few enough for the memory, {workers} times {n} numbers, got {workers}"
        ) from error
