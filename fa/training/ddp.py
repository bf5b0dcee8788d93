"""DistributedDataParallel with a rule instead of the mean, by a communication hook.

DDP passes the gradient to its hook in buckets of some layers each, during the backward pass. A rule decides on whole
gradients. So:

1. For each bucket, every rank starts to send slices to the ranks that serve them, as `fa.sharded` does. The hook
   returns a future, and the backward pass continues.
2. With the last bucket, the slices that the ranks serve form one matrix. Its Gram matrix is the sum over buckets and
   ranks. One decision is made, and each rank applies it to its slices.
3. The slices of d go to all ranks, into the buckets themselves, and all futures are completed.

Half of the bytes move during the backward pass, where plain DDP can move nearly all. The total is the same.

- DDP may cut the gradient differently after the first iteration: no state depends on the cut.
- A parameter that is unused is 0 in its bucket, as in DDP.
- Parameters of several dtypes have separate buckets, and one decision.
- Accumulation under `no_sync` calls no hook. Each last bucket ends an iteration, which selects the random numbers of
  "bucketing".
- DDP copies the first parameters from rank 0, and before each forward pass the buffers (batch norm's statistics);
  `broadcast_buffers=False` keeps each rank's buffers. `fa.sharded` describes the trust model.

At the end, delete the model, wait for all ranks (`dist.barrier`), and only then destroy the group, as examples/ddp.py
does. Otherwise a thread of gloo may be the last to release a tensor while the interpreter exits, which aborts the
process. On a busy machine 5 of 13 runs aborted (with this order: 0 of 8).

FSDP is not supported. There every rank stores 1/p of the parameters, so step 3 is unnecessary, and step 1 replaces the
reduce-scatter with as many bytes. But gradients that FSDP frees unit by unit would have to stay until K is known, which
takes the memory that FSDP saves. Deciding per unit (another rule), or with the previous iteration's weights, would
avoid this. FSDP's hooks must also fill a unit's shard before they return, whereas a rule over all units runs after the
backward pass.
"""

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from fa.rules import Decision, Rule, as_rule
from fa.sharded import Sent, Shards
from fa.utils.validation import TooFewWorkersError, check


class Aggregation:
    """State of a registered rule."""

    def __init__(self, rule: Rule, shards: Shards) -> None:
        self.decision: Decision | None = None  # of the last backward pass, with ranks as workers; None for NaN
        self._rule, self._shards = rule, shards
        self._iteration = 0
        self._pending: list[tuple[Tensor, Sent, Future[Tensor]]] = []

    def add_bucket(self, bucket: GradBucket) -> Future[Tensor]:
        """Start the exchange of a bucket, and return its future, which the last bucket completes.

        Args:
            bucket: Bucket of DDP, with this process's gradient in it.

        Returns:
            The future of the bucket's part of the direction.
        """
        buffer = bucket.buffer()
        future: Future[Tensor] = Future(devices=[buffer.device] if buffer.is_cuda else [])
        self._pending.append((buffer, self._shards.send(buffer), future))
        if bucket.is_last():
            self._finish()
        return future

    def _finish(self) -> None:
        pending, self._pending = self._pending, []
        sent, buffers = [sent for _, sent, _ in pending], [buffer for buffer, _, _ in pending]
        try:
            self.decision = self._shards.finish(self._rule, sent, buffers, self._iteration)
        except TooFewWorkersError:  # Too few gradients are finite: on all ranks, NaN lets a GradScaler skip the step.
            self.decision = None
            for buffer in buffers:
                buffer.fill_(torch.nan)
        self._iteration += 1
        for buffer, _, future in pending:
            future.set_result(buffer)


def register(model: DistributedDataParallel, rule: Rule | str = "fa") -> Aggregation:
    """Aggregate the gradients of a model by a rule, from the next backward pass on.

    The workers are the ranks of the model's process group, over gloo, NCCL or another backend with all-to-all. A
    backward pass in which too few gradients are finite gives NaN on all ranks, so that a GradScaler skips the step.

    Args:
        model: The wrapped model.
        rule: A rule, or the name of one with its defaults.

    Returns:
        The hook's state, whose `decision` is that of the last backward pass.

    Raises:
        ValueError: The rule needs more workers, or whole gradients in one memory (such as FA's regularizers "l1" and
            "rows", its prior, and its start "largest:K"). Or an embedding has sparse gradients.
    """
    check("model", type(model).__name__, isinstance(model, DistributedDataParallel), "a DistributedDataParallel")
    for name, module in model.module.named_modules():
        sparse = isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse and module.weight.requires_grad
        check(f"sparse of {name}", True, not sparse, "False, since gradients must be dense")
    rule = as_rule(rule)
    rule.check_decides_in_gram("for gradients of many processes")
    shards = Shards(model.process_group)
    rule.check_workers(shards.size)
    aggregation = Aggregation(rule, shards)
    model.register_comm_hook(aggregation, _hook)
    return aggregation


def _hook(aggregation: Aggregation, bucket: GradBucket) -> Future[torch.Tensor]:
    return aggregation.add_bucket(bucket)
