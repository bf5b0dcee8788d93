"""Compute the direction d from a decision: one pass over the coordinates of the gradients, block by block.

A decision is applied in one of three ways, each a subclass of `Application`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Bool, Float64
from torch import Tensor

from fa import kernels
from fa.gradients.blocks import ColumnBlocks
from fa.utils.validation import check

Block = tuple[Tensor, Bool[np.ndarray, " p"]]
"""A block of d (n_k,), and which of the gradients read for it hold NaN or Inf."""


class Application(ABC):
    """A way to compute a block of d from the same block of the gradients."""

    @abstractmethod
    def apply(self, G: Tensor, out: Tensor | None) -> Block:
        """Compute d for one block G (p, n_k) of the gradients, in `out` (n_k,) unless that is None.

        Args:
            G: A block (p, n_k) of the gradients.
            out: Tensor (n_k,) for d, or None.

        Returns:
            The block of d, and the gradients that hold NaN or Inf in it.
        """


@dataclass(frozen=True)
class WeightedSum(Application):
    """d = sum_i weights_i g_i. Gradients of weight 0 are not read."""

    weights: Float64[np.ndarray, " p"]

    def apply(self, G: Tensor, out: Tensor | None) -> Block:
        return kernels.combine(G, self.weights, out)


@dataclass(frozen=True)
class OrderStatistic:
    """A statistic of the sorted values of a coordinate.

    Attributes:
        first: Index of the first of the values whose mean is the centre.
        stop: Index behind the last of them.
        nearest: Number of values nearest the centre whose mean is the result. 0: the result is the centre.
    """

    first: int
    stop: int
    nearest: int = 0


@dataclass(frozen=True)
class CoordinateStatistic(Application):
    """d_k = the statistic of coordinate k of the columns G^T R, with R (p, q)."""

    statistic: OrderStatistic
    R: Float64[np.ndarray, "p q"]

    def apply(self, G: Tensor, out: Tensor | None) -> Block:
        statistic = self.statistic
        return kernels.order_statistic(G, self.R, statistic.first, statistic.stop, statistic.nearest, out)


@dataclass(frozen=True)
class ComputedDirection(Application):
    """d (n,) that the rule has computed itself, for gradients in one block."""

    direction: Tensor

    def apply(self, G: Tensor, out: Tensor | None) -> Block:
        d = self.direction if out is None else out.copy_(self.direction)
        return d, np.zeros(len(G), dtype=bool)


def apply_to_blocks(
    application: Application, G: ColumnBlocks, out: Sequence[Tensor | None]
) -> tuple[list[Tensor], Bool[np.ndarray, " p"]]:
    """Apply a decision to all blocks in this process; see `Application.apply`.

    Args:
        application: How d is computed.
        G: The blocks.
        out: A tensor (n_k,) or None for each block.

    Returns:
        The blocks of d, and the gradients that hold NaN or Inf in one of them.
    """
    blocks = [application.apply(block, place) for block, place in zip(G.blocks, out, strict=True)]
    not_finite = reduce(np.logical_or, (rows for _, rows in blocks))
    return [d for d, _ in blocks], not_finite


def check_out(out: Tensor, G: Tensor) -> None:
    """Check that `out` can hold a direction of the gradients G (p, n): (n,), contiguous, of their dtype and device.

    Args:
        out: Tensor for the direction.
        G: Gradients (p, n).

    Raises:
        ValueError: `out` is not a tensor, requires a gradient, or has another shape, dtype, device or memory order.
    """
    check("out", type(out).__name__, isinstance(out, Tensor), "a tensor")
    check("out", "one that requires a gradient", not out.requires_grad, "a tensor without a graph")
    kind = (tuple(out.shape), out.dtype, out.device)
    check("out", kind, kind == ((G.shape[1],), G.dtype, G.device), f"({(G.shape[1],)}, {G.dtype}, {G.device})")
    check("out", f"of stride {out.stride()}", out.is_contiguous(), "contiguous")


def overlap(one: Tensor, other: Tensor) -> bool:
    """Return True if two tensors of one device lie in overlapping ranges of memory.

    Args:
        one: A tensor.
        other: Another tensor.
    """
    (start, stop), (first, last) = _memory_range(one), _memory_range(other)
    return one.device == other.device and start < last and first < stop


def _memory_range(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses of the first byte, and of the byte behind the last one."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
