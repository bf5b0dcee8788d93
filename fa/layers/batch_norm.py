"""2-d batch normalisation of maps in the memory order of `fa.layers.layout`."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from fa.layers._gradient import refuse_create_graph
from fa.layers.layout import empty_rows, in_rows, plain


class BatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm2d, which keeps the order (height, batch, width, channels) and is fast on it."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a batch (B, C, H, W)."""
        if not self._applies(input):
            return super().forward(input)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        statistics = self.running_mean, self.running_var, self.momentum, self.eps
        return cast(Tensor, _BatchNorm.apply(input, self.weight, self.bias, *statistics))  # type: ignore[no-untyped-call]

    def _applies(self, images: Tensor) -> bool:
        if not (self.training and self.affine and self.running_mean is not None and self.momentum is not None):
            return False
        if images.dim() != 4 or not plain(images, self.weight, self.running_mean) or not in_rows(images):
            return False
        return images.shape[1] == self.num_features and images.numel() > self.num_features


class _BatchNorm(torch.autograd.Function):
    """Batch normalisation with height and batch exchanged.

    The statistics over (B, H, W) do not depend on which of them comes first. With the height first the images are in
    channels-last order, for which torch has fast loops.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        output = empty_rows(images, cast(tuple[int, int, int, int], images.shape))
        centre, scale = torch.empty_like(weight), torch.empty_like(weight)
        torch.native_batch_norm(
            images.transpose(0, 2),
            weight,
            bias,
            mean,
            variance,
            training=True,
            momentum=momentum,
            eps=eps,
            out=(output.transpose(0, 2), centre, scale),
        )
        ctx.save_for_backward(images, weight, centre, scale)
        ctx.eps = eps
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_create_graph()
        images, weight, centre, scale = ctx.saved_tensors
        dx, dw, db = torch.ops.aten.native_batch_norm_backward(
            gradients[0].transpose(0, 2),
            images.transpose(0, 2),
            weight,
            None,
            None,
            centre,
            scale,
            True,
            ctx.eps,
            list(ctx.needs_input_grad[:3]),
        )
        return None if dx is None else dx.transpose(0, 2), dw, db, None, None, None, None
