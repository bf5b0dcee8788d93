"""The rules over the processes of a group, each with one gradient. No process holds all gradients.

The n coordinates are cut into p slices, and rank r serves slice r:

1. all-to-all: each rank sends each slice of its gradient to the rank that serves it, which then has G (p, n/p).
2. Each rank computes its part of the Gram matrix. All ranks sum the p^2 entries in the same order.
3. Each rank decides. The decisions are equal, since the bits are.
4. Each rank applies the decision to its slice, which gives n/p coordinates of d.
5. all-gather: each rank sends its slice of d to all others.

Rules that need no Gram matrix skip step 2. The ranks then exchange which gradients have NaN or Inf in step 4. Decisions
and passes are those of `fa.rules`.

Each rank sends, and receives as many:

- (p - 1) n/p coordinates in step 1, and again in step 5. The sum, 2 (p - 1) n/p, equals a ring all-reduce of one
  gradient.
- (p - 1) p^2 float64 numbers in step 2: 0.4 KB at p = 4, 1.7 MB at p = 60.

No cheaper scheme exists for a rule that needs all pairs. K needs all gradients of a coordinate in one place, which is
step 1, the first half of an all-reduce. Once the weights are known, each sum is already in place, so only the second
half follows. Krum's d is one rank's gradient, but its broadcast would send n coordinates, not n/p.

This protects from a wrong gradient, not from a wrong process: each process serves coordinates and could write
anything into them. A process that dies ends the run, as in any collective. For workers that are not trusted, use the
parameter server of `fa.training.transports.tcp`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fa.gradients import read
from fa.gradients.blocks import ColumnBlocks
from fa.gradients.inputs import DTYPES
from fa.rules import Aggregate, Decision, Rule, as_rule
from fa.rules.application import check_out, overlap
from fa.utils.validation import check


@dataclass(frozen=True)
class Sent:
    """A vector in transit.

    Attributes:
        vector: The vector (n,) of this rank.
        received: The slices of all ranks' vectors that this rank serves, concatenated. Valid once `work` is done.
        work: Handle of the all-to-all.
    """

    vector: Tensor
    received: Tensor
    work: Any


class Shards:
    """A process group that aggregates gradients.

    Memory for received slices (n coordinates) is reused, since mapping new memory takes a quarter of an all-reduce's
    time.

    Tensors that were passed to collectives are stored until the next aggregation. A thread of gloo may release them
    shortly after the wait for them ends. If it is the last to release a tensor while the interpreter exits, the process
    aborts. Therefore delete this object, and wait for all ranks (`dist.barrier`), before the group is destroyed.

    Args:
        group: A process group of torch.distributed; default None, the default group.

    Attributes:
        group: The process group.
        rank: Rank of this process in the group, the worker's index in decisions.
        size: Number of ranks p.

    Raises:
        ValueError: torch.distributed is not initialised.
    """

    def __init__(self, group: Any = None) -> None:
        if not dist.is_initialized():
            raise ValueError("group must be one of torch.distributed, which init_process_group has not started yet")
        self.group = dist.group.WORLD if group is None else group
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self._checked: set[tuple[torch.dtype, int]] = set()
        self._sent: list[Sent] = []
        self._in_flight: list[Tensor] = []

    def aggregate(self, g: Tensor, rule: Rule | str, iteration: int = 0, out: Tensor | None = None) -> Aggregate:
        """Aggregate the gradients of all ranks.

        A rank compares n and dtype with the other ranks only for its first gradient of that n and dtype.

        Args:
            g: This rank's gradient (n,), on a device that the group's backend supports. All ranks have one n and dtype.
            rule: The rule, or the name of one with its defaults.
            iteration: Index of the iteration, as in `fa.Rule.aggregate`; default 0.
            out: Tensor (n,) for the direction, which may be g; default None, a new tensor.

        Returns:
            Direction (n,) and decision, equal on all ranks.

        Raises:
            ValueError: n or dtype differ between ranks, the rule needs whole gradients, or as in `fa.Rule.aggregate`.
        """
        rule = as_rule(rule)
        rule.check_decides_in_gram("for gradients of many processes")
        vector = self._check(g)
        if out is not None:
            check_out(out, vector[None])
            separate = out.data_ptr() == vector.data_ptr() or not overlap(out, vector)
            check("out", "in a part of g's memory", separate, "g, or in other memory")
        d = torch.empty_like(vector) if out is None else out
        return Aggregate(d, self.finish(rule, [self.send(vector)], [d], iteration))

    def send(self, g: Tensor) -> Sent:
        """Start step 1 for one vector.

        Args:
            g: The vector (n,).

        Returns:
            The vector in transit, for `finish`.
        """
        widths = [piece.stop - piece.start for piece in self._slices(len(g))]
        own = widths[self.rank]
        received = self._buffer(own * self.size, g)
        work = dist.all_to_all_single(received, g, [own] * self.size, widths, group=self.group, async_op=True)
        return Sent(g, received, work)

    def finish(self, rule: Rule, sent: Sequence[Sent], out: Sequence[Tensor], iteration: int) -> Decision:
        """Perform steps 2 to 5 for vectors that together are the gradient.

        Args:
            rule: The rule.
            sent: Results of `send`.
            out: Tensors for the directions, one for each vector.
            iteration: Index of the iteration.

        Returns:
            The decision, equal on all ranks.
        """
        self._in_flight = []
        for one in sent:
            one.work.wait()
        slices = [self._slices(len(d)) for d in out]
        places = [d[parts[self.rank]] for d, parts in zip(out, slices, strict=True)]
        columns = ColumnBlocks(
            [one.received.view(self.size, -1) for one in sent], partial(self._gather, device=out[0].device)
        )
        _, decision = rule.aggregate_blocks(columns, iteration, places)
        pieces = [(d[piece], r) for d, parts in zip(out, slices, strict=True) for r, piece in enumerate(parts)]
        for work in [self._spread(piece, r) for piece, r in pieces if len(piece)]:
            work.wait()
        self._sent = list(sent)
        self._in_flight += [piece for piece, _ in pieces]
        return decision

    def _buffer(self, size: int, like: Tensor) -> Tensor:
        """Return memory for `size` coordinates, reused if possible."""
        for at, room in enumerate([one.received for one in self._sent]):
            if len(room) == size and room.dtype == like.dtype and room.device == like.device:
                del self._sent[at]
                return room
        return like.new_empty(size)

    def _slices(self, n: int) -> list[slice]:
        """Return the coordinates that each rank serves; a slice may be empty if n < p."""
        width = -(-n // self.size)
        return [slice(min(r * width, n), min((r + 1) * width, n)) for r in range(self.size)]

    def _spread(self, piece: Tensor, rank: int) -> Any:
        """Broadcast a rank's slice of d; gloo's all-gather would copy twice the bytes that it moves."""
        return dist.broadcast(piece, group=self.group, group_src=rank, async_op=True)

    def _gather(self, own: np.ndarray, device: torch.device) -> np.ndarray:
        """Return a small array of every rank (p, ...), in the same order on all ranks.

        One all-to-all replaces the 2 (p - 1) exchanges of a ring all-reduce.
        """
        mine = torch.from_numpy(np.asarray(own, dtype=np.float64)).to(device)
        copies = mine.expand(self.size, *mine.shape).contiguous()
        all_of_them = torch.empty_like(copies)
        dist.all_to_all_single(all_of_them, copies, group=self.group)
        self._in_flight += [copies, all_of_them]
        return all_of_them.cpu().numpy()

    def _check(self, g: Tensor) -> Tensor:
        """Return the gradient as a vector, and compare n and dtype with the other ranks' once."""
        check("g", getattr(g, "shape", g), isinstance(g, Tensor) and g.ndim == 1, "a tensor (n,)")
        vector = read(g[None]).G[0]
        kind = (vector.dtype, len(vector))
        if kind not in self._checked:
            kinds = self._gather(np.array([len(vector), DTYPES.index(vector.dtype)]), vector.device)
            kinds_by_rank = [f"{int(n)} of {str(DTYPES[int(code)]).removeprefix('torch.')}" for n, code in kinds]
            check("g", kinds_by_rank, len(set(kinds_by_rank)) == 1, "of one n and dtype on all ranks")
            self._checked.add(kind)
        return vector
