"""The parameter server's SGD on the aggregate, and the evaluation of its model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fa.data import Dataset
from fa.data.batches import test_batches
from fa.training.config import TrainConfig
from fa.training.parameter_vector import Buffers


class SGD:
    """torch.optim.SGD's update as a few operations on one vector: weight decay, momentum, step.

    The server adds weight decay to the aggregate. Workers and rules see the gradients of the loss without it.
    """

    def __init__(self, parameters: Tensor, config: TrainConfig, decay_every: int) -> None:
        """Begin without momentum.

        Args:
            parameters: Vector of the model's parameters (n,), which steps update.
            config: The run's configuration.
            decay_every: Iterations between two steps of the learning rate.
        """
        self._parameters = parameters
        self._config = config
        self._decay_every = decay_every
        self.velocity: Tensor | None = None  # momentum buffer (n,)
        self._decayed = torch.empty_like(parameters) if config.weight_decay else None

    def rate(self, iteration: int) -> float:
        """Return the learning rate at an iteration, from 0: it is multiplied by lr_decay at intervals.

        Args:
            iteration: Iteration, from 0.

        Returns:
            The learning rate.
        """
        return self._config.lr * self._config.lr_decay ** (iteration // self._decay_every)

    def step(self, direction: Tensor, iteration: int) -> None:
        """Update the parameters (n,) in place, against `direction` (n,).

        Args:
            direction: Direction d (n,).
            iteration: Iteration, from 0.
        """
        step = direction
        if self._decayed is not None:
            step = torch.add(direction, self._parameters, alpha=self._config.weight_decay, out=self._decayed)
        if self._config.momentum:
            if self.velocity is None:
                self.velocity = step.clone()
            else:
                self.velocity.mul_(self._config.momentum).add_(step)
            step = self.velocity
        self._parameters.add_(step, alpha=-self.rate(iteration))


class Evaluation:
    """Evaluates the server's model on the test images."""

    def __init__(self, model: nn.Module, dataset: Dataset, device: torch.device) -> None:
        self._model = model
        self._dataset = dataset
        self._device = device
        self._buffers = Buffers(model)

    def accuracy(self, statistics: list[Buffers]) -> float:
        """Return the test accuracy, a fraction. NaN counts as the largest output, as in torch.argmax.

        Args:
            statistics: Batch-norm statistics of the honest workers, of which the model uses the mean.
        """
        self._buffers.set_to_mean(statistics)
        self._buffers.install()
        self._model.eval()
        with torch.inference_mode():
            correct = sum(
                int((self._model(images).argmax(dim=1) == labels).sum())
                for images, labels in test_batches(self._dataset, device=self._device)
            )
        return correct / len(self._dataset.test_labels)
