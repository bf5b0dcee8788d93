"""The memory order of small maps: (height, batch, width, channels).

In this order, one column of an output map over several of its rows is one matrix, with a row per image and map row.
So is the part of the input that a row of the kernel meets there. A convolution is then a few large matrix products.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from fa.layers._torch_private import is_transforming


def to_rows(images: Tensor) -> Tensor:
    """View a batch (B, C, H, W) as contiguous (H, B, W, C); copy it where its memory order differs.

    Args:
        images: Batch (B, C, H, W).

    Returns:
        The batch (H, B, W, C).
    """
    return images.permute(2, 0, 3, 1).contiguous()


def from_rows(rows: Tensor) -> Tensor:
    """View (H, B, W, C) as a batch (B, C, H, W).

    Args:
        rows: Batch (H, B, W, C).

    Returns:
        The batch (B, C, H, W).
    """
    return rows.permute(1, 3, 0, 2)


def in_rows(images: Tensor) -> bool:
    """Return whether a batch (B, C, H, W) has the memory order (H, B, W, C).

    Args:
        images: Batch (B, C, H, W).
    """
    return images.permute(2, 0, 3, 1).is_contiguous()


def empty_rows(like: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Allocate a batch (B, C, H, W) in the memory order (H, B, W, C).

    It is not a view: autograd copies the gradients of views that are changed in place.

    Args:
        like: Tensor with the dtype and device of the result.
        shape: Sizes B, C, H and W.

    Returns:
        The batch, not initialised.
    """
    B, C, H, W = shape
    return like.new_empty_strided(shape, (W * C, 1, B * W * C, C))


def plain(*tensors: Tensor, devices: tuple[str, ...] = ("cpu",)) -> bool:
    """Return whether the fast computations take these tensors: plain float32 on such a device, outside of autocast."""
    if torch.compiler.is_compiling() or is_transforming():
        return False
    if any(type(tensor) not in (Tensor, Parameter) or tensor.dtype != torch.float32 for tensor in tensors):
        return False
    here = {tensor.device.type for tensor in tensors}
    return here.issubset(devices) and not any(map(torch.is_autocast_enabled, here))
