"""The server's end of RPC: a transport whose gradients come from worker processes, which may end or return."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.distributed import rpc
from torch.futures import Future

import fa
from fa.training.transports.base import ServedRun
from fa.training.transports.gathering import Gathering
from fa.training.transports.process_transport import CLOSE_TIMEOUT, ProcessTransport
from fa.training.transports.rounds import GradientMessage, Reply, RoundOutcome, Rounds
from fa.training.transports.server_config import RpcConfig
from fa.training.transports.udp import Inbox
from fa.utils.validation import check, printable

Work: TypeAlias = tuple[int, Tensor, list[Tensor]]
"""The iteration, its parameters, and the `Worker.carried` of the rank if the process is new."""

Answer: TypeAlias = Future[Work | None]
"""A worker's next work, or None if its process must exit."""


class RpcTransport(ProcessTransport):
    """A transport over worker processes, which call `exchange`; `Rounds` decides on every answer.

    Parameters are sent without a copy. A worker so slow that they change meanwhile computes a gradient that is
    discarded.
    """

    def __init__(
        self,
        run: ServedRun,
        gathering: Gathering,
        options: RpcConfig,
        inbox: Inbox | None = None,
    ) -> None:
        """Prepare the rounds of a run; no worker has joined yet.

        Args:
            run: The run.
            gathering: Rows and states of the ranks.
            options: Deadline and quorum of a round.
            inbox: Receiver of gradients that travel as datagrams; messages then carry none.
        """
        super().__init__(gathering, run.timer)
        self.config = config = run.config
        self.inbox = inbox
        self._options = options
        self._parameters = run.parameters
        self._rows = [row[: 0 if inbox else None] for row in gathering.G]  # filled by messages
        self._checksum = run.checksum
        self._changed = threading.Condition()  # guards the following attributes
        self._arrivals: list[int] = []  # ranks whose rows are complete, and not yet used
        self._deadline = math.inf  # of the open round, by time.monotonic
        self._closing = False
        self._acknowledged: set[int] = set()  # ranks that have acknowledged the end of the run
        statistics = gathering.buffers[0].tensors
        self._rounds = Rounds[Answer](config.workers, self._rows[0], statistics, options.quorum, options.deadline)

    def describe(self, rank: object, release: object) -> str:
        """Return the run's configuration as JSON to a new worker of the server's release.

        Args:
            rank: Rank that the worker sends; any object is checked.
            release: Release of the worker's package.

        Raises:
            ValueError: The rank does not exist, or the worker's release differs. It is then refused.
        """
        self._check_rank(rank)
        self._compare(rank, "release", release, fa.__version__)
        return self.config.to_json()

    def compare(self, rank: object, checksum: object) -> None:
        """Compare the data of a new worker with the server's.

        Args:
            rank: Rank that the worker sends; any object is checked.
            checksum: Checksum of the worker's data set.

        Raises:
            ValueError: The rank does not exist, or the worker's data differ. It is then refused.
        """
        self._check_rank(rank)
        self._compare(rank, "checksum of the data", checksum, self._checksum)

    def _compare(self, rank: object, name: str, value: object, expected: str) -> None:
        try:
            check(name, value, value == expected, f"the server's {expected}")
        except ValueError as error:
            self.refuse(rank, str(error))
            raise

    def refuse(self, rank: object, reason: object) -> None:
        """Exclude the rank of a worker that may not or cannot join, unless another process has joined with it.

        Args:
            rank: Rank that the worker sends; any object is checked.
            reason: The reason, for the records. Characters that are not printable are replaced.

        Raises:
            ValueError: The rank does not exist.
        """
        self._check_rank(rank)
        assert isinstance(rank, int)
        with self._changed:
            self._rounds.refuse(rank, f"refused: {printable(str(reason))}")
            self._changed.notify_all()

    def _check_rank(self, rank: object) -> None:
        p = len(self._rows)
        valid = type(rank) is int and 0 <= rank < p
        check("rank", rank, valid, f"at least 0 and less than the run's {p} workers")

    def exchange(self, message: GradientMessage) -> Answer:
        """Accept a worker's gradient, and register its request for the next parameters.

        A gradient that comes too late, or is invalid, is discarded.

        Args:
            message: The worker's message.

        Returns:
            The future of the worker's next work, or of None if its process must exit.

        Raises:
            ValueError: The rank does not exist, or the iteration is not an integer.
        """
        rank = message.rank
        self._check_rank(rank)
        check("iteration", message.iteration, type(message.iteration) is int, "an integer")
        with self._changed:
            accepted = self._rounds.offer(message)
        if accepted:  # without the lock, so that several gradients are copied at the same time
            self._copy(message)
        answer: Answer = Future()
        with self._changed:
            if accepted:
                self._rounds.deliver(message)
                self._arrivals.append(rank)
            replies = self._rounds.request(rank, answer)
            self._changed.notify_all()
        self._send(replies)
        return answer

    def _copy(self, message: GradientMessage) -> None:
        """Copy a gradient and its statistics. If that fails, exclude the rank, which the round would wait for."""
        statistics = self._gathering.buffers[message.rank].tensors
        try:
            with torch.no_grad():
                self._rows[message.rank].copy_(message.gradient)
                for buffer, tensor in zip(statistics, message.statistics, strict=True):
                    buffer.copy_(tensor)
        except BaseException as error:
            with self._changed:
                self._rounds.withdraw(message.rank, f"sent a gradient that cannot be copied: {error}")
                self._changed.notify_all()
            raise

    def first_process_ended(self, rank: int, reason: str) -> None:
        """Exclude a rank whose first process has ended, unless another process has joined, or it has sent a reason.

        Args:
            rank: Rank of the process.
            reason: The reason, for the records.
        """
        with self._changed:
            self._rounds.first_process_ended(rank, reason)
            self._changed.notify_all()

    def leave(self, rank: object, reason: object) -> None:
        """Exclude a rank whose process ends.

        Args:
            rank: Rank that the worker sends; any object is checked.
            reason: The reason, for the records. Characters that are not printable are replaced.

        Raises:
            ValueError: The rank does not exist.
        """
        self._check_rank(rank)
        assert isinstance(rank, int)
        with self._changed:
            self._rounds.newest_process_ended(rank, printable(str(reason)))
            self._changed.notify_all()

    def _join(self, timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._rounds.joined, timeout):
                self._rounds.pass_joining_deadline(timeout)

    def _gather(self, iteration: int) -> RoundOutcome:
        with self._changed:
            if self.inbox:
                self.inbox.begin(iteration)
            self._arrivals.clear()
            replies = self._rounds.begin(iteration)
        self._send(replies)
        rounds, began = self._rounds, time.monotonic()
        self._deadline, outcome = began + self._options.deadline, None
        while outcome is None:
            with self._changed:
                changed = self._changed.wait_for(
                    lambda: self._arrivals or rounds.complete, self._deadline - time.monotonic()
                )
                if not changed or rounds.complete:
                    rounds.end()
                    self._changed.wait_for(lambda: not rounds.receiving)  # Those rows are incomplete until then.
                    if not rounds.complete:
                        rounds.pass_deadline()
                    outcome = rounds.outcome(time.monotonic() - began)
                arrivals, self._arrivals = self._arrivals, []
            for rank in arrivals:
                self._gathering.add(rank)
        return outcome

    def _notes(self) -> dict[int, str]:
        """Write the gradients that came as datagrams into their rows; returns a note for each with losses."""
        if self.inbox is None:
            return {}
        lost = self.inbox.collect(self._rounds.delivered, self._gathering.G, self._deadline)
        return {rank: f"{count} of {self.inbox.chunks} datagrams lost" for rank, count in lost.items()}

    def acknowledge(self, rank: int) -> None:
        """Record that a process exits. Before the end of the run it is one that another process has replaced.

        Args:
            rank: Rank of the process.
        """
        with self._changed:
            if self._closing:
                self._acknowledged.add(rank)
            self._changed.notify_all()

    def close(self) -> None:
        """End the run, and wait until the present workers have acknowledged it."""
        with self._changed:
            self._closing = True
            replies = self._rounds.close()
        self._send(replies)
        with self._changed:
            self._changed.wait_for(self._finished, CLOSE_TIMEOUT)

    def _finished(self) -> bool:
        """Return True if every rank has acknowledged the end of the run or is excluded."""
        return len(self._acknowledged.union(self._rounds.excluded)) == len(self._rows)

    def _send(self, replies: Iterable[Reply[Answer]]) -> None:
        """Complete the futures, without the lock: their callbacks run here."""
        for reply in replies:
            if reply.iteration is None:
                reply.request.set_result(None)
                continue
            carried = self._gathering.carried(reply.rank) if reply.with_carried else []
            reply.request.set_result((reply.iteration, self._parameters, carried))


