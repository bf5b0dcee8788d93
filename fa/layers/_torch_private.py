"""Calls of torch's private API by the fast layers, which no public function replaces. Tested with torch 2.9 to 2.14."""

from __future__ import annotations

import torch
from torch import Tensor


def is_transforming() -> bool:
    """Return whether a transform of `torch.func`, such as vmap, or forward-mode differentiation is active."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


def has_hooks(parameter: Tensor) -> bool:
    """Return whether hooks have to see the gradient of this leaf."""
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def accumulates(parameter: Tensor) -> bool:
    """Return whether the running backward pass adds to p.grad of this leaf."""
    node = torch.autograd.graph.get_gradient_edge(parameter).node
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # raised for leaves under torch.autograd.grad
        return False
