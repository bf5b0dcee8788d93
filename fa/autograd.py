"""A rule in a plain training loop: from the workers' losses to `.grad`, for any optimizer of torch.

`fa.training.ddp` does the same for processes under DistributedDataParallel.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fa.gradients.inputs import to_real_tensor
from fa.rules import Aggregate, Rule, as_rule
from fa.utils.validation import check


def backward(
    losses: Tensor | Iterable[Tensor], parameters: Iterable[Tensor], rule: Rule | str = "fa", iteration: int = 0
) -> Aggregate:
    """Differentiate each worker's loss, and add the rule's direction to the parameters' `.grad`.

    It takes the place of `loss.backward()`: any optimizer and learning-rate schedule of torch may follow. All gradients
    are in memory at once. A graph that all losses share is freed at the end. A generator of losses lets torch free each
    graph before the next forward pass.

    Args:
        losses: One scalar for each of the p workers: a tensor (p,), a sequence, or a generator.
        parameters: The model's parameters; those that require no gradient are ignored.
        rule: A rule, or the name of one with its defaults.
        iteration: Iteration of the training run, for what the rule and its pre-aggregators draw.

    Returns:
        The direction, as a list of tensors of the parameters' shapes, and the decision about workers.

    Raises:
        ValueError: No parameter requires a gradient, or the losses are not p scalars that depend on the parameters.
        TooFewWorkersError: p is too small for the rule's f.

    Example:
        >>> import torch, fa
        >>> w = torch.zeros(2, requires_grad=True)
        >>> data = torch.tensor([[1.0, 2.0], [1.0, 4.0], [90.0, 3.0]])  # one row for each worker
        >>> result = fa.backward((-(w * row).sum() for row in data), [w], "median")
        >>> torch.optim.SGD([w], lr=0.5).step()
        >>> w.detach()
        tensor([0.5000, 1.5000])
    """
    trained = _trained(parameters)
    if isinstance(losses, Tensor):
        check("losses", tuple(losses.shape), losses.ndim == 1, "of shape (p,), one for each worker")
    check("losses", type(losses).__name__, isinstance(losses, Tensor | Iterable), "an iterable of scalars")
    rule = as_rule(rule)
    # Losses in a tensor or a sequence may have a graph in common, which the last worker frees.
    last = len(losses) - 1 if isinstance(losses, Tensor | Sequence) else 0
    gradients = [
        torch.autograd.grad(
            _scalar(loss, worker), trained, retain_graph=worker < last, allow_unused=True, materialize_grads=True
        )
        for worker, loss in enumerate(losses)
    ]
    check("losses", gradients, bool(gradients), "those of one worker or more")
    result = rule.aggregate(gradients, iteration)
    for parameter, piece in zip(trained, result.direction, strict=True):
        # A copy: gradient clipping changes `.grad` in place.
        parameter.grad = piece.clone() if parameter.grad is None else parameter.grad + piece
    return result


def set_grad(parameters: Iterable[Tensor], direction: Any) -> None:
    """Set the parameters' `.grad` to a direction, as a step of an optimizer needs it.

    Args:
        parameters: The model's parameters; those that require no gradient are ignored.
        direction: d (n,), an array or a tensor with all coordinates in the order of the parameters; or a list with a
            tensor or array of each parameter's shape, which a rule returns for gradients given as such lists.

    Raises:
        ValueError: No parameter requires a gradient, or the direction has other shapes than they have.

    Example:
        >>> import torch, fa
        >>> weight, bias = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, requires_grad=True)
        >>> G = torch.tensor([[1.0, 2.0, 3.0], [1.0, 4.0, 3.0], [90.0, 3.0, 3.0]])
        >>> fa.set_grad([weight, bias], fa.aggregate(G, "median"))
        >>> weight.grad, bias.grad
        (tensor([[1., 3.]]), tensor([3.]))
    """
    trained = _trained(parameters)
    for parameter, piece in zip(trained, _pieces(direction, trained), strict=True):
        parameter.grad = piece.view(parameter.shape).to(parameter.device, parameter.dtype, copy=True)


def _trained(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the parameters that require a gradient, at least one."""
    iterable = isinstance(parameters, Iterable) and not isinstance(parameters, Tensor)
    cure = "Give the model's .parameters()."
    check("parameters", type(parameters).__name__, iterable, "an iterable of tensors", cure)
    every = list(parameters)
    for parameter in every:
        check("each of parameters", type(parameter).__name__, isinstance(parameter, Tensor), "a tensor", cure)
    trained = [parameter for parameter in every if parameter.requires_grad]
    given = f"{len(every)} that require none"
    check("parameters", given, bool(trained), "those of a model, with one or more that require a gradient")
    return trained


def _scalar(loss: Any, worker: int) -> Tensor:
    """Return a worker's loss, a scalar with a graph."""
    name = f"the loss of worker {worker}"
    check(name, type(loss).__name__, isinstance(loss, Tensor), "a tensor")
    check(name, tuple(loss.shape), loss.numel() == 1, "a scalar", "Take the mean over its images.")
    check(name, loss, loss.requires_grad, "a function of the parameters, with a graph")
    return loss  # type: ignore[no-any-return]


def _pieces(direction: Any, trained: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the direction's part for each parameter."""
    if isinstance(direction, list | tuple) and any(np.ndim(piece) for piece in direction):
        pieces = [to_real_tensor(piece, "each part of direction") for piece in direction]
        shapes, needed = ([tuple(tensor.shape) for tensor in tensors] for tensors in (pieces, trained))
        check("direction", shapes, shapes == needed, f"of the parameters' shapes, {needed}")
        return pieces
    d, sizes = to_real_tensor(direction, "direction"), [parameter.numel() for parameter in trained]
    check(
        "direction",
        tuple(d.shape),
        d.shape == (sum(sizes),),
        f"of shape ({sum(sizes)},), one coordinate for each parameter",
    )
    parts: tuple[Tensor, ...] = d.split(sizes)
    return parts
