"""What faulty workers send instead of their gradients.

An attack writes the faulty rows of the gradient matrix in place, after the honest rows are there. Its random numbers
come from generators of (seed, worker, iteration), one a faulty worker, on the device of the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from fa.checks import check_one_of
from fa.seeds import generator

DROPPED = 0.1
"""The share of its coordinates that a worker under the "drop" attack loses."""

Streams = Callable[[int], torch.Generator]
"""A faulty worker's rank to its generator for this iteration."""

Writer = Callable[[Tensor, Sequence[int], Streams], None]
"""Fills the rows of G (p, n) that belong to the faulty workers; all the other rows are honest."""


@dataclass(frozen=True)
class Attack:
    """A way of being faulty. `needs_own`: the faulty rows must hold those workers' own gradients beforehand."""

    name: str
    needs_own: bool
    write: Writer

    def apply(self, G: Tensor, byzantine: Sequence[int], seed: int, iteration: int) -> None:
        """Overwrite the rows `byzantine` of G (p, n) in place; equal arguments write equal rows."""
        self.write(G, byzantine, lambda worker: generator("attack", seed, worker, iteration, G.device))


def make_attack(name: str) -> Attack:
    """The attack of that name; ValueError where there is none."""
    check_one_of("attack", name, tuple(ATTACKS))
    return ATTACKS[name]


def _random(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Each coordinate uniform in [0, 1): the paper's attack."""
    for worker in byzantine:
        G[worker].uniform_(0, 1, generator=streams(worker))


def _random_symmetric(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Each coordinate uniform in [-1, 1)."""
    for worker in byzantine:
        G[worker].uniform_(-1, 1, generator=streams(worker))


def _random_honest_norm(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """A direction uniform on the sphere with the honest gradients' median norm, which no check of norms can see."""
    honest = [worker for worker in range(len(G)) if worker not in byzantine]
    norms = torch.stack([torch.linalg.vector_norm(G[worker], dtype=torch.float64) for worker in honest])
    length = norms.quantile(0.5)
    for worker in byzantine:
        row = G[worker].normal_(generator=streams(worker))
        row.mul_(length / torch.linalg.vector_norm(row, dtype=torch.float64))


def _drop(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """The worker's own gradient with each coordinate set to zero with probability 0.1."""
    for worker in byzantine:
        lost = torch.rand(G.shape[1], device=G.device, generator=streams(worker)) < DROPPED
        G[worker].masked_fill_(lost, 0)


def _sign_flip(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """The worker's own gradient, negated."""
    for worker in byzantine:
        G[worker].neg_()


def _constant(value: float) -> Writer:
    def write(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
        for worker in byzantine:
            G[worker].fill_(value)

    return write


def _nothing(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """The worker's own gradient: faulty in name only."""


ATTACKS = MappingProxyType(
    {
        attack.name: attack
        for attack in (
            Attack("random", False, _random),
            Attack("random_symmetric", False, _random_symmetric),
            Attack("random_honest_norm", False, _random_honest_norm),
            Attack("drop", True, _drop),
            Attack("sign_flip", True, _sign_flip),
            Attack("zero", False, _constant(0.0)),
            Attack("nan", False, _constant(float("nan"))),
            Attack("none", True, _nothing),
        )
    }
)
"""Every attack by its name."""
