"""The server's end of RPC: a transport whose gradients come from worker processes, which may end or return."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.distributed import rpc
from torch.futures import Future

from fa.gradients.gram import IncrementalGram
from fa.training.attack import configured_attack
from fa.training.config import TrainConfig
from fa.training.parameter_vector import Buffers
from fa.training.transports.base import GatheredGradients, RpcConfig
from fa.training.transports.rounds import GradientMessage, Reply, Rounds
from fa.training.transports.udp import Inbox
from fa.utils.timing import PhaseTimer
from fa.utils.validation import TooFewWorkersError, check

_JOIN_TIMEOUT = 120.0  # seconds
_CLOSE_TIMEOUT = 5.0  # seconds

Work: TypeAlias = tuple[int, Tensor, list[Tensor]]
"""The iteration, its parameters, and the `Worker.state` of the rank if the process is new."""

Answer: TypeAlias = Future[Work | None]
"""A worker's next work, or None if its process must exit."""


class RpcTransport:
    """A transport over worker processes, which call `exchange`; `Rounds` decides on every answer.

    Byzantine workers send their true gradients. The attack is applied here, because it depends on all rows. Parameters
    are sent without a copy. A worker so slow that they change meanwhile computes a gradient that is discarded.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        parameters: Tensor,
        options: RpcConfig,
        needs_gram: bool = False,
        timer: PhaseTimer | None = None,
        inbox: Inbox | None = None,
    ) -> None:
        """Prepare the rounds of a run; no worker has joined yet.

        Args:
            model: The run's model, whose buffers each worker has a copy of.
            config: The run's configuration.
            parameters: Vector of all parameters (n,), which the caller updates in place between rounds.
            options: Deadline and quorum of a round.
            needs_gram: True to compute the Gram matrix while gradients arrive.
            timer: Timer of the run's phases.
            inbox: Receiver of gradients that travel as datagrams; messages then carry none.
        """
        self.config = config
        self.inbox = inbox
        self._options = options
        self._attack = configured_attack(config)
        self._parameters = parameters
        self._G = torch.zeros(config.workers, len(parameters), dtype=parameters.dtype)
        self._rows = [row[: 0 if inbox else None] for row in self._G]  # filled by messages
        self._buffers = [Buffers(model) for _ in range(config.workers)]
        self._momenta = [torch.zeros_like(parameters) for _ in range(config.workers if config.worker_momentum else 0)]
        self._needs_gram = needs_gram
        self._timer = timer or PhaseTimer()
        self._changed = threading.Condition()  # guards self._rounds
        statistics = self._buffers[0].tensors
        self._rounds = Rounds[Answer](config.workers, self._rows[0], statistics, options.quorum, options.deadline)

    def exchange(self, message: GradientMessage) -> Answer:
        """Accept a worker's gradient and return the future of its next work."""
        rank, p = message.rank, len(self._rows)
        check("rank", rank, 0 <= rank < p, f"at least 0 and less than the run's {p} workers")
        with self._changed:
            accepted = self._rounds.offer(message)
        if accepted:  # without the lock, so that several gradients are copied at the same time
            self._rows[rank].copy_(message.gradient)
        answer: Answer = Future()
        with self._changed:
            if accepted:
                self._rounds.deliver(message)
                for buffer, tensor in zip(self._buffers[rank].tensors, message.statistics, strict=True):
                    buffer.copy_(tensor)
            replies = self._rounds.request(rank, answer)
            self._changed.notify_all()
        self._send(replies)
        return answer

    def lose(self, rank: int, reason: str) -> None:
        """Exclude a rank whose first process has ended."""
        with self._changed:
            self._rounds.lose(rank, reason)
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until every worker has joined or ended."""
        with self._timer.phase("join"), self._changed:
            if not self._changed.wait_for(lambda: self._rounds.joined, _JOIN_TIMEOUT):
                self._rounds.pass_joining_deadline(_JOIN_TIMEOUT)

    def gradients(self, iteration: int, parameters: Tensor) -> GatheredGradients:
        """Gather the gradients that arrive in time; the rows of the others are NaN, which rules exclude."""
        with self._changed:
            if self.inbox:
                self.inbox.begin(iteration)
            replies = self._rounds.begin(iteration)
        self._send(replies)
        gram = IncrementalGram(self._G) if self._needs_gram and not self.inbox else None  # datagrams arrive interleaved
        missing = self._gather(gram)
        slots = self._rounds.slots
        self._timer.add("compute", max(slot.seconds for slot in slots))
        notes = self._collect_datagrams() if self.inbox else {}
        loss = self._finish(iteration, missing)
        inner_products = None
        if gram is not None:
            with self._timer.phase("gram"):
                for rank in range(self.config.byzantine):
                    gram.add_row(rank)
                inner_products = gram.matrix()
        return GatheredGradients(self._G, loss, missing, inner_products, notes)

    def _gather(self, gram: IncrementalGram | None) -> dict[int, str]:
        """Wait for the round's gradients, and add honest ones to `gram` as they arrive: the attack changes the others.

        Returns:
            The reason for each missing worker.
        """
        rounds, end = self._rounds, time.monotonic() + self._options.deadline
        ended, missing = False, dict[int, str]()
        while not ended:
            with self._changed:
                changed = self._changed.wait_for(lambda: rounds.arrivals or rounds.complete, end - time.monotonic())
                ended = not changed or rounds.complete
                if ended:
                    rounds.end()
                    self._changed.wait_for(lambda: not rounds.receiving)  # Those rows are incomplete until then.
                    if not rounds.complete:
                        rounds.pass_deadline()
                    missing = rounds.missing()
                arrivals = rounds.pop_arrivals()
            if gram is not None and arrivals:
                with self._timer.phase("gram"):
                    for rank in arrivals:
                        if rank >= self.config.byzantine:
                            gram.add_row(rank)
        return missing

    def _collect_datagrams(self) -> dict[int, str]:
        """Write the gradients that came as datagrams into their rows; returns a note for each with losses."""
        assert self.inbox is not None
        lost = self.inbox.collect(self._rounds.delivered, self._G)
        return {rank: f"{count} of {self.inbox.chunks} datagrams lost" for rank, count in lost.items()}

    def _finish(self, iteration: int, missing: dict[int, str]) -> Tensor:
        """Write the attack and the missing rows into G, and return the honest workers' mean loss."""
        config = self.config
        if self._momenta:
            for rank in self._rounds.delivered:
                self._momenta[rank].copy_(self._G[rank])
        honest = [rank for rank in range(config.byzantine, config.workers) if rank not in missing]
        if not honest:
            reasons = "; ".join(f"worker {rank}: {reason}" for rank, reason in missing.items())
            raise TooFewWorkersError(f"iteration {iteration + 1}: no honest worker is left ({reasons})")
        absent = list(missing)
        if absent and config.byzantine:  # the attack reads all honest rows: missing ones are the others' mean
            self._G[absent] = self._G[honest].mean(dim=0)
        self._attack.apply(self._G, range(config.byzantine), config.seed, iteration)
        if absent:
            self._G[absent] = torch.nan
        slots = self._rounds.slots
        return torch.stack([loss for rank in honest if (loss := slots[rank].loss) is not None]).mean()

    def statistics(self) -> list[Buffers]:
        """Return each worker's batch-norm statistics as it last sent them."""
        return self._buffers

    def momenta(self) -> list[Tensor]:
        """Return each worker's momentum as it last sent it: it is the worker's gradient."""
        return self._momenta

    def acknowledge(self, rank: int) -> None:
        """Record that a process exits after the end of the run."""
        with self._changed:
            self._rounds.acknowledge(rank)
            self._changed.notify_all()

    def close(self) -> None:
        """End the run, and wait until the present workers have acknowledged it."""
        with self._changed:
            replies = self._rounds.close()
        self._send(replies)
        with self._changed:
            self._changed.wait_for(lambda: self._rounds.finished, _CLOSE_TIMEOUT)

    def _send(self, replies: Iterable[Reply[Answer]]) -> None:
        """Complete the futures, without the lock: their callbacks run here."""
        for reply in replies:
            if reply.iteration is None:
                reply.request.set_result(None)
                continue
            rank = reply.rank
            state = self._buffers[rank].tensors + self._momenta[rank : rank + 1] if reply.with_state else []
            reply.request.set_result((reply.iteration, self._parameters, state))


_active: list[RpcTransport] = []  # the run that this process serves, if any


def set_active(transport: RpcTransport) -> None:
    """Direct workers' calls to `transport`."""
    _active[:] = [transport]


def clear_active() -> None:
    """Release the active transport and its gradients."""
    _active.clear()


def describe() -> str:
    """Return the run's configuration as JSON. Called by workers."""
    return _active[0].config.to_json()


def datagram_port() -> int | None:
    """Return the port for gradients as datagrams; None if messages carry them. Called by workers."""
    inbox = _active[0].inbox
    return inbox.port if inbox else None


def acknowledge(rank: int) -> None:
    """Confirm the end of the run. Called by workers."""
    _active[0].acknowledge(rank)


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def exchange(*message: object) -> Answer:
    """Deliver the fields of a `GradientMessage`; no thread waits for the answer. Called by workers."""
    return _active[0].exchange(GradientMessage(*message))  # type: ignore[arg-type]