_active: list[RpcTransport] = []  # the run that this process serves, if any
_activation = threading.Lock()


def set_active(transport: RpcTransport) -> None:
    """Direct workers' calls to a transport, until `clear_active`.

    Args:
        transport: Transport of the run that this process serves.

    Raises:
        ValueError: Another run is served, and torch has one RPC agent per process.
    """
    with _activation:
        check("backend", "rpc", not _active, "tcp while this process serves another run", "RPC serves one at a time.")
        _active.append(transport)


def clear_active() -> None:
    """Release the active transport and its gradients."""
    _active.clear()


def describe(rank: object, release: object) -> str:
    """Return the run's configuration as JSON to a new worker of the server's release. Called by workers.

    Args:
        rank: Rank of the worker.
        release: Release of the worker's package.

    Raises:
        ValueError: The rank does not exist, or the worker's release differs.
    """
    return _active[0].describe(rank, release)


def compare(rank: object, checksum: object) -> None:
    """Compare the data of a new worker with the server's. Called by workers.

    Args:
        rank: Rank of the worker.
        checksum: Checksum of the worker's data set.

    Raises:
        ValueError: The rank does not exist, or the worker's data differ.
    """
    _active[0].compare(rank, checksum)


def refuse(rank: object, reason: object) -> None:
    """Exclude the rank of a worker that cannot join. Called by workers.

    Args:
        rank: Rank of the worker.
        reason: The reason, for the records.

    Raises:
        ValueError: The rank does not exist.
    """
    _active[0].refuse(rank, reason)


def is_alive() -> bool:
    """Return True. Called by workers from time to time."""
    return True


def datagram_channel(rank: int) -> tuple[int, bytes] | None:
    """Return the channel for gradients as datagrams. Called by workers.

    Args:
        rank: Rank of the worker.

    Returns:
        The server's UDP port and the rank's key; None if messages carry the gradients.
    """
    inbox = _active[0].inbox
    return (inbox.port, inbox.keys[rank]) if inbox else None


def leave(rank: object, reason: object) -> None:
    """Exclude a rank whose process ends. Called by workers.

    Args:
        rank: Rank of the worker.
        reason: The reason, for the records.

    Raises:
        ValueError: The rank does not exist.
    """
    _active[0].leave(rank, reason)


def acknowledge(rank: int) -> None:
    """Record that a process exits after the end of the run. Called by workers.

    Args:
        rank: Rank of the worker.
    """
    _active[0].acknowledge(rank)


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def exchange(*message: object) -> Answer:
    """Deliver the fields of a `GradientMessage`; no thread waits for the answer. Called by workers."""
    return _active[0].exchange(GradientMessage(*message))  # type: ignore[arg-type]
