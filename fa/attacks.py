"""Attacks: vectors that Byzantine workers send instead of their gradients.

An attack overwrites the Byzantine rows of the gradient matrix, after the honest rows are complete. Its random numbers
come from one generator per Byzantine worker, seeded by (seed, worker, iteration). Built-in attacks draw on the CPU, so
that a seed gives the same vectors on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fa.gradients import read
from fa.utils import plugins
from fa.utils.seeds import generator
from fa.utils.validation import check, check_integer, check_one_of

DROPPED = 0.1
"""Probability that "drop" loses a coordinate, and that "chunk_loss" loses a chunk."""

CHUNK = 360
"""Coordinates, of four bytes, in a datagram: with its headers it fits into the 1500 bytes of an Ethernet frame."""

OPPOSED = 0.1
"""Length of the "ipm" vector, relative to the honest mean. It is short, so that rules based on distances accept it."""

Streams = Callable[[int], torch.Generator]
"""Maps a Byzantine worker's rank to its generator for this iteration; on the CPU unless the attack is a user's."""

Writer = Callable[[Tensor, Sequence[int], Streams], None]
"""Fills the rows of G (p, n) that belong to the Byzantine workers; all other rows are honest."""


@dataclass(frozen=True)
class Attack:
    """Describe an attack.

    Attributes:
        name: Name of the attack.
        uses_own_gradient: True if the Byzantine rows must first hold those workers' own gradients.
        write: Function that fills the Byzantine rows.
    """

    name: str
    uses_own_gradient: bool
    write: Writer

    def apply(self, G: Tensor, byzantine: Sequence[int], seed: int, iteration: int) -> None:
        """Overwrite the Byzantine rows of G in place; equal arguments write equal rows.

        Args:
            G: Gradient matrix (p, n).
            byzantine: Ranks of the Byzantine workers.
            seed: Seed of the run.
            iteration: Iteration of the run.

        Raises:
            ValueError: A user's attack has changed an honest row.
        """
        of_ours = ATTACKS.get(self.name) is self
        device = torch.device("cpu") if of_ours else G.device
        honest = [] if of_ours else [worker for worker in range(len(G)) if worker not in byzantine]
        before = [_sum_of_bytes(G[worker]) for worker in honest]
        with plugins.attribute_errors_to_plugin("attack"):
            self.write(G, byzantine, lambda worker: generator("attack", seed, worker, iteration, device))
        for worker, total in zip(honest, before, strict=True):
            needed = f"one that writes the faulty workers' rows alone, and not worker {worker}'s"
            check("attack", self.name, _sum_of_bytes(G[worker]) == total, needed)


def _sum_of_bytes(row: Tensor) -> int:
    """Sum the bytes of a row, to detect changes, also in NaN. A permutation of its bytes is not detected."""
    return int(row.contiguous().view(torch.uint8).sum(dtype=torch.int64))


def make_attack(name: str) -> Attack:
    """Return an attack.

    Args:
        name: A name in `ATTACKS`, "FILE.py:NAME" for a user's `Attack`, or an entry point of the group "fa.attacks".

    Raises:
        ValueError: Unknown name, or not an `Attack`.

    Example:
        >>> import torch
        >>> G = torch.ones(3, 2)
        >>> make_attack("ipm").apply(G, byzantine=[0], seed=0, iteration=1)
        >>> G[0]
        tensor([-0.1000, -0.1000])
    """
    if name in ATTACKS:
        return ATTACKS[name]
    found = plugins.load("attack", name)
    if found is None:
        check_one_of("attack", name, tuple(ATTACKS), plugins.OTHER_SPECS)
    check("attack", name, isinstance(found, Attack), "a fa.attacks.Attack")
    return found  # type: ignore[no-any-return]


def attack(G: Any, name: str, f: int, seed: int = 0, iteration: int = 0) -> Any:
    """Return a copy of G in which the first f workers are Byzantine.

    Args:
        G: Gradients (p, n), a tensor or an array. For attacks that change the worker's own gradient, the first f rows
            are those workers' gradients; otherwise they are ignored.
        name: Attack, as in `make_attack`.
        f: Number of Byzantine workers, less than p.
        seed: Seed of the attack's random numbers.
        iteration: Iteration, from which they also depend.

    Returns:
        The new gradients, of G's kind, dtype and device.

    Raises:
        ValueError: An argument is invalid, or a user's attack has changed an honest row.

    Example:
        >>> import numpy as np, fa
        >>> fa.attack(np.ones((3, 2)), "ipm", f=1)
        array([[-0.1, -0.1],
               [ 1. ,  1. ],
               [ 1. ,  1. ]])
    """
    check("G", type(G).__name__, isinstance(G, Tensor | np.ndarray), "a tensor or an array (p, n)")
    gradients = read(G)
    attacked = gradients.G.clone()
    check_integer("f", f, 0)
    check("f", f, f < len(attacked), f"less than p = {len(attacked)}, the number of gradients")
    chosen = make_attack(name)
    if f:
        chosen.apply(attacked, range(f), seed, iteration)
    return gradients.restore(attacked)


def _random(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Draw each coordinate uniformly from [0, 1): the paper's attack."""
    for worker in byzantine:
        _uniform(G[worker], 0, 1, streams(worker))


