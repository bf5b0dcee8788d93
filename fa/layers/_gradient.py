"""Weight gradients that are added to p.grad where they are computed."""

from __future__ import annotations

import torch
from torch import Tensor

from fa.layers._torch_private import accumulates, has_hooks


def accumulator(parameter: Tensor) -> Tensor | None:
    """Return the p.grad of convolution weights if a backward pass may add to it directly, else None.

    It must be in channels-last order.
    It may not if the gradient goes somewhere else (`torch.autograd.grad`), or if a hook has to see it.
    """
    gradient = parameter.grad if parameter.is_leaf else None  # torch warns about .grad of others.
    if gradient is None or gradient.requires_grad:
        return None
    if gradient.dtype != parameter.dtype or not gradient.permute(0, 2, 3, 1).is_contiguous():
        return None
    return gradient if not has_hooks(parameter) and accumulates(parameter) else None


def refuse_create_graph() -> None:
    """Raise ValueError in a backward pass that autograd is to differentiate again."""
    if torch.is_grad_enabled():
        raise ValueError("create_graph must be False with fast layers, got True. Use the layers 'torch'.")
