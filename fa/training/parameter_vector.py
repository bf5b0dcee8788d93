"""A model's parameters as one vector of n coordinates, and rows of G as gradients of those parameters.

The n coordinates follow `model.parameters()`. Convolution weights lie in channels-last order (out, height, width, in),
with which the CPU's convolutions are up to 1.6 times faster. Rules do not depend on the order.
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
    """Return views of `vector` (n,) in the shapes of the model's parameters.

    Args:
        vector: Vector (n,).
        model: The model.

    Returns:
        One view for each parameter, in the model's order.
    """
    return list(_pieces(vector, list(model.parameters())))


def flatten(model: nn.Module) -> Tensor:
    """Move the model's parameters into one new vector (n,), of which they become views, and return it.

    Args:
        model: The model, changed in place.

    Returns:
        The vector (n,).
    """
    parameters = list(model.parameters())
    vector = parameters[0].new_empty(sum(parameter.numel() for parameter in parameters)).detach()
    for parameter, view in zip(parameters, views(vector, model), strict=True):
        view.copy_(parameter.detach())
        parameter.data = view
    return vector


def zero_gradients(workers: int, parameters: Tensor) -> Tensor:
    """Allocate the gradient matrix of a run.

    Args:
        workers: Number of workers, p.
        parameters: Vector of the model's parameters (n,), which gives dtype and device.

    Returns:
        Zeros (p, n).

    Raises:
        ValueError: The gradients do not fit in memory.
    """
    n = len(parameters)
    try:
        return parameters.new_zeros(workers, n)
    except (RuntimeError, TypeError) as error:  # out of memory, or an integer beyond int64
        requirement = f"few enough that {workers} times {n} coordinates fit in memory"
        raise ValueError(f"workers must be {requirement}, got {workers}") from error


class Buffers:
    """One worker's copy of a model's buffers: batch norm's running statistics."""

    def __init__(self, model: nn.Module) -> None:
        self._slots = [
            (module, name, buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]
        self._initial = [buffer.clone() for buffer in self.tensors]

    def install(self) -> None:
        """Make the model use this copy, which forward passes in training mode then update in place."""
        for module, name, buffer in self._slots:
            module._buffers[name] = buffer

    @property
    def tensors(self) -> list[Tensor]:
        """The buffers, in the order of the model's modules."""
        return [buffer for _, _, buffer in self._slots]

    @property
    def changed(self) -> bool:
        """True if a value differs from the model's when this copy was made, as after a forward pass."""
        return not all(map(torch.equal, self.tensors, self._initial))

    @property
    def finite(self) -> bool:
        """True if every value is finite."""
        return all(bool(buffer.isfinite().all()) for buffer in self.tensors)

    def set_to_mean(self, others: list[Buffers]) -> None:
        """Set each buffer to the mean over `others`; integers, such as batch counts, to that of the first one.

        Args:
            others: Buffers of models with the same architecture.
        """
        for buffer, *values in zip(self.tensors, *(other.tensors for other in others), strict=True):
            buffer.copy_(torch.stack(values).mean(dim=0) if buffer.is_floating_point() else values[0])
