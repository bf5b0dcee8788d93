"""What faulty workers send instead of their gradients.

An attack writes the faulty rows of the gradient matrix in place, after the honest rows are there. Its random numbers
come from generators of (seed, worker, iteration), one a faulty worker, on the device of the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from types import MappingProxyType

import torch
from torch import Tensor

from fa.utils import plugins
from fa.utils.seeds import generator
from fa.utils.validation import check, check_one_of

DROPPED = 0.1
"""The share of its coordinates, or of its chunks, that a worker under "drop", or "chunk_loss", loses."""

CHUNK = 360
"""Coordinates, of four bytes, in a datagram: with its headers it fits into the 1500 bytes of an Ethernet frame."""

OPPOSED = 0.1
"""By how much the "ipm" attack shortens the honest mean that it turns round: short enough for distances to trust it."""

Streams = Callable[[int], torch.Generator]
"""A faulty worker's rank to its generator for this iteration."""

Writer = Callable[[Tensor, Sequence[int], Streams], None]
"""Fills the rows of G (p, n) that belong to the faulty workers; all the other rows are honest."""


@dataclass(frozen=True)
class Attack:
    """A way of being faulty. `uses_own_gradient`: the faulty rows must hold those workers' own gradients beforehand."""

    name: str
    uses_own_gradient: bool
    write: Writer

    def apply(self, G: Tensor, byzantine: Sequence[int], seed: int, iteration: int) -> None:
        """Overwrite the rows `byzantine` of G (p, n) in place; equal arguments write equal rows."""
        of_ours = ATTACKS.get(self.name) is self
        honest = [] if of_ours else [worker for worker in range(len(G)) if worker not in byzantine]
        before = [_sum_of_bytes(G[worker]) for worker in honest]
        with plugins.attribute_errors_to_plugin("attack"):
            self.write(G, byzantine, lambda worker: generator("attack", seed, worker, iteration, G.device))
        for worker, total in zip(honest, before, strict=True):
            needed = f"one that writes the faulty workers' rows alone, and not worker {worker}'s"
            check("attack", self.name, _sum_of_bytes(G[worker]) == total, needed)


def _sum_of_bytes(row: Tensor) -> int:
    """What a row's being written to changes, NaN or not, unless the same numbers change places."""
    return int(row.contiguous().view(torch.uint8).sum(dtype=torch.int64))


def make_attack(name: str) -> Attack:
    """The attack of that name: one of ATTACKS, FILE.py:NAME for an `Attack` of the user's own, or one that an installed
    package brings (entry point "fa.attacks"). ValueError where there is none.
    """
    if name in ATTACKS:
        return ATTACKS[name]
    found = plugins.load("attack", name)
    if found is None:
        check_one_of("attack", name, tuple(ATTACKS), plugins.OTHER_SPECS)
    check("attack", name, isinstance(found, Attack), "a fa.attacks.Attack")
    return found  # type: ignore[no-any-return]


def _random(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Each coordinate uniform in [0, 1): the paper's attack."""
    for worker in byzantine:
        G[worker].uniform_(0, 1, generator=streams(worker))


def _random_shared(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """One vector, uniform in [0, 1), from all Byzantine workers: the released code's attack.

    Its Byzantine processes draw from generators with one seed that they use alike, so that their vectors are equal.
    """
    if byzantine:
        first = byzantine[0]
        G[first].uniform_(0, 1, generator=streams(first))
        _all_send(G[first], G, byzantine[1:])


def _random_symmetric(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Each coordinate uniform in [-1, 1)."""
    for worker in byzantine:
        G[worker].uniform_(-1, 1, generator=streams(worker))


def _random_honest_norm(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """A direction uniform on the sphere with the honest gradients' median norm, which no check of norms can see."""
    length = _honest_norm(G, byzantine)
    for worker in byzantine:
        _sphere(G[worker], length, streams(worker))


def _collude(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """As "random_honest_norm", but all faulty workers send the same vector."""
    if byzantine:
        first = byzantine[0]
        _sphere(G[first], _honest_norm(G, byzantine), streams(first))
        _all_send(G[first], G, byzantine[1:])


def _alie(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """The honest mean less z standard deviations, in each coordinate: near enough to hide among the honest.

    With z so that s honest gradients, whom the faulty ones need to be a majority, are expected to lie farther out; 0
    where s is more than half of them. Baruch et al., A Little Is Enough, NeurIPS 2019, algorithm 3.
    """
    honest = _honest(G, byzantine)
    needed = len(G) // 2 + 1 - len(byzantine)
    share = 1 - max(needed, 1) / len(honest)
    deviation, mean = torch.std_mean(honest, dim=0, correction=0)
    _all_send(mean - NormalDist().inv_cdf(max(share, 0.5)) * deviation, G, byzantine)


def _ipm(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """The honest mean, turned round and shortened: inner product manipulation.

    Xie et al., Fall of Empires, UAI 2019.
    """
    _all_send(-OPPOSED * _honest(G, byzantine).mean(dim=0), G, byzantine)


def _mimic(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """The first honest worker's gradient, which then counts f + 1 times: Karimireddy et al., ICLR 2022."""
    _all_send(_honest(G, byzantine)[0], G, byzantine)


def _drop(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """The worker's own gradient with each coordinate set to zero with probability 0.1."""
    for worker in byzantine:
        lost = torch.rand(G.shape[1], device=G.device, generator=streams(worker)) < DROPPED
        G[worker].masked_fill_(lost, 0)


def _chunk_loss(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """The worker's own gradient over a link that loses datagrams: each chunk is zero with probability 0.1."""
    n = G.shape[1]
    for worker in byzantine:
        lost = torch.rand(-(-n // CHUNK), device=G.device, generator=streams(worker)) < DROPPED
        G[worker].masked_fill_(lost.repeat_interleave(CHUNK)[:n], 0)


def _sign_flip(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """The worker's own gradient, negated."""
    for worker in byzantine:
        G[worker].neg_()


def _all_send(vector: Tensor, G: Tensor, byzantine: Sequence[int]) -> None:
    for worker in byzantine:
        G[worker].copy_(vector)


def _honest(G: Tensor, byzantine: Sequence[int]) -> Tensor:
    """The honest rows of G; a view where the faulty ones are the first."""
    if tuple(byzantine) == tuple(range(len(byzantine))):
        return G[len(byzantine) :]
    return G[[worker for worker in range(len(G)) if worker not in byzantine]]


def _honest_norm(G: Tensor, byzantine: Sequence[int]) -> Tensor:
    """The median of the honest gradients' norms, a float64 scalar."""
    norms = torch.stack([torch.linalg.vector_norm(row, dtype=torch.float64) for row in _honest(G, byzantine)])
    return norms.quantile(0.5)


def _sphere(row: Tensor, length: Tensor, stream: torch.Generator) -> None:
    """Fill a row with a vector of this length whose direction is uniform on the sphere."""
    row.normal_(generator=stream)
    row.mul_(length / torch.linalg.vector_norm(row, dtype=torch.float64))


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
            Attack("random_shared", False, _random_shared),
            Attack("collude", False, _collude),
            Attack("alie", False, _alie),
            Attack("ipm", False, _ipm),
            Attack("mimic", False, _mimic),
            Attack("drop", True, _drop),
            Attack("chunk_loss", True, _chunk_loss),
            Attack("sign_flip", True, _sign_flip),
            Attack("zero", False, _constant(0.0)),
            Attack("nan", False, _constant(float("nan"))),
            Attack("none", True, _nothing),
        )
    }
)
"""Every attack by its name."""
