"""A model's parameters as one vector of n numbers, and rows of G as the gradients of those parameters.

The n coordinates follow `model.parameters()`. Convolution weights lie in channels-last order (out, height, width, in),
with which the CPU's convolutions are up to 1.6 times faster; the order means nothing to a rule.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def _pieces(vector: Tensor, parameters: list[nn.Parameter]) -> Iterator[Tensor]:
    start = 0
    for parameter in parameters:
        piece = vector[start : start + parameter.numel()]
        start += parameter.numel()
        if parameter.dim() == 4:
            out, channels, height, width = parameter.shape
            yield piece.view(out, height, width, channels).permute(0, 3, 1, 2)
        else:
            yield piece.view(parameter.shape)


def views(vector: Tensor, model: nn.Module) -> list[Tensor]:
    """The parts of `vector` (n,) in the shapes of the model's parameters, sharing its memory."""
    return list(_pieces(vector, list(model.parameters())))


def flatten(model: nn.Module) -> Tensor:
    """Move the model's parameters into one new vector (n,), of which they are views from then on, and return it."""
    parameters = list(model.parameters())
    vector = parameters[0].new_empty(sum(parameter.numel() for parameter in parameters)).detach()
    for parameter, view in zip(parameters, views(vector, model), strict=True):
        view.copy_(parameter.detach())
        parameter.data = view
    return vector


class Buffers:
    """One worker's copy of a model's buffers, which is to say of its batch-norm running statistics."""

    def __init__(self, model: nn.Module) -> None:
        self._slots = [
            (module, name, buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]

    def install(self) -> None:
        """Let the model use this copy; a forward pass in training mode then updates it in place."""
        for module, name, buffer in self._slots:
            module._buffers[name] = buffer

    @property
    def tensors(self) -> list[Tensor]:
        """The buffers, in the order of the model's modules."""
        return [buffer for _, _, buffer in self._slots]

    def set_to_mean(self, others: list[Buffers]) -> None:
        """Each number becomes the mean over `others` (whole numbers, such as batch counts, take the first one's)."""
        for own, *theirs in zip(self.tensors, *(other.tensors for other in others), strict=True):
            own.copy_(torch.stack(theirs).mean(dim=0) if own.is_floating_point() else theirs[0])
