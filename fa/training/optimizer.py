"""The parameter server: SGD on the aggregate, and the evaluation of the model it holds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fa.data import Dataset
from fa.data.batches import test_batches
from fa.training.config import TrainConfig
from fa.training.parameter_vector import Buffers


class SGD:
    """torch.optim.SGD's update, as a few operations on one vector: weight decay, momentum, step.

    Weight decay is added by the server to the aggregate: workers and rules see the gradients of the bare loss.
    """

    def __init__(self, parameters: Tensor, config: TrainConfig, epoch_length: int) -> None:
        self._parameters = parameters
        self._config = config
        self._epoch_length = epoch_length
        self.velocity: Tensor | None = None  # what momentum has gathered
        self._decayed = torch.empty_like(parameters) if config.weight_decay else None

    def rate(self, iteration: int) -> float:
        """The learning rate at an iteration, counted from 0: times lr_decay every lr_decay_epochs."""
        steps = iteration // self._epoch_length // self._config.lr_decay_epochs
        return self._config.lr * self._config.lr_decay**steps

    def step(self, direction: Tensor, iteration: int) -> None:
        """Move the parameters (n,) in place against `direction` (n,), which is only read."""
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
    """The server's model on the test images, with the mean of the honest workers' batch-norm statistics."""

    def __init__(self, model: nn.Module, dataset: Dataset, device: torch.device) -> None:
        self._model = model
        self._dataset = dataset
        self._device = device
        self._buffers = Buffers(model)

    def accuracy(self, statistics: list[Buffers]) -> float:
        """The share of test images whose largest output is their label's; a NaN counts as largest, as argmax has it."""
        self._buffers.set_to_mean(statistics)
        self._buffers.install()
        self._model.eval()
        with torch.inference_mode():
            right = sum(
                int((self._model(images).argmax(dim=1) == labels).sum())
                for images, labels in test_batches(self._dataset, device=self._device)
            )
        return right / len(self._dataset.test_labels)
