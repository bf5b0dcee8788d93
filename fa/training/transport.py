"""The seam between the loop and where gradients come from."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from fa.training.flat import Buffers


class Gathered(NamedTuple):
    """One iteration's gradients as the server receives them."""

    G: Tensor
    """(p, n) float32, faulty rows as their workers sent them; overwritten by the next iteration."""
    loss: Tensor
    """Scalar: the mean of the honest workers' minibatch losses."""


@runtime_checkable
class Transport(Protocol):
    """Hands the loop the p gradients of an iteration, however they come."""

    def gradients(self, iteration: int, parameters: Tensor) -> Gathered:
        """The gradients at `parameters` (n,), which all workers hold once this returns."""
        ...

    def statistics(self) -> list[Buffers]:
        """The honest workers' batch-norm statistics."""
        ...
