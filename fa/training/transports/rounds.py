"""The rounds between a server and its workers, as a state machine without sockets, locks, threads or clocks.

A transport reports events to `Rounds`: a message, a lost process, a new round, a deadline. It then sends the replies
that `Rounds` returns. The transport guards the calls with one lock, and copies gradients itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

NEW = -1
"""The iteration of the first message of a process, which has no gradient yet."""

_MAX_REASON = 200  # characters of a reason that a worker can influence

Request = TypeVar("Request")
"""What the transport replies to: a future, a stream."""


class WorkerPhase(Enum):
    """What the server expects from a worker."""

    ABSENT = auto()  # no process of this rank has joined
    WAITING = auto()  # its request is answered when the next round begins
    COMPUTING = auto()  # its gradient is awaited
    RECEIVING = auto()  # the transport copies its gradient
    DELIVERED = auto()  # its gradient of this round has been copied
    EXCLUDED = auto()  # no round waits for it before its next message


@dataclass
class WorkerSlot(Generic[Request]):
    """The server's view of one rank."""

    phase: WorkerPhase = WorkerPhase.ABSENT
    reason: str = ""  # why the rank is excluded, or will be once its delivered gradient has been used
    processes: int = 0  # that have joined with this rank
    assigned: int | None = None  # iteration that the newest reply asked for
    left: bool = False  # True if the newest process has ended, and `reason` is its reason
    needs_carried: bool = False  # True until the newest process has been sent the `Worker.carried` of its rank
    request: Request | None = None  # pending: at most one per rank
    loss: Tensor | None = None  # scalar, of the delivered gradient's minibatch
    seconds: float = 0.0  # time that the worker took to compute the delivered gradient


class GradientMessage(NamedTuple):
    """A worker's message: a gradient, and implicitly the request for the next parameters.

    `rank` and `iteration` are checked by the transport. `Rounds.offer` checks all other fields, of any type.
    """

    rank: int
    iteration: int  # of the gradient; NEW if the process has none yet
    gradient: Tensor  # (n,) float32; (0,) if the gradient travels over another channel
    loss: Tensor  # scalar, of the minibatch
    statistics: list[Tensor]  # of batch norm
    seconds: float = 0.0  # time that the worker took to compute the gradient


@dataclass(frozen=True)
class Reply(Generic[Request]):
    """The answer to a pending request."""

    rank: int
    request: Request
    iteration: int | None  # to compute next; None: the process must exit
    with_carried: bool = False  # True if the process also needs the `Worker.carried` of its rank


class RoundOutcome(NamedTuple):
    """What a round has brought."""

    missing: dict[int, str]  # reason for each rank without a gradient
    losses: dict[int, Tensor]  # of each rank with a gradient
    seconds: float  # time that the slowest gradient took


