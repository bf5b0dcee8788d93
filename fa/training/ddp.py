"""DistributedDataParallel with a rule in place of the mean, by a communication hook.

DDP hands its hook the gradient in buckets, some layers each, while the backward pass still goes on; a rule decides on
whole gradients. So:

1. of each bucket as it comes, every rank starts to send the slices to the ranks that serve them, as `fa.sharded` does,
   and the hook returns a future; the backward pass goes on meanwhile;
2. with the last bucket, what the ranks serve of all the buckets is one matrix in parts: the Gram matrix is the sum over
   buckets and ranks, one decision is made, and each rank applies it to its slices;
3. the slices of d go to all ranks, into the buckets themselves, and all futures are completed.

Half of the bytes thus move during the backward pass, where plain DDP can move nearly all; in sum they are as many.

Nothing is kept of how the gradient was cut: DDP may cut it anew (it does after the first iteration). A parameter that
is unused is 0 in its bucket, as for DDP. Parameters of several dtypes are in buckets of their own, and in one decision.
Accumulation under `no_sync` calls no hook. Each call of the hook's last bucket is an iteration, which picks the random
numbers of "bucketing".

DDP itself still takes the first parameters, and before each forward pass the buffers (batch norm's statistics), from
rank 0; `broadcast_buffers=False` leaves each rank its own. `fa.sharded` says what is trusted.

On leaving, drop the model, wait for all (`dist.barrier`), and only then destroy the group, as examples/ddp.py does:
where a thread of gloo is the last to drop a tensor while the interpreter ends, the process aborts (it did in 5 of 13
runs on a busy machine, and in none of 8 since).

FSDP is not served. There every rank keeps 1/p of the parameters, so step 3 falls away, and step 1 takes the place of
its reduce-scatter: as many bytes. But what FSDP frees unit by unit would have to stay until the backward pass is over
and K is known, p slices of each unit or n numbers a rank: the memory that it is there to save. Deciding unit by unit
(another rule), or with the weights of the iteration before, would need none. The hooks (`register_comm_hook` of FSDP,
`set_custom_reduce_scatter` of `fully_shard`) must fill a unit's shard before they return, so that the rule over all
units also needs a place after the backward pass, before the optimizer's step.
"""

import torch
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from fa.rules import Decision, Rule, make_rule
from fa.sharded import Sent, Shards
from fa.utils.validation import check


class Aggregation:
    """What a registered rule does, and what it has decided last: `decision`, whose workers are the group's ranks (None
    before the first backward pass).
    """

    def __init__(self, rule: Rule, shards: Shards) -> None:
        self.decision: Decision | None = None
        self._rule, self._shards = rule, shards
        self._iteration = 0
        self._pending: list[tuple[Tensor, Sent, Future[Tensor]]] = []

    def take(self, bucket: GradBucket) -> Future[Tensor]:
        """The future of a bucket, which those of all buckets complete with the last one."""
        buffer = bucket.buffer()
        future: Future[Tensor] = Future(devices=[buffer.device] if buffer.is_cuda else [])
        self._pending.append((buffer, self._shards.send(buffer), future))
        if bucket.is_last():
            self._finish()
        return future

    def _finish(self) -> None:
        pending, self._pending = self._pending, []
        sent, buffers = [sent for _, sent, _ in pending], [buffer for buffer, _, _ in pending]
        self.decision = self._shards.finish(self._rule, sent, buffers, self._iteration)
        self._iteration += 1
        for buffer, _, future in pending:
            future.set_result(buffer)


def register(model: DistributedDataParallel, rule: Rule | str = "fa") -> Aggregation:
    """Let `rule` (a name: with its defaults) aggregate the gradients of `model`, from the next backward pass on.

    The workers are the ranks of the model's process group, over gloo, NCCL or what else has all-to-all. Raises
    ValueError where the rule needs more of them, or whole gradients in one memory (regularizer "l1" or "rows"). A
    backward pass in which too few gradients are finite raises that on all ranks.
    """
    check("model", type(model).__name__, isinstance(model, DistributedDataParallel), "a DistributedDataParallel")
    rule = make_rule(rule) if isinstance(rule, str) else rule
    rule.check_within_span("for gradients of many processes")
    shards = Shards(model.process_group)
    rule.check_workers(shards.size)
    aggregation = Aggregation(rule, shards)
    model.register_comm_hook(aggregation, _hook)
    return aggregation


def _hook(aggregation: Aggregation, bucket: GradBucket) -> Future[torch.Tensor]:
    return aggregation.take(bucket)
