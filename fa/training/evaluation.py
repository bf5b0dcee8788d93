"""Evaluation of the server's model on the test images."""

from __future__ import annotations

import torch
from torch import nn

from fa.data import Dataset
from fa.data.batches import evaluation_batches
from fa.training.parameter_vector import Buffers


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
            statistics: Batch-norm statistics of the honest workers. The model uses the mean over the workers that have
                delivered finite values. If there are none, it uses the mean over all that have delivered.
        """
        self._buffers.set_to_mean(_usable(statistics))
        self._buffers.install()
        self._model.eval()
        with torch.inference_mode():
            correct = sum(
                int((self._model(images).argmax(dim=1) == labels).sum())
                for images, labels in evaluation_batches(self._dataset, device=self._device)
            )
        return correct / len(self._dataset.test_labels)


def _usable(statistics: list[Buffers]) -> list[Buffers]:
    """Return the statistics that enter the mean.

    A rank that has never delivered has the initial values, in a resumed run too.
    """
    delivered = [buffers for buffers in statistics if buffers.changed] or statistics
    return [buffers for buffers in delivered if buffers.finite] or delivered
