"""A model that computes the gradients of several workers at once, on a GPU.

The workers' minibatches pass through the model as one batch, which occupies a GPU as single minibatches do not. Batch
norm normalises each worker's images by their own statistics. In the backward pass, each worker's gradient of a
parameter is added to its row of G. Gradients equal those of one worker after another up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fa.layers._gradient import refuse_create_graph
from fa.layers.batch_norm import BatchNorm2d
from fa.layers.convolution import Conv2d

_Pair = tuple[int, int]


def supports(model: nn.Module) -> bool:
    """Return whether the workers of this model can be computed at once.

    All parameters and buffers must be of plain 2-d convolutions, 2-d batch norms and linear layers.
    """
    modules = [module for module in model.modules() if _has_state(module)]
    parameters = [parameter for module in modules for parameter in module.parameters(recurse=False)]
    shared = len(parameters) != len({id(parameter) for parameter in parameters})
    return not shared and all(map(_is_supported, modules))


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))


def _is_supported(module: nn.Module) -> bool:
    if type(module) in (nn.Conv2d, Conv2d):
        plain = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
        return bool(plain) and not isinstance(module.padding, str)
    if type(module) in (nn.BatchNorm2d, BatchNorm2d):
        return bool(module.affine and module.track_running_stats and module.momentum is not None)
    return type(module) is nn.Linear


class WorkerBatch:
    """A twin of a model, with its parameters, that takes the minibatches of W workers.

    Args:
        model: The model; `supports` must hold. Its parameters are views of one vector (n,).
        G: The workers' rows (W, n), to which gradients are added.
        buffers: Each worker's buffers, in the order of the model's.
    """

    def __init__(self, model: nn.Module, G: Tensor, buffers: Sequence[Sequence[Tensor]]) -> None:
        self._twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()}).train()
        rows, stacks = iter(_rows(G, model)), iter([_stack(tensors) for tensors in zip(*buffers, strict=True)])
        for module in self._twin.modules():
            if _has_state(module):
                module.__class__ = next(ours for kind, ours in _OURS.items() if isinstance(module, kind))
                module.gradients = [next(rows) for _ in module.parameters(recurse=False)]  # type: ignore[assignment]
                module.statistics = [next(stacks) for _ in module.buffers(recurse=False)]  # type: ignore[assignment]

    def backward(self, images: Tensor, labels: Tensor, divisor: int = 1) -> Tensor:
        """Add each worker's gradient to its row.

        Args:
            images: Normalised images, float32 (W, B, C, H, W').
            labels: Labels, int64 (W, B).
            divisor: Number by which losses are divided.

        Returns:
            The workers' losses (W,).
        """
        logits = self._twin(images.flatten(0, 1))
        losses = F.cross_entropy(logits, labels.flatten(), reduction="none").view_as(labels).mean(dim=1) / divisor
        losses.sum().backward()
        return losses.detach()


def _rows(G: Tensor, model: nn.Module) -> list[Tensor]:
    """Return the gradients of each parameter, (W, *shape); of convolutions (W, out, height, width, in)."""
    rows, start = [], 0
    for parameter in model.parameters():
        piece = G[:, start : start + parameter.numel()]
        start += parameter.numel()
        shape = parameter.permute(0, 2, 3, 1).shape if parameter.dim() == 4 else parameter.shape
        rows.append(piece.unflatten(1, tuple(shape)))
    return rows


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Move tensors of one shape into one new tensor, of which they become views."""
    stack = torch.stack(list(tensors))
    for tensor, view in zip(tensors, stack, strict=True):
        tensor.data = view
    return stack


class _Conv2d(nn.Conv2d):
    gradients: list[Tensor]

    def forward(self, input: Tensor) -> Tensor:
        stride, padding = cast(_Pair, self.stride), cast(_Pair, self.padding)
        output: Tensor = _Convolution.apply(input, self.weight, self.gradients[0], stride, padding)
        return output if self.bias is None else cast(Tensor, _Bias.apply(output, self.bias, self.gradients[1]))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, rows: Tensor, stride: _Pair, padding: _Pair) -> Tensor:
        taps, padding = _taps(images, weight, stride, padding)
        needed = weight[:, :, taps[0], taps[1]].contiguous()
        ctx.save_for_backward(images, needed)
        ctx.rows, ctx.stride, ctx.padding = rows[:, :, taps[0], taps[1]], stride, padding
        return F.conv2d(images, needed, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        refuse_create_graph()
        images, weight = ctx.saved_tensors
        dy, rows, (top, left) = gradients[0], ctx.rows, ctx.padding
        W, out, height, width, channels = rows.shape
        pixels = images.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        padded = F.pad(pixels, (0, 0, left, left, top, top))
        patches = padded.unfold(1, height, ctx.stride[0]).unfold(2, width, ctx.stride[1])  # (WB, H', W', in, h, w)
        patches = patches.permute(0, 1, 2, 4, 5, 3).reshape(W, -1, height * width * channels)
        of_outputs = dy.unflatten(0, (W, -1)).permute(0, 2, 1, 3, 4).reshape(W, out, -1)
        rows += (of_outputs @ patches).view_as(rows)
        dx = None
        if ctx.needs_input_grad[0]:
            options = ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1, (True, False, False)
            dx = torch.ops.aten.convolution_backward(dy, images, weight, None, *options)[0]
        return dx, None, None, None, None


def _taps(images: Tensor, weight: Tensor, stride: _Pair, padding: _Pair) -> tuple[tuple[slice, slice], _Pair]:
    """Return the taps of a kernel that meet the images, and the padding that remains for them."""
    sizes = zip(images.shape[2:], weight.shape[2:], stride, padding, strict=True)
    (rows, top), (columns, left) = (_taps_along(*size) for size in sizes)
    return (rows, columns), (top, left)


def _taps_along(size: int, kernel: int, stride: int, padding: int) -> tuple[slice, int]:
    """Return one dimension of `_taps`. On maps of 1 x 1, a kernel of 3 x 3 has one such tap."""
    outputs = (size + 2 * padding - kernel) // stride + 1
    taps = [k for k in range(kernel) if any(0 <= i * stride - padding + k < size for i in range(outputs))]
    remaining = padding - taps[0]
    if remaining < 0 or (size + 2 * remaining - len(taps)) // stride + 1 != outputs:
        return slice(0, kernel), padding
    return slice(taps[0], taps[-1] + 1), remaining


class _Bias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, bias: Tensor, rows: Tensor) -> Tensor:
        ctx.rows = rows
        return output + bias.view(-1, *[1] * (output.dim() - 2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        refuse_create_graph()
        dy = gradients[0]
        ctx.rows += _by_worker(dy, len(ctx.rows)).sum(dim=(1, 3))
        return dy, None, None


class _BatchNorm2d(nn.BatchNorm2d):
    gradients: list[Tensor]
    statistics: list[Tensor]

    def forward(self, input: Tensor) -> Tensor:
        options = cast(float, self.momentum), self.eps
        return cast(Tensor, _BatchNorm.apply(input, self.weight, self.bias, self.gradients, self.statistics, *options))


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        rows: list[Tensor],
        statistics: list[Tensor],
        momentum: float,
        eps: float,
    ) -> Tensor:
        x = _by_worker(images, len(rows[0]))
        count = x.shape[1] * x.shape[3]
        variance, mean = torch.var_mean(x, dim=(1, 3), correction=0, keepdim=True)  # (W, 1, channels, 1)
        scale = torch.rsqrt(variance + eps)
        normalised = (x - mean).mul_(scale)
        running_mean, running_variance, batches = statistics
        running_mean.lerp_(mean.view_as(running_mean), momentum)
        running_variance.lerp_(variance.view_as(running_variance) * (count / (count - 1)), momentum)
        batches.add_(1)
        ctx.save_for_backward(normalised, scale, weight)
        ctx.rows, ctx.count = rows, count
        output = torch.empty_like(images, memory_format=torch.contiguous_format)  # no view: ReLU may overwrite it
        torch.addcmul(bias[:, None], normalised, weight[:, None], out=output.view_as(normalised))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_create_graph()
        normalised, scale, weight = ctx.saved_tensors
        dy = _by_worker(gradients[0], len(normalised))
        of_weight = (dy * normalised).sum(dim=(1, 3), keepdim=True)
        of_bias = dy.sum(dim=(1, 3), keepdim=True)
        for rows, found in zip(ctx.rows, (of_weight, of_bias), strict=True):
            rows += found.view_as(rows)
        dx = torch.addcmul(dy, normalised, of_weight, value=-1 / ctx.count).sub_(of_bias / ctx.count)
        return (dx.mul_(scale * weight[:, None]).view_as(gradients[0]), *[None] * 6)


def _by_worker(batch: Tensor, workers: int) -> Tensor:
    """View a batch (W B, channels, ...) as (W, B, channels, pixels)."""
    return batch.contiguous().view(workers, -1, batch.shape[1], max(1, batch[0, 0].numel()))


class _Linear(nn.Linear):
    gradients: list[Tensor]

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _Product.apply(input, self.weight, self.gradients[0])
        return output if self.bias is None else cast(Tensor, _Bias.apply(output, self.bias, self.gradients[1]))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rows = rows
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        refuse_create_graph()
        (x, weight), dy, workers = ctx.saved_tensors, gradients[0], len(ctx.rows)
        ctx.rows += dy.unflatten(0, (workers, -1)).mT @ x.unflatten(0, (workers, -1))
        return dy @ weight if ctx.needs_input_grad[0] else None, None, None


_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _Conv2d,
    nn.BatchNorm2d: _BatchNorm2d,
    nn.Linear: _Linear,
}
