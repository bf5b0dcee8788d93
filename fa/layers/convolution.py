"""2-d convolution on small maps by matrix products over the taps that meet the input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from fa.layers._gradient import accumulator, refuse_create_graph
from fa.layers.layout import empty_rows, from_rows, in_rows, plain, to_rows

_SIDE = 4  # pixels; on larger maps torch's convolutions are as fast
_CHANNELS = 16  # below which a matrix product is too thin

_Product = tuple[Tensor, Tensor, Tensor]


class Conv2d(nn.Conv2d):
    """torch's Conv2d, with matrix products on maps of up to 4 x 4."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve images (B, in, H, W) to (B, out, H', W').

        Args:
            input: Images (B, in, H, W).

        Returns:
            The output (B, out, H', W').
        """
        if not self._applies(input):
            return super().forward(input)
        stride, padding = cast(tuple[int, int], self.stride), cast(tuple[int, int], self.padding)
        output = cast(Tensor, _Convolution.apply(input, self.weight, stride, padding))
        return output if self.bias is None else output + self.bias[:, None, None]

    def _applies(self, images: Tensor) -> bool:
        if images.dim() != 4 or not plain(images, self.weight, devices=("cpu", "cuda")):
            return False
        if self.groups != 1 or self.dilation != (1, 1) or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return False
        small = 0 < max(images.shape[2:]) <= _SIDE and images.shape[0] > 0 and min(self._output(images)) > 0
        return small and min(self.weight.shape[:2]) >= _CHANNELS and images.shape[1] == self.in_channels

    def _output(self, images: Tensor) -> list[int]:
        sizes = zip(images.shape[2:], self.kernel_size, self.stride, cast(tuple[int, int], self.padding), strict=True)
        return [(size + 2 * padding - kernel) // stride + 1 for size, kernel, stride, padding in sizes]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        x, w = to_rows(images), _channels_last(weight)
        (H, B, W, _), (out, height, width, _) = x.shape, w.shape
        sizes = (H + 2 * padding[0] - height) // stride[0] + 1, (W + 2 * padding[1] - width) // stride[1] + 1
        output = empty_rows(x, (B, out, *sizes)).zero_()
        y = to_rows(output)
        for patch, column, taps in _products(x, y, w, stride, padding):
            column.addmm_(patch, taps.t())
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.rows = stride, padding, in_rows(images)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        refuse_create_graph()
        x, weight = ctx.saved_tensors
        dy = to_rows(gradients[0])
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = torch.zeros_like(x)
            for patch, column, taps in _products(dx, dy, _channels_last(weight), ctx.stride, ctx.padding):
                patch.addmm_(column, taps)
        if ctx.needs_input_grad[1]:
            target = accumulator(weight)
            if target is None:
                target = dw = torch.zeros_like(weight, memory_format=_format(weight))
            for patch, column, taps in _products(x, dy, _channels_last(target), ctx.stride, ctx.padding):
                taps.addmm_(column.t(), patch)
        return None if dx is None else _in_order(dx, ctx.rows), dw, None, None


def _in_order(rows: Tensor, keep: bool) -> Tensor:
    """Return (H, B, W, C) as a batch (B, C, H, W), copied to channels-last order unless `keep`."""
    images = from_rows(rows)
    return images if keep else images.contiguous(memory_format=torch.channels_last)


def _channels_last(weight: Tensor) -> Tensor:
    """View weights (out, in, height, width) as contiguous (out, height, width, in); copy them if needed."""
    return weight.detach().permute(0, 2, 3, 1).contiguous()


def _format(weight: Tensor) -> torch.memory_format:
    """Return the format in which a gradient is in channels-last order, and in the weight's if that is the same."""
    last = weight.permute(0, 2, 3, 1).is_contiguous()
    return torch.preserve_format if last else torch.channels_last


def _products(x: Tensor, y: Tensor, w: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Iterator[_Product]:
    """Split a convolution into matrix products `column += patch @ taps.T`.

    Each product stands for one row of the kernel and one column of the output. Neighbouring taps of the row are
    neighbours in memory, in the input as in the weights. Taps on the padding are omitted.

    Args:
        x: Input (H, B, W, in), contiguous.
        y: Output (H', B, W', out), contiguous.
        w: Weights (out, height, width, in), contiguous.
        stride: Vertical and horizontal stride.
        padding: Vertical and horizontal padding.

    Yields:
        Views: the patch (rows B, taps in) of x, the column (rows B, out) of y, and the taps (out, taps in) of w.
    """
    (H, B, W, channels), (_, _, columns, out) = x.shape, y.shape
    _, height, width, _ = w.shape
    for k in range(height):
        for first, stop in _blocks(k - padding[0], stride[0], H, y.shape[0]):
            top = first * stride[0] + k - padding[0]
            for j in range(columns):
                origin = j * stride[1] - padding[1]
                left, right = max(origin, 0), min(origin + width, W)
                if left < right:
                    shape = (stop - first) * B, (right - left) * channels
                    yield (
                        _matrix(x, shape, W * channels, (top * B * W + left) * channels),
                        _matrix(y, (shape[0], out), columns * out, (first * B * columns + j) * out),
                        _matrix(w, (out, shape[1]), height * width * channels, (k * width + left - origin) * channels),
                    )


def _blocks(offset: int, stride: int, size: int, outputs: int) -> list[tuple[int, int]]:
    """Return ranges of output rows i with input rows i * stride + offset, each of which is one matrix of the input."""
    first = max(0, -(offset // stride))
    stop = min(outputs, (size - 1 - offset) // stride + 1)
    if first >= stop:
        return []
    return [(first, stop)] if stride == 1 else [(i, i + 1) for i in range(first, stop)]


def _matrix(tensor: Tensor, shape: tuple[int, int], stride: int, offset: int) -> Tensor:
    return tensor.as_strided(shape, (stride, 1), tensor.storage_offset() + offset)
