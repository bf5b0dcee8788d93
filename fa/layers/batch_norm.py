"""2-d batch normalisation of maps whose channels are neighbours in memory."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fa.layers._gradient import refuse_create_graph
from fa.layers.layout import in_rows, plain


class BatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm2d, with compiled loops in training where the channels are the last dimension in memory.

    They are as accurate as torch's on contiguous maps; torch's on channels-last maps have ten times the error.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a batch (B, C, H, W).

        Args:
            input: Batch (B, C, H, W).

        Returns:
            The normalised batch, of the same shape.
        """
        if not self._applies(input):
            return super().forward(input)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        statistics = self.running_mean, self.running_var, self.momentum, self.eps
        return cast(Tensor, _BatchNorm.apply(input, self.weight, self.bias, *statistics))

    def _applies(self, images: Tensor) -> bool:
        if not (self.training and self.affine and self.running_mean is not None and self.momentum is not None):
            return False
        if images.dim() != 4 or not plain(images, self.weight, self.running_mean) or not _channels_are_last(images):
            return False
        return images.shape[1] == self.num_features and images.numel() > self.num_features


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        from fa.kernels import normalization

        x, output = _pixels(images), torch.empty_like(images)
        mean, variance = normalization.moments(x)
        inverse = 1 / np.sqrt(variance + eps)
        centre = mean.astype(np.float32)
        scale = (weight.detach().numpy() * inverse).astype(np.float32)
        normalization.affine(x, centre, scale, bias.detach().numpy(), _pixels(output))
        for running, value in ((running_mean, mean), (running_var, variance * (len(x) / (len(x) - 1)))):
            running.mul_(1 - momentum).add_(torch.from_numpy(value), alpha=momentum)
        ctx.save_for_backward(images, weight)
        ctx.centre, ctx.inverse = centre, inverse
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from fa.kernels import normalization

        refuse_create_graph()
        images, weight = ctx.saved_tensors
        x, y = _pixels(images), _pixels(_as_ordered(gradients[0], images))
        total, product = normalization.product_sums(x, y, ctx.centre)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(images)
            scale = weight.detach().numpy() * ctx.inverse
            slope, bias = -scale * ctx.inverse**2 * product / len(x), -scale * total / len(x)
            scale, slope, bias = (column.astype(np.float32) for column in (scale, slope, bias))
            normalization.affine_pair(y, scale, x, ctx.centre, slope, bias, _pixels(dx))
        dw, db = (torch.from_numpy(sums.astype(np.float32)) for sums in (product * ctx.inverse, total))
        return dx, dw, db, None, None, None, None


def _channels_are_last(images: Tensor) -> bool:
    return in_rows(images) or images.is_contiguous(memory_format=torch.channels_last)


def _pixels(images: Tensor) -> np.ndarray:
    """View a batch whose channels are last in memory as a matrix (pixels, channels), in the order of the memory."""
    channels = images.shape[1]
    return images.detach().as_strided((images.numel() // channels, channels), (channels, 1)).numpy()


def _as_ordered(gradient: Tensor, images: Tensor) -> Tensor:
    """Return the gradient in the memory order of the images."""
    same = in_rows(gradient) if in_rows(images) else gradient.is_contiguous(memory_format=torch.channels_last)
    return gradient if same else torch.empty_like(images).copy_(gradient)
