"""Attacks that know the honest gradients: most send the honest mean, shifted along a direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from fa.attacks.base import Streams, Writer, honest_rows, send_all
from fa.gradients.measurement import measure

OPPOSED = 0.1
"""Default length of the "ipm" vector, relative to the honest mean. It is short, so that distances do not show it."""

DIRECTIONS = ("std", "mean", "sign")
"""Directions of a shift: minus the standard deviation of each coordinate, minus the mean, minus the mean's signs."""


def alie(G: Tensor, byzantine: Sequence[int], streams: Streams, factor: float | None = None) -> None:
    """Send the honest mean minus `factor` standard deviations in each coordinate, which is close to honest gradients.

    Byzantine workers need s honest gradients for a majority. By default, `factor` is chosen such that s of them are
    expected to lie farther out, or 0 if s exceeds half of them. Baruch et al., A Little Is Enough, NeurIPS 2019,
    algorithm 3.

    Args:
        G, byzantine, streams: As for `fa.attacks.Writer`.
        factor: Number of standard deviations; None for the default above.
    """
    honest = honest_rows(G, byzantine)
    if factor is None:
        needed = len(G) // 2 + 1 - len(byzantine)
        share = 1 - max(needed, 1) / len(honest)
        factor = NormalDist().inv_cdf(max(share, 0.5))
    deviation, mean = torch.std_mean(honest, dim=0, correction=0)
    send_all(mean - factor * deviation, G, byzantine)


def ipm(G: Tensor, byzantine: Sequence[int], streams: Streams, factor: float = OPPOSED) -> None:
    """Send the honest mean times -`factor`: inner product manipulation.

    Xie et al., Fall of Empires, UAI 2019.

    Args:
        G, byzantine, streams: As for `fa.attacks.Writer`.
        factor: Length of the vector, relative to the honest mean.
    """
    send_all(-factor * honest_rows(G, byzantine).mean(dim=0), G, byzantine)


def mimic(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Copy the first honest worker's gradient, which then counts f + 1 times: Karimireddy et al., ICLR 2022.

    Args:
        G, byzantine, streams: As for `fa.attacks.Writer`.
    """
    send_all(honest_rows(G, byzantine)[0], G, byzantine)


def sign_flip(G: Tensor, byzantine: Sequence[int], streams: Streams, gradient: str = "own") -> None:
    """Negate the worker's own gradient, or the honest mean.

    Args:
        G, byzantine, streams: As for `fa.attacks.Writer`.
        gradient: "own" or "mean".
    """
    if gradient == "mean":
        ipm(G, byzantine, streams, factor=1.0)
        return
    for worker in byzantine:
        G[worker].neg_()


def min_max(G: Tensor, byzantine: Sequence[int], streams: Streams, direction: str = "std") -> None:
    """Shift the honest mean as far as no honest gradient is farther away than two honest gradients can be.

    Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021. The largest shift is the root of a quadratic.

    Args:
        G, byzantine, streams: As for `fa.attacks.Writer`.
        direction: A name in `DIRECTIONS`.
    """
    shift = Shift(honest_rows(G, byzantine), direction)
    with np.errstate(all="ignore"):  # Gradients that are not finite, or too long, give a vector that is not finite.
        bound = shift.squared_distances().max(initial=0.0)
        room = np.maximum(bound - shift.squares, 0.0)
        roots = np.sqrt(np.square(shift.products) + shift.length**2 * room) - shift.products
        factor = float((roots / shift.length**2).min()) if shift.length else 0.0
    send_all(shift.vector(factor), G, byzantine)


def min_sum(G: Tensor, byzantine: Sequence[int], streams: Streams, direction: str = "std") -> None:
    """Shift the honest mean as far as its squared distances sum to at most the largest sum of an honest gradient.

    Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021.

    Args:
        G, byzantine, streams: As for `fa.attacks.Writer`.
        direction: A name in `DIRECTIONS`.
    """
    shift = Shift(honest_rows(G, byzantine), direction)
    with np.errstate(all="ignore"):
        bound = shift.squared_distances().sum(axis=1).max(initial=0.0)
        room = max(bound - shift.squares.sum(), 0.0)
        factor = math.sqrt(room / len(shift.squares)) / shift.length if shift.length else 0.0
    send_all(shift.vector(factor), G, byzantine)


class Shift:
    """The line of vectors mean + x * direction, and its position among the honest gradients.

    Attributes:
        mean: Honest mean (n,).
        direction: Direction (n,).
        length: Norm of the direction.
        squares: Squared distances of the honest gradients to the mean.
        products: Inner products of mean - g_i with the direction.
    """

    def __init__(self, honest: Tensor, direction: str) -> None:
        """Compute a line.

        Args:
            honest: Honest gradients (h, n).
            direction: A name in `DIRECTIONS`.
        """
        self._honest = honest
        deviation, self.mean = torch.std_mean(honest, dim=0, correction=0)
        self.direction = {"std": deviation, "mean": self.mean, "sign": self.mean.sign()}[direction].neg()
        wide, mean = self.direction.double(), self.mean.double()
        self.length = np.float64(torch.linalg.vector_norm(wide).item())  # Its square may be infinite.
        differences = (mean - row.double() for row in honest)
        pairs = [(float(difference @ difference), float(difference @ wide)) for difference in differences]
        self.squares, self.products = np.array(pairs).T

    def vector(self, factor: float) -> Tensor:
        """Return mean + factor * direction (n,).

        Args:
            factor: Position x on the line.
        """
        return self.mean + factor * self.direction

    def squared_distances(self) -> np.ndarray:
        """Compute the squared distances (h, h) of the honest gradients."""
        gram, _ = measure(self._honest)
        squared: np.ndarray = gram.scale * (gram.scale * gram.D2)  # infinite where a float's square would raise
        return squared


def constant(value: float) -> Writer:
    """Return a writer that fills the rows with a value.

    Args:
        value: Value of each coordinate.

    Returns:
        The writer.
    """
    return partial(_fill, value)


def _fill(value: float, G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    for worker in byzantine:
        G[worker].fill_(value)


def nothing(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Leave the worker's own gradient unchanged.

    Args:
        G, byzantine, streams: As for `fa.attacks.Writer`.
    """
