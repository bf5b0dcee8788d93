"""2-d batch normalisation of maps in the memory order of `fa.layers.layout`."""

from __future__ import annotations

from torch import Tensor, nn

from fa.layers.layout import in_rows, plain


class BatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm2d, which keeps the order (height, batch, width, channels) and is fast on it."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a batch (B, C, H, W)."""
        if input.dim() == 4 and plain(input) and in_rows(input):
            # Statistics over (B, H, W) do not depend on which of them comes first. With H first this is a batch in
            # channels-last order, for which torch has a fast path.
            return super().forward(input.transpose(0, 2)).transpose(0, 2)
        return super().forward(input)