class Rounds(Generic[Request]):
    """State of all workers over the rounds of a run.

    Example:
        >>> import torch
        >>> rounds = Rounds(1, gradient=torch.zeros(3), statistics=[])
        >>> rounds.offer(GradientMessage(0, NEW, torch.zeros(3), torch.zeros(()), []))
        False
        >>> rounds.request(0, "first call")
        []
        >>> rounds.begin(0)
        [Reply(rank=0, request='first call', iteration=0, with_carried=True)]
    """

    def __init__(
        self,
        workers: int,
        gradient: Tensor,
        statistics: Sequence[Tensor],
        quorum: int | None = None,
        deadline: float = 60.0,
    ) -> None:
        """Begin without any worker, and between two rounds.

        Args:
            workers: Number of workers p; ranks are 0 to p - 1.
            gradient: A tensor of the shape, dtype and layout of every valid gradient.
            statistics: Tensors of the shapes of every valid message's statistics.
            quorum: Number of gradients that complete a round; None for all p.
            deadline: Length of a round in seconds, as reported in the reasons.
        """
        self.slots: list[WorkerSlot[Request]] = [WorkerSlot() for _ in range(workers)]
        self.iteration: int | None = None  # of the open round
        self._gradient = gradient
        self._statistics = statistics
        self._quorum = quorum or workers
        self._deadline = deadline
        self._closed = False

    def offer(self, message: GradientMessage) -> bool:
        """Process a worker's message; its request follows separately, by `request`.

        Args:
            message: The message, with fields of any type except rank and iteration.

        Returns:
            True if the gradient is the rank's first valid one of the open round. The caller must then copy it and call
            `deliver`. Otherwise the gradient is discarded.
        """
        slot = self.slots[message.rank]
        self.skip(message.rank)
        if message.iteration == NEW:
            slot.processes += 1
            slot.needs_carried, slot.left = True, False
        elif slot.assigned not in (None, message.iteration):
            _exclude(slot, f"sent a gradient of iteration {message.iteration}, not {slot.assigned}")
        if self.iteration is None or message.iteration != self.iteration:
            return False
        if error := self._error(message):
            _exclude(slot, error)
        if slot.phase is not WorkerPhase.COMPUTING:
            return False
        slot.phase = WorkerPhase.RECEIVING
        return True

    def expects(self, rank: int, iteration: int) -> bool:
        """Return True if a gradient of that iteration would be accepted from the rank.

        Args:
            rank: Rank of the worker.
            iteration: Iteration of the gradient.
        """
        phases = (WorkerPhase.COMPUTING, WorkerPhase.EXCLUDED)
        return iteration == self.iteration and self.slots[rank].phase in phases

    def skip(self, rank: int) -> None:
        """Process a message whose gradient comes too late; its request follows separately, by `request`.

        Args:
            rank: Rank of the worker.
        """
        slot = self.slots[rank]
        slot.reason = ""
        if slot.phase in (WorkerPhase.ABSENT, WorkerPhase.EXCLUDED):
            slot.phase = WorkerPhase.COMPUTING

    def deliver(self, message: GradientMessage) -> None:
        """Record that the gradient of an accepted message has been copied.

        Args:
            message: The message that `offer` accepted.
        """
        slot = self.slots[message.rank]
        slot.phase, slot.loss, slot.seconds = WorkerPhase.DELIVERED, message.loss, message.seconds

    def withdraw(self, rank: int, reason: str) -> None:
        """Exclude a rank from the open round, because the gradient of an accepted message cannot be copied.

        Args:
            rank: Rank of the worker.
            reason: The reason, for the records.
        """
        self.slots[rank].phase, self.slots[rank].reason = WorkerPhase.EXCLUDED, reason[:_MAX_REASON]

    def request(self, rank: int, request: Request) -> list[Reply[Request]]:
        """Register a worker's request for its next iteration.

        Args:
            rank: Rank of the worker.
            request: What the transport replies to.

        Returns:
            Replies that are due: to this request if a round is open for the rank or the run is over. An earlier request
            of the rank also has a reply, and its process must exit.
        """
        slot = self.slots[rank]
        replies = [] if slot.request is None else [Reply(rank, slot.request, None)]
        slot.request = request
        if self._closed:
            replies += self._pop_request(rank, None)
        elif self.iteration is not None and slot.phase in (WorkerPhase.COMPUTING, WorkerPhase.RECEIVING):
            replies += self._pop_request(rank, self.iteration)
        elif slot.phase is WorkerPhase.COMPUTING:
            slot.phase = WorkerPhase.WAITING
        return replies

    def first_process_ended(self, rank: int, reason: str) -> None:
        """Exclude a rank whose first process has ended, unless another process has joined, or it has sent a reason.

        Args:
            rank: Rank of the process.
            reason: The reason, for the records.
        """
        if self.slots[rank].processes <= 1 and not self.slots[rank].left:
            self.newest_process_ended(rank, reason)

    def newest_process_ended(self, rank: int, reason: str) -> None:
        """Exclude a rank whose newest process has ended.

        Args:
            rank: Rank of the process.
            reason: The reason, for the records.
        """
        self.slots[rank].request, self.slots[rank].left = None, True
        _exclude(self.slots[rank], reason[:_MAX_REASON] or "its process has ended")

    def refuse(self, rank: int, reason: str) -> None:
        """Record that a process may not join with a rank, unless another process has joined with it.

        Args:
            rank: Rank of the process.
            reason: The reason, for the records.
        """
        if self.slots[rank].phase is WorkerPhase.ABSENT:
            self.slots[rank].left = True
            _exclude(self.slots[rank], reason[:_MAX_REASON])

    def begin(self, iteration: int) -> list[Reply[Request]]:
        """Open the round of an iteration; returns the replies to all pending requests.

        Args:
            iteration: Iteration, from 0.

        Returns:
            The replies.
        """
        self.iteration = iteration
        for slot in self.slots:
            slot.loss, slot.seconds = None, 0.0
            if slot.phase in (WorkerPhase.DELIVERED, WorkerPhase.WAITING):
                slot.phase = WorkerPhase.EXCLUDED if slot.reason else WorkerPhase.COMPUTING
            elif slot.phase is WorkerPhase.EXCLUDED and slot.request is not None:  # It sent something invalid.
                slot.phase, slot.reason = WorkerPhase.COMPUTING, ""
        return self._pop_requests(iteration)

    def end(self) -> None:
        """Close the round: accept no further gradient. Those being received are still to be delivered."""
        self.iteration = None

    def pass_deadline(self) -> None:
        """Exclude every rank that has not delivered."""
        self._exclude_unless(WorkerPhase.DELIVERED, f"no gradient within {self._deadline:g} s")

    def pass_joining_deadline(self, seconds: float) -> None:
        """Exclude every rank that has not joined within that many seconds.

        Args:
            seconds: Length of the deadline, for the reason.
        """
        self._exclude_unless(WorkerPhase.WAITING, f"has not joined within {seconds:g} s")

    def outcome(self, elapsed: float) -> RoundOutcome:
        """Return what the round that has ended has brought.

        Args:
            elapsed: Seconds since the round began, which bound the times that workers report.
        """
        late, delivered = f"not among the fastest {self._quorum}", self.delivered
        missing = {rank: slot.reason or late for rank, slot in enumerate(self.slots) if rank not in delivered}
        losses = {rank: loss for rank in delivered if (loss := self.slots[rank].loss) is not None}
        return RoundOutcome(missing, losses, min(max(slot.seconds for slot in self.slots), elapsed))

    def close(self) -> list[Reply[Request]]:
        """End the run; returns the replies to all pending requests."""
        self._closed = True
        return self._pop_requests(None)

    @property
    def joined(self) -> bool:
        """True if every rank waits for a round or is excluded."""
        return all(slot.reason or slot.phase is WorkerPhase.WAITING for slot in self.slots)

    @property
    def complete(self) -> bool:
        """True if the quorum has delivered, or no other rank is awaited."""
        ended = (WorkerPhase.DELIVERED, WorkerPhase.EXCLUDED)
        return len(self.delivered) >= self._quorum or all(slot.phase in ended for slot in self.slots)

    @property
    def receiving(self) -> bool:
        """True while the transport copies a gradient."""
        return any(slot.phase is WorkerPhase.RECEIVING for slot in self.slots)

    @property
    def delivered(self) -> list[int]:
        """Ranks whose gradients of this round have been copied."""
        return [rank for rank, slot in enumerate(self.slots) if slot.phase is WorkerPhase.DELIVERED]

    @property
    def excluded(self) -> list[int]:
        """Ranks that are excluded, or will be once their delivered gradients have been used."""
        return [rank for rank, slot in enumerate(self.slots) if slot.reason]

    def _pop_request(self, rank: int, iteration: int | None) -> list[Reply[Request]]:
        """Reply to the rank's pending request, if any."""
        slot = self.slots[rank]
        if slot.request is None:
            return []
        reply = Reply(rank, slot.request, iteration, with_carried=iteration is not None and slot.needs_carried)
        slot.request, slot.assigned = None, iteration
        slot.needs_carried = slot.needs_carried and iteration is None
        return [reply]

    def _pop_requests(self, iteration: int | None) -> list[Reply[Request]]:
        return [reply for rank in range(len(self.slots)) for reply in self._pop_request(rank, iteration)]

    def _exclude_unless(self, phase: WorkerPhase, reason: str) -> None:
        for slot in self.slots:
            if slot.phase is not phase:
                _exclude(slot, slot.reason or reason)

    def _error(self, message: GradientMessage) -> str:
        """Describe what is wrong with a message, whose fields may be of any type; empty if it is valid."""
        expected, gradient, loss, statistics = self._gradient, message.gradient, message.loss, message.statistics
        if not _resembles(gradient, expected):
            return f"sent {_describe(gradient)}, not {_describe(expected)}"
        if not _resembles(loss, expected.new_empty(())):
            return f"sent a loss of {_describe(loss)}, not one number"
        if not _all_resemble(statistics, self._statistics):
            return "sent batch-norm statistics of another model"
        if math.isfinite(float(loss)) and not all(bool(tensor.isfinite().all()) for tensor in statistics):
            return "sent batch-norm statistics that are not finite"
        if type(message.seconds) not in (float, int) or not 0 <= message.seconds < math.inf:
            return f"sent {message.seconds!r} as its time in seconds"[:_MAX_REASON]
        return ""


def _resembles(value: object, expected: Tensor) -> bool:
    """True for a tensor with the shape, dtype, layout and device of `expected`, without a graph of autograd."""
    return (
        isinstance(value, Tensor)
        and not value.requires_grad
        and (value.shape, value.dtype, value.layout) == (expected.shape, expected.dtype, expected.layout)
        and value.device == expected.device
    )


def _all_resemble(values: object, expected: Sequence[Tensor]) -> bool:
    if not isinstance(values, list | tuple) or len(values) != len(expected):
        return False
    return all(map(_resembles, values, expected))


def _describe(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    kind = str(value.dtype) + ("" if value.layout == torch.strided else f", {value.layout}")
    kind += ", requires_grad" if value.requires_grad else ""
    return f"{tuple(value.shape)} of {kind}"


def _exclude(slot: WorkerSlot[Request], reason: str) -> None:
    """Wait no longer for a rank. A gradient that it has delivered remains in its round."""
    slot.reason = reason
    if slot.phase not in (WorkerPhase.RECEIVING, WorkerPhase.DELIVERED):
        slot.phase = WorkerPhase.EXCLUDED
