"""The gradient matrix G (p, n) by parts of its columns, all of which one holds or some of which others do.

What a pass over the coordinates finds (inner products, the largest entry of a row) is a sum or a maximum over parts, so
that a rule need not know where the parts are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Gather = Callable[[np.ndarray], np.ndarray]
"""A small array to those of all the holders of parts, (holders, ...), in one order and with the same bits for all."""


def alone(own: np.ndarray) -> np.ndarray:
    """The `Gather` of who holds all the parts."""
    return own[None]


@dataclass(frozen=True)
class Columns:
    """The parts (p, n_k) of G that are held here (n_k may be 0), and how to hear of those that others hold.

    All holders must call the methods in the same order. They do so as long as what they call depends on nothing but
    what the methods returned.
    """

    parts: Sequence[Tensor]
    gather: Gather = alone

    @property
    def p(self) -> int:
        """The number of gradients."""
        return int(self.parts[0].shape[0])

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Of the parts, which need not be of one."""
        return {part.dtype for part in self.parts}

    def total(self, one_pass: Callable[[Tensor], np.ndarray]) -> np.ndarray:
        """The sum over all parts of what the pass gives."""
        own: np.ndarray = sum((one_pass(part) for part in self.parts), np.zeros(()))
        total: np.ndarray = self.gather(own).sum(axis=0)
        return total

    def largest(self, one_pass: Callable[[Tensor], np.ndarray]) -> np.ndarray:
        """The maximum over all parts of what the pass gives."""
        own: np.ndarray = np.max([one_pass(part) for part in self.parts], axis=0)
        largest: np.ndarray = self.gather(own).max(axis=0)
        return largest
