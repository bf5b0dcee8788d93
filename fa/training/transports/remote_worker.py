"""The worker of a process that receives the run's configuration from the server."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from fa.attacks import make_attack
from fa.training.config import TrainConfig
from fa.training.setup import build_model, load_dataset, make_workers


class RemoteWorker:
    """Model, data set and gradient of one rank.

    Random numbers depend on (seed, rank, iteration) alone, so that a worker receives nothing but parameters.

    Attributes:
        config: The run's configuration.
        parameters: Vector (n,) of the model's parameters, to which the server's are copied.
        gradient: The last gradient (n,), which is zero for a Byzantine worker that needs none.
        loss: Loss of the last minibatch, a scalar.
        seconds: Time that the last gradient took.
        checksum: Checksum of the data set.
    """

    def __init__(self, rank: int, config: TrainConfig) -> None:
        """Load the data set and create the model; the configuration is the server's."""
        self.config = config
        dataset = load_dataset(config)
        # The user's rule runs at the server alone, and the user's attack there and at Byzantine workers.
        byzantine = rank < config.byzantine
        attack = make_attack(config.attack, **dict(config.attack_options)) if byzantine else make_attack("none")
        model, self.parameters = build_model(config, dataset)
        self.checksum = dataset.checksum
        self.gradient = torch.zeros_like(self.parameters)
        self.loss, self.seconds = torch.zeros(()), 0.0
        (self._worker,) = make_workers({rank: self.gradient}, model, dataset, config, attack)
        self._computes = not byzantine or attack.uses_own_gradient

    @property
    def statistics(self) -> list[Tensor]:
        """Batch-norm statistics."""
        return self._worker.buffers.tensors

    @property
    def carried(self) -> list[Tensor]:
        """Tensors that depend on earlier iterations, to which a predecessor's are copied."""
        return self._worker.carried

    def compute(self, iteration: int) -> None:
        """Compute the gradient at the present parameters.

        Args:
            iteration: Iteration, from 0.

        Raises:
            ValueError: The minibatch cannot be drawn.
        """
        if self._computes:
            started = time.perf_counter()
            self.loss = self._worker.write_gradient(iteration)
            self.seconds = time.perf_counter() - started