def _random_shared(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Draw one vector uniformly from [0, 1) for all Byzantine workers: the released code's attack.

    There, all Byzantine processes draw from generators with the same seed, and send equal vectors.
    """
    if byzantine:
        first = byzantine[0]
        _uniform(G[first], 0, 1, streams(first))
        _all_send(G[first], G, byzantine[1:])


def _random_symmetric(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Draw each coordinate uniformly from [-1, 1)."""
    for worker in byzantine:
        _uniform(G[worker], -1, 1, streams(worker))


def _random_honest_norm(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Draw a direction uniformly, with the honest gradients' median norm: checks of norms cannot detect it."""
    length = _honest_norm(G, byzantine)
    for worker in byzantine:
        _sphere(G[worker], length, streams(worker))


def _collude(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Draw as "random_honest_norm", with the same vector for all Byzantine workers."""
    if byzantine:
        first = byzantine[0]
        _sphere(G[first], _honest_norm(G, byzantine), streams(first))
        _all_send(G[first], G, byzantine[1:])


def _alie(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Send the honest mean minus z standard deviations in each coordinate, which is close to honest gradients.

    Byzantine workers need s honest gradients for a majority. z is chosen such that s of them are expected to lie
    farther out, or 0 if s exceeds half of them. Baruch et al., A Little Is Enough, NeurIPS 2019, algorithm 3.
    """
    honest = _honest(G, byzantine)
    needed = len(G) // 2 + 1 - len(byzantine)
    share = 1 - max(needed, 1) / len(honest)
    deviation, mean = torch.std_mean(honest, dim=0, correction=0)
    _all_send(mean - NormalDist().inv_cdf(max(share, 0.5)) * deviation, G, byzantine)


def _ipm(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Send the honest mean, negated and shortened: inner product manipulation.

    Xie et al., Fall of Empires, UAI 2019.
    """
    _all_send(-OPPOSED * _honest(G, byzantine).mean(dim=0), G, byzantine)


def _mimic(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Copy the first honest worker's gradient, which then counts f + 1 times: Karimireddy et al., ICLR 2022."""
    _all_send(_honest(G, byzantine)[0], G, byzantine)


def _drop(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Set each coordinate of the worker's own gradient to zero with probability 0.1."""
    for worker in byzantine:
        lost = torch.rand(G.shape[1], dtype=torch.float32, device="cpu", generator=streams(worker)) < DROPPED
        G[worker].masked_fill_(lost.to(G.device), 0)


def _chunk_loss(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Set each chunk of the worker's own gradient to zero with probability 0.1, as a link that loses datagrams."""
    n = G.shape[1]
    for worker in byzantine:
        lost = (torch.rand(-(-n // CHUNK), dtype=torch.float32, device="cpu", generator=streams(worker)) < DROPPED).to(
            G.device
        )
        G[worker].masked_fill_(lost.repeat_interleave(CHUNK)[:n], 0)


def _sign_flip(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Negate the worker's own gradient."""
    for worker in byzantine:
        G[worker].neg_()


def _all_send(vector: Tensor, G: Tensor, byzantine: Sequence[int]) -> None:
    for worker in byzantine:
        G[worker].copy_(vector)


def _honest(G: Tensor, byzantine: Sequence[int]) -> Tensor:
    """Return the honest rows of G; a view if the Byzantine rows come first."""
    if tuple(byzantine) == tuple(range(len(byzantine))):
        return G[len(byzantine) :]
    return G[[worker for worker in range(len(G)) if worker not in byzantine]]


def _honest_norm(G: Tensor, byzantine: Sequence[int]) -> Tensor:
    """Return the median of the honest gradients' norms, a float64 scalar."""
    norms = torch.stack([torch.linalg.vector_norm(row, dtype=torch.float64) for row in _honest(G, byzantine)])
    return norms.quantile(0.5)


def _uniform(row: Tensor, low: float, high: float, stream: torch.Generator) -> None:
    _fill(row, lambda vector: vector.uniform_(low, high, generator=stream))


def _fill(row: Tensor, draw: Callable[[Tensor], Tensor]) -> None:
    """Fill a row in place; on another device than the CPU, with numbers that are drawn on the CPU."""
    if row.device.type == "cpu":
        draw(row)
    else:
        row.copy_(draw(torch.empty(row.shape, dtype=row.dtype)))


def _sphere(row: Tensor, length: Tensor, stream: torch.Generator) -> None:
    """Fill a row with a vector of this length whose direction is uniform on the sphere."""
    _fill(row, lambda vector: vector.normal_(generator=stream))
    row.mul_(length / torch.linalg.vector_norm(row, dtype=torch.float64))


def _constant(value: float) -> Writer:
    def write(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
        for worker in byzantine:
            G[worker].fill_(value)

    return write


def _nothing(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Leave the worker's own gradient unchanged: an honest worker in fact."""


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
"""All built-in attacks by name."""
