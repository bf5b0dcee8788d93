"""The rules over the processes of a group, each with a gradient of its own: no process ever holds all the gradients.

The n coordinates are cut into p slices, and rank r serves the r-th of them:

1. all-to-all: every rank sends each slice of its gradient to the rank that serves it, which then has G (p, n/p);
2. every rank multiplies out its part of the Gram matrix; all add up everybody's p^2 numbers, in one order;
3. every rank decides, from the same bits and so alike;
4. every rank applies the decision to its slice, which gives n/p coordinates of d;
5. all-gather: every rank sends its slice of d to all others.

Rules that need no Gram matrix leave out 2; what step 4 meets of NaN and Inf is then agreed upon. The decision and the
passes are those of `fa.rules`.

Cost, in numbers that a rank sends (it receives as many): (p - 1) n/p each in 1 and 5, together what a ring all-reduce
of one gradient sends, 2 (p - 1) n/p; and (p - 1) p^2 of float64 in 2, which is 1.5 KB at p = 4, and 1.7 MB at p = 60.
Nothing cheaper exists for a rule that looks at all pairs: K needs all gradients of a coordinate in one place, which is
step 1, the first half of an all-reduce; once the weights are known the sum is in place, which is why no all-reduce of
w_i g_i follows but its second half alone. (Krum's d is one rank's gradient: to broadcast that would send n, not n/p.)

What this protects from is a faulty gradient, not a faulty process: each serves coordinates, and could write into them
what it likes; and a process that dies ends the run, as in any collective. For workers that are not trusted, there is
the parameter server of `fa.training.transports.rpc`.
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
from fa.rules import Aggregate, Decision, Rule
from fa.rules.application import check_out
from fa.utils.validation import check


@dataclass(frozen=True)
class Sent:
    """One vector on its way: `received` is the slice of all ranks' vectors that this rank serves, one after another,
    once `work` is done.
    """

    vector: Tensor
    received: Tensor
    work: Any


class Shards:
    """A process group as one who aggregates: `group` (None: torch.distributed's default one), its size p, and this
    process' rank there, by which decisions name the workers.

    It keeps the memory into which others' slices came, n numbers, for the next aggregation: new memory would take a
    quarter of an all-reduce's time to be mapped. And it keeps all tensors that it gave to collectives until then: a
    thread of gloo's may drop them a little after the wait for them has ended, and who drops a tensor last needs the
    interpreter, without which, at the end of a program, the process aborts. So let go of it, and let all wait for each
    other (`dist.barrier`), before the group is destroyed.
    """

    def __init__(self, group: Any = None) -> None:
        if not dist.is_initialized():
            raise ValueError("group must be one of torch.distributed, which init_process_group has not started yet")
        self.group = dist.group.WORLD if group is None else group
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self._met: set[tuple[torch.dtype, int]] = set()
        self._sent: list[Sent] = []
        self._lent: list[Tensor] = []

    def aggregate(self, g: Tensor, rule: Rule, iteration: int = 0, out: Tensor | None = None) -> Aggregate:
        """The direction d and the decision behind it, alike on all ranks, of the gradients of which this rank has g.

        g is (n,), of one dtype and n on all ranks, on a device that the group's backend serves; d is put into `out`
        (n,) if given, which may be g. `iteration` is as in `Rule.aggregate`, and so are the errors, which all ranks
        raise. Whether the ranks' n and dtype agree is looked at when this rank first has such a gradient.
        """
        rule.check_within_span("for gradients of many processes")
        vector = self._check(g)
        if out is not None:
            check_out(out, vector[None])
        d = torch.empty_like(vector) if out is None else out
        return Aggregate(d, self.finish(rule, [self.send(vector)], [d], iteration))

    def send(self, g: Tensor) -> Sent:
        """Start step 1 for one vector (n,)."""
        widths = [piece.stop - piece.start for piece in self._slices(len(g))]
        own = widths[self.rank]
        received = self._room(own * self.size, g)
        work = dist.all_to_all_single(received, g, [own] * self.size, widths, group=self.group, async_op=True)
        return Sent(g, received, work)

    def finish(self, rule: Rule, sent: Sequence[Sent], out: Sequence[Tensor], iteration: int) -> Decision:
        """Steps 2 to 5 for vectors that together are the gradient: their directions are put into `out`."""
        self._lent = []
        for one in sent:
            one.work.wait()
        slices = [self._slices(len(d)) for d in out]
        places = [d[own[self.rank]] for d, own in zip(out, slices, strict=True)]
        columns = ColumnBlocks(
            [one.received.view(self.size, -1) for one in sent], partial(self._gather, device=out[0].device)
        )
        _, decision = rule.aggregate_blocks(columns, iteration, places)
        pieces = [(d[piece], r) for d, its in zip(out, slices, strict=True) for r, piece in enumerate(its)]
        for work in [self._spread(piece, r) for piece, r in pieces if len(piece)]:
            work.wait()
        self._sent = list(sent)
        self._lent += [piece for piece, _ in pieces]
        return decision

    def _room(self, size: int, like: Tensor) -> Tensor:
        """Memory for so many numbers, which was used before if possible."""
        for at, room in enumerate([one.received for one in self._sent]):
            if len(room) == size and room.dtype == like.dtype and room.device == like.device:
                del self._sent[at]
                return room
        return like.new_empty(size)

    def _slices(self, n: int) -> list[slice]:
        """Which of n coordinates each rank serves: none, where there are fewer coordinates than ranks."""
        width = -(-n // self.size)
        return [slice(min(r * width, n), min((r + 1) * width, n)) for r in range(self.size)]

    def _spread(self, piece: Tensor, rank: int) -> Any:
        """A rank's slice of d to all others: broadcasts, since gloo's own all-gather copies twice what it moves."""
        return dist.broadcast(piece, group=self.group, group_src=rank, async_op=True)

    def _gather(self, own: np.ndarray, device: torch.device) -> np.ndarray:
        """A small array of every rank, (p, ...): one exchange, where an all-reduce over a ring makes 2 (p - 1), and the
        same numbers in the same order for all.
        """
        mine = torch.from_numpy(np.asarray(own, dtype=np.float64)).to(device)
        copies = mine.expand(self.size, *mine.shape).contiguous()
        all_of_them = torch.empty_like(copies)
        dist.all_to_all_single(all_of_them, copies, group=self.group)
        self._lent += [copies, all_of_them]
        return all_of_them.cpu().numpy()

    def _check(self, g: Tensor) -> Tensor:
        check("g", getattr(g, "shape", g), isinstance(g, Tensor) and g.ndim == 1, "a tensor (n,)")
        vector = read(g[None]).G[0]
        kind = (vector.dtype, len(vector))
        if kind not in self._met:
            kinds = self._gather(np.array([len(vector), DTYPES.index(vector.dtype)]), vector.device)
            told = [f"{int(n)} of {str(DTYPES[int(code)]).removeprefix('torch.')}" for n, code in kinds]
            check("g", told, len(set(told)) == 1, "of one n and dtype on all ranks")
            self._met.add(kind)
        return vector
