"""The gradient matrix G (p, n) in blocks of its columns, all of them in this process or some in others.

Inner products and the largest entry of a row are sums or maxima over blocks. A rule therefore does not depend on where
the blocks are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fa.gradients.inputs import by_rows

Gather = Callable[[np.ndarray], np.ndarray]
"""Stack a small array of each process, (processes, ...), in the same order and with the same bits in all of them."""


def local_only(array: np.ndarray) -> np.ndarray:
    """Stack the array of a process that holds all blocks: the `Gather` of one process.

    Args:
        array: Array of this process.

    Returns:
        A view with a first dimension of size 1.
    """
    return array[None]


@dataclass(frozen=True)
class ColumnBlocks:
    """The blocks of G in this process, and the way to combine results with other processes.

    All processes must call the methods in the same order. They do if their calls depend only on earlier results.
    """

    blocks: Sequence[Tensor]
    """Blocks (p, n_k) of this process, at least one; n_k may be 0."""
    gather: Gather = local_only
    """Stacks an array of each process."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(map(by_rows, self.blocks)))  # as the compiled passes read them

    @property
    def p(self) -> int:
        """Return the number of gradients."""
        return int(self.blocks[0].shape[0])

    def coordinate_count(self) -> int:
        """Count the coordinates n in all blocks of all processes."""
        return int(self.sum_over_blocks(lambda block: np.array([block.shape[1]]))[0])

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Return the data types of the blocks, which may differ."""
        return {block.dtype for block in self.blocks}

    @property
    def on_cpu(self) -> bool:
        """Return True if the blocks are in the CPU's memory."""
        return self.blocks[0].device.type == "cpu"

    def sum_over_blocks(self, one_pass: Callable[[Tensor], np.ndarray]) -> np.ndarray:
        """Sum the results of a function over the blocks of all processes.

        Args:
            one_pass: Function of a block (p, n_k); its results have one shape.

        Returns:
            The sum, of the shape of one result.
        """
        local: np.ndarray = sum((one_pass(block) for block in self.blocks), np.zeros(()))
        total: np.ndarray = self.gather(local).sum(axis=0)
        return total

    def max_over_blocks(self, one_pass: Callable[[Tensor], np.ndarray]) -> np.ndarray:
        """Take the elementwise maximum of the results of a function over the blocks of all processes.

        Args:
            one_pass: Function of a block (p, n_k); its results have one shape.

        Returns:
            The maximum, of the shape of one result.
        """
        local: np.ndarray = np.max([one_pass(block) for block in self.blocks], axis=0)
        largest: np.ndarray = self.gather(local).max(axis=0)
        return largest
