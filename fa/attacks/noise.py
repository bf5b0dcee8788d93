"""Attacks that send random vectors, or the worker's own gradient with random losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from fa.attacks.base import Streams, honest_rows, send_all

DROPPED = 0.1
"""Default probability that "drop" loses a coordinate, and that "chunk_loss" loses a chunk."""

CHUNK = 360
"""Coordinates, of four bytes, in a datagram: with its headers it fits into the 1500 bytes of an Ethernet frame."""


def random(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Draw each coordinate uniformly from [0, 1): the paper's attack.

    Args:
        G, byzantine, streams: As for `fa.attacks.Writer`.
    """
    for worker in byzantine:
        _uniform(G[worker], 0, 1, streams(worker))


def random_shared(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Draw one vector uniformly from [0, 1) for all Byzantine workers: the released code's attack.

    There, all Byzantine processes draw from generators with the same seed, and send equal vectors.

    Args:
        G, byzantine, streams: As for `fa.attacks.Writer`.
    """
    if byzantine:
        first = byzantine[0]
        _uniform(G[first], 0, 1, streams(first))
        send_all(G[first], G, byzantine[1:])


def random_reached(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Draw as "random", but send 0 in the coordinates in which every honest gradient is 0.

    Args:
        G, byzantine, streams: As for `fa.attacks.Writer`.
    """
    reached = reduce(torch.logical_or, (row != 0 for row in honest_rows(G, byzantine)))
    for worker in byzantine:
        _uniform(G[worker], 0, 1, streams(worker))
        G[worker].mul_(reached)


def random_symmetric(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Draw each coordinate uniformly from [-1, 1).

    Args:
        G, byzantine, streams: As for `fa.attacks.Writer`.
    """
    for worker in byzantine:
        _uniform(G[worker], -1, 1, streams(worker))


def gaussian(G: Tensor, byzantine: Sequence[int], streams: Streams, mean: float = 0.0, std: float = 1.0) -> None:
    """Draw each coordinate from a normal distribution. Blanchard et al., NIPS 2017, use a standard deviation of 200.

    Args:
        G, byzantine, streams: As for `fa.attacks.Writer`.
        mean: Mean of a coordinate.
        std: Standard deviation of a coordinate.
    """
    for worker in byzantine:
        _normal(G[worker], mean, std, streams(worker))


def random_honest_norm(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Draw a direction uniformly, with the honest gradients' median norm: checks of norms cannot detect it.

    Args:
        G, byzantine, streams: As for `fa.attacks.Writer`.
    """
    length = _honest_norm(G, byzantine)
    for worker in byzantine:
        _sphere(G[worker], length, streams(worker))


def collude(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Draw as "random_honest_norm", with the same vector for all Byzantine workers.

    Args:
        G, byzantine, streams: As for `fa.attacks.Writer`.
    """
    if byzantine:
        first = byzantine[0]
        _sphere(G[first], _honest_norm(G, byzantine), streams(first))
        send_all(G[first], G, byzantine[1:])


def drop(G: Tensor, byzantine: Sequence[int], streams: Streams, rate: float = DROPPED) -> None:
    """Set each coordinate of the worker's own gradient to zero with probability `rate`.

    Args:
        G, byzantine, streams: As for `fa.attacks.Writer`.
        rate: Probability of a loss, in [0, 1].
    """
    for worker in byzantine:
        lost = torch.rand(G.shape[1], dtype=torch.float32, device="cpu", generator=streams(worker)) < rate
        G[worker].masked_fill_(lost.to(G.device), 0)


def chunk_loss(G: Tensor, byzantine: Sequence[int], streams: Streams, rate: float = DROPPED) -> None:
    """Set each chunk of the worker's own gradient to zero with probability `rate`, as a link that loses datagrams.

    Args:
        G, byzantine, streams: As for `fa.attacks.Writer`.
        rate: Probability of a loss, in [0, 1].
    """
    n = G.shape[1]
    for worker in byzantine:
        draws = torch.rand(-(-n // CHUNK), dtype=torch.float32, device="cpu", generator=streams(worker))
        G[worker].masked_fill_((draws < rate).to(G.device).repeat_interleave(CHUNK)[:n], 0)


def _honest_norm(G: Tensor, byzantine: Sequence[int]) -> Tensor:
    """Return the median of the honest gradients' norms, a float64 scalar."""
    return torch.stack([_norm(row) for row in honest_rows(G, byzantine)]).quantile(0.5)


def _norm(row: Tensor) -> Tensor:
    """Return a gradient's norm, a float64 scalar, also where the squares of its entries leave float64's range."""
    norm: Tensor = torch.linalg.vector_norm(row, dtype=torch.float64)
    if 0 < norm < torch.inf:
        return norm
    largest = row.abs().max().double()
    if not 0 < largest < torch.inf:
        return norm
    scaled: Tensor = largest * torch.linalg.vector_norm(row / largest, dtype=torch.float64)
    return scaled


def _uniform(row: Tensor, low: float, high: float, stream: torch.Generator) -> None:
    _fill(row, lambda vector: vector.uniform_(low, high, generator=stream))


def _normal(row: Tensor, mean: float, std: float, stream: torch.Generator) -> None:
    _fill(row, lambda vector: vector.normal_(mean, std, generator=stream))


def _fill(row: Tensor, draw: Callable[[Tensor], Tensor]) -> None:
    """Fill a row in place, with the numbers that a contiguous vector on the CPU would have."""
    if row.device.type == "cpu" and row.is_contiguous():
        draw(row)
    else:
        row.copy_(draw(torch.empty(row.shape, dtype=row.dtype, device="cpu")))


def _sphere(row: Tensor, length: Tensor, stream: torch.Generator) -> None:
    """Fill a row with a vector of this length whose direction is uniform on the sphere."""
    _normal(row, 0.0, 1.0, stream)
    row.mul_(length / torch.linalg.vector_norm(row, dtype=torch.float64))
