"""The class of all attacks, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fa.utils import plugins
from fa.utils.seeds import generator
from fa.utils.validation import check, check_integer

Streams = Callable[[int], torch.Generator]
"""Maps a Byzantine worker's rank to its generator for this iteration; on the CPU unless the attack is a user's."""

Writer = Callable[..., None]
"""Fills the rows of G (p, n) that belong to the Byzantine workers; all other rows are honest.

Its arguments are G, the Byzantine ranks and `Streams`, then the options by keyword. An attack that uses the rule also
receives `rule` and `iteration` by keyword.
"""


@dataclass(frozen=True)
class Attack:
    """Describe an attack.

    Attributes:
        name: Name of the attack.
        uses_own_gradient: True if the Byzantine rows must first hold those workers' own gradients.
        write: Function that fills the Byzantine rows.
        options: Further keyword arguments of `write`.
        flips_labels: True if Byzantine workers train on flipped labels: class c becomes the last class minus c.
        uses_rule: True if `write` also takes the keyword arguments `rule`, a `fa.Rule` or None, and `iteration`.
        rule: The rule in use, if `uses_rule`.
        builtin: True for the attacks of this package.
        source: Name with which `fa.utils.plugins.load` finds the attack again; "" for attacks with another origin.
    """

    name: str
    uses_own_gradient: bool
    write: Writer
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    flips_labels: bool = False
    uses_rule: bool = False
    rule: Any = None
    builtin: bool = False
    source: str = ""

    def __reduce__(self) -> tuple[Callable[..., Attack], tuple[dict[str, Any]]]:
        """Support copy and pickle; other processes lack the modules of users' files."""
        state = {option.name: getattr(self, option.name) for option in fields(self)}
        if self.source:
            del state["write"]
        return _restore, (state | {"options": dict(self.options)},)

    def apply(self, G: Tensor, byzantine: Iterable[Any], seed: int, iteration: int) -> None:
        """Overwrite the Byzantine rows of G in place; equal arguments write equal rows.

        Args:
            G: Gradient matrix (p, n).
            byzantine: Different ranks of the Byzantine workers, fewer than p.
            seed: Seed of the run.
            iteration: Iteration of the run.

        Raises:
            ValueError: An argument is invalid, or a user's attack has changed an honest row.
        """
        check("G", type(G).__name__, isinstance(G, Tensor), "a tensor", "fa.attack accepts arrays.")
        ranks = _ranks(byzantine, len(G))
        check_integer("seed", seed, 0)
        check_integer("iteration", iteration, 0)
        device = torch.device("cpu") if self.builtin else G.device
        honest = [] if self.builtin else [worker for worker in range(len(G)) if worker not in ranks]
        before = [_sum_of_bytes(G[worker]) for worker in honest]
        options = dict(self.options) | ({"rule": self.rule, "iteration": iteration} if self.uses_rule else {})
        with plugins.attribute_errors_to_plugin("attack"):
            self.write(G, ranks, lambda worker: generator("attack", seed, worker, iteration, device), **options)
        for worker, total in zip(honest, before, strict=True):
            needed = f"one that writes the Byzantine workers' rows alone, and not worker {worker}'s"
            check("attack", self.name, _sum_of_bytes(G[worker]) == total, needed)


def _ranks(byzantine: Iterable[Any], p: int) -> list[int]:
    """Check the ranks of the Byzantine workers, and return a list, by which G[ranks] are their rows."""
    check("byzantine", byzantine, isinstance(byzantine, Iterable), "the ranks of the Byzantine workers")
    ranks = tuple(byzantine)
    whole = all(isinstance(rank, int | np.integer) and 0 <= rank < p for rank in ranks)
    needed = f"different ranks from 0 to {p - 1}, fewer than the {p} workers"
    check("byzantine", byzantine, whole and len(set(ranks)) == len(ranks) < p, needed)
    return [int(rank) for rank in ranks]


def _restore(state: dict[str, Any]) -> Attack:
    """Create an attack from its fields; the function of a user's file or library is loaded."""
    write = state["write"] if "write" in state else plugins.load("attack", state["source"]).write
    return Attack(**state | {"write": write, "options": MappingProxyType(state["options"])})


def _sum_of_bytes(row: Tensor) -> int:
    """Sum the bytes of a row, to detect changes, also in NaN. A permutation of its bytes is not detected."""
    return int(row.contiguous().view(torch.uint8).sum(dtype=torch.int64))


def send_all(vector: Tensor, G: Tensor, byzantine: Sequence[int]) -> None:
    """Write one vector (n,) into the rows of all Byzantine workers.

    Args:
        vector: The vector (n,).
        G: Gradient matrix (p, n), changed in place.
        byzantine: Ranks of the Byzantine workers.
    """
    for worker in byzantine:
        G[worker].copy_(vector)


def honest_rows(G: Tensor, byzantine: Sequence[int]) -> Tensor:
    """Return the honest rows of G; a view if the Byzantine rows come first.

    Args:
        G: Gradient matrix (p, n).
        byzantine: Ranks of the Byzantine workers.

    Returns:
        The other rows, (h, n).
    """
    if tuple(byzantine) == tuple(range(len(byzantine))):
        return G[len(byzantine) :]
    return G[[worker for worker in range(len(G)) if worker not in byzantine]]
