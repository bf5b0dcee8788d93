"""The server's end: a transport whose gradients come from worker processes, and go on without those that are gone."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import rpc
from torch.futures import Future

from fa.attacks import make_attack
from fa.gradients.gram import IncrementalGram
from fa.training.config import TrainConfig
from fa.training.parameter_vector import Buffers
from fa.training.transports.base import Cluster, Gathered
from fa.training.transports.udp import Inbox
from fa.utils.timing import PhaseTimer
from fa.utils.validation import TooFewWorkersError, check

_JOINING = 120.0  # seconds that the beginning waits for workers
_LEAVING = 5.0  # seconds that the end waits for them to hear of it
NEW = -1  # the iteration of a worker that has no gradient yet
_CLOSED = -2

Work = tuple[int, Tensor, list[Tensor]]
"""The iteration, its parameters, and to a worker that is new the `Worker.state` of its rank."""

Answer = Future[Work | None]
"""What a worker waits for: its next work, or None when the run is over."""

Told = dict[Answer, Work | None]
"""Answers that are due."""


class Sent(NamedTuple):
    """What a worker hands over when it asks for the next parameters."""

    rank: int
    iteration: int  # that the gradient is of; NEW where there is none yet
    gradient: Tensor  # (n,); (0,) where it goes as datagrams, which have been sent before
    loss: Tensor  # of the minibatch
    statistics: list[Tensor]  # of batch norm
    seconds: float = 0.0  # that the gradient took its worker


class Remote:
    """A transport. Faulty workers send their own gradients, on which the attack is put here, where all rows are known.

    A gradient of another iteration than the present one is thrown away: its worker is answered with the present one.
    Parameters are sent without a copy; who is so slow that they change meanwhile computes such a gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        parameters: Tensor,
        cluster: Cluster,
        measured: bool = False,
        parts: PhaseTimer | None = None,
        inbox: Inbox | None = None,
    ) -> None:
        """With an `inbox`, gradients come there, and workers' calls tell only that they have been sent."""
        self.config = config
        self._cluster = cluster
        self._attack = make_attack(config.attack)
        self._parameters = parameters
        self._G = torch.zeros(config.workers, len(parameters), dtype=parameters.dtype)
        self._buffers = [Buffers(model) for _ in range(config.workers)]
        self._momenta = [torch.zeros_like(parameters) for _ in range(config.workers if config.worker_momentum else 0)]
        self._changed = threading.Condition()
        self._iteration = _CLOSED
        self._over = False
        self._measured = measured
        self._parts = parts or PhaseTimer()
        self.inbox = inbox
        self._joined = Counter[int]()  # processes of each rank so far
        self._receiving: set[int] = set()  # whose gradient is being copied into its row
        self._losses: dict[int, Tensor] = {}
        self._landed: list[int] = []  # rows of G that the present iteration has been sent since somebody looked
        self._computing: dict[int, float] = {}  # seconds that the gradients took their workers
        self._gone: dict[int, str] = {}  # who is not waited for, and why
        self._asking: dict[int, Answer] = {}
        self._new: set[int] = set()  # who has not been told its state yet
        self._left: set[int] = set()  # who has heard that the run is over

    def exchange(self, sent: Sent) -> Answer:
        """Take what a worker sent; its answer may come later."""
        p = len(self._buffers)
        check("rank", sent.rank, 0 <= sent.rank < p, f"at least 0 and less than the run's {p} workers")
        with self._changed:
            told = self._welcome(sent)
            wanted = self._wants(sent)
        if wanted:  # without the lock, so that several land at a time
            self._row(sent.rank).copy_(sent.gradient)
        answer: Answer = Future()
        with self._changed:
            if wanted:
                self._land(sent)
            if self._iteration != _CLOSED and sent.rank not in self._losses and sent.rank not in self._gone:
                told[answer] = self._answer(sent.rank)
            elif self._over:
                told[answer] = None
            else:
                self._asking[sent.rank] = answer
            self._changed.notify_all()
        _tell(told)
        return answer

    def _welcome(self, sent: Sent) -> Told:
        """It is there, and waited for. Returns what another process of its rank is told, which is to leave."""
        self._gone.pop(sent.rank, None)
        if sent.iteration == NEW:
            self._new.add(sent.rank)
            self._joined[sent.rank] += 1
        replaced = self._asking.pop(sent.rank, None)
        return {} if replaced is None else {replaced: None}

    def _wants(self, sent: Sent) -> bool:
        """Whether its gradient is to go into its row, which is kept for it then; who sends a wrong one is gone."""
        if self._iteration == _CLOSED or sent.iteration != self._iteration:
            return False
        if wrong := self._wrong(sent):
            self._gone[sent.rank] = wrong
            return False
        if sent.rank in self._losses or sent.rank in self._receiving:
            return False
        self._receiving.add(sent.rank)
        return True

    def _answer(self, rank: int) -> Work:
        state = self._buffers[rank].tensors + self._momenta[rank : rank + 1] if rank in self._new else []
        self._new.discard(rank)
        return self._iteration, self._parameters, state

    def _row(self, rank: int) -> Tensor:
        """What that worker's calls fill of G: nothing where gradients come as datagrams."""
        return self._G[rank, : 0 if self.inbox else None]

    def _wrong(self, sent: Sent) -> str:
        """What is wrong with what a worker sent, or nothing."""
        row, gradient = self._row(sent.rank), sent.gradient
        if (gradient.shape, gradient.dtype, gradient.layout) != (row.shape, row.dtype, row.layout):
            kind = str(gradient.dtype) + ("" if gradient.layout == row.layout else f", {gradient.layout}")
            return f"sent {tuple(gradient.shape)} of {kind}, not {tuple(row.shape)} of {row.dtype}"
        if sent.loss.shape != () or not sent.loss.is_floating_point():
            return f"sent a loss of {tuple(sent.loss.shape)} of {sent.loss.dtype}, not one number"
        if [own.shape for own in sent.statistics] != [own.shape for own in self._buffers[sent.rank].tensors]:
            return "sent batch-norm statistics of another model"
        return ""

    def _land(self, sent: Sent) -> None:
        """Its gradient is in its row."""
        self._receiving.remove(sent.rank)
        self._losses[sent.rank] = sent.loss
        self._landed.append(sent.rank)
        self._computing[sent.rank] = sent.seconds
        for own, theirs in zip(self._buffers[sent.rank].tensors, sent.statistics, strict=True):
            own.copy_(theirs)

    def lose(self, rank: int, why: str) -> None:
        """Wait for that rank's first process no longer; another one that has come is not concerned."""
        with self._changed:
            if self._joined[rank] > 1:
                return
            self._gone[rank] = why
            self._asking.pop(rank, None)
            self._changed.notify_all()

    def gradients(self, iteration: int, parameters: Tensor) -> Gathered:
        """The gradients that came in time; the rows of the others are NaN, which rules leave out."""
        with self._changed:
            self._iteration = iteration
            if self.inbox:
                self.inbox.begin(iteration)
            self._losses.clear()
            self._landed.clear()
            self._computing.clear()
            told: Told = {answer: self._answer(rank) for rank, answer in self._asking.items()}
            self._asking.clear()
        _tell(told)
        landing = IncrementalGram(self._G) if self._measured and not self.inbox else None  # datagrams land together
        missing = self._await(landing)
        self._parts.add("compute", max(self._computing.values(), default=0.0))
        remarks = self._collect() if self.inbox else {}
        loss = self._complete(iteration, missing)
        products = None
        if landing is not None:
            with self._parts.phase("gram"):
                for rank in range(self.config.byzantine):
                    landing.add_row(rank)
                products = landing.matrix()
        return Gathered(self._G, loss, missing, products, remarks)

    def _await(self, landing: IncrementalGram | None) -> dict[int, str]:
        """Wait for as many gradients as there must be, no longer than the deadline, and tell `landing` of the honest
        ones as they come: the faulty rows are as they stay only after the attack. Returns who is missing, and why.
        """
        end = time.monotonic() + self._cluster.deadline
        while True:
            with self._changed:
                heard = self._changed.wait_for(lambda: bool(self._landed) or self._enough(), end - time.monotonic())
                closing = not heard or self._enough()
                if closing:
                    self._iteration = _CLOSED
                    self._changed.wait_for(lambda: not self._receiving)  # whose rows are half written
                    missing = self._missing(in_time=self._enough())
                landed = [rank for rank in self._landed if rank >= self.config.byzantine]
                self._landed.clear()
            if landing is not None and landed:
                with self._parts.phase("gram"):
                    for rank in landed:
                        landing.add_row(rank)
            if closing:
                return missing

    def _collect(self) -> dict[int, str]:
        """The gradients that were sent as datagrams, into their rows; what is lost of them, if anything."""
        assert self.inbox is not None
        lost = self.inbox.collect(self._losses, self._G)
        return {rank: f"{count} of {self.inbox.chunks} datagrams lost" for rank, count in lost.items()}

    def join(self) -> None:
        """Wait until all workers are there, but for those that end before."""
        everybody = range(self.config.workers)
        with self._parts.phase("join"), self._changed:
            self._changed.wait_for(lambda: all(r in self._asking or r in self._gone for r in everybody), _JOINING)
            for rank in everybody:
                if rank not in self._asking:
                    self._gone.setdefault(rank, f"has not joined within {_JOINING:g} s")

    def _enough(self) -> bool:
        quorum = self._cluster.quorum or self.config.workers
        awaited = [r for r in range(self.config.workers) if r not in self._losses and r not in self._gone]
        return len(self._losses) >= quorum or not awaited

    def _missing(self, in_time: bool) -> dict[int, str]:
        missing = {}
        for rank in range(self.config.workers):
            if rank in self._losses:
                continue
            if not in_time:
                self._gone.setdefault(rank, f"no gradient within {self._cluster.deadline:g} s")
            missing[rank] = self._gone.get(rank, f"not among the fastest {self._cluster.quorum}")
        return missing

    def _complete(self, iteration: int, missing: dict[int, str]) -> Tensor:
        """Put the attack and the missing rows into G, and return the honest workers' mean loss."""
        config = self.config
        for rank in self._losses if self._momenta else ():
            self._momenta[rank].copy_(self._G[rank])
        here = [rank for rank in range(config.byzantine, config.workers) if rank not in missing]
        if not here:
            reasons = "; ".join(f"worker {rank}: {why}" for rank, why in missing.items())
            raise TooFewWorkersError(f"iteration {iteration + 1}: no honest worker is left ({reasons})")
        absent = list(missing)
        if absent and config.byzantine:  # what an attack sees of honest rows that are not there is the others' mean
            self._G[absent] = self._G[here].mean(dim=0)
        self._attack.apply(self._G, range(config.byzantine), config.seed, iteration)
        if absent:
            self._G[absent] = torch.nan
        return torch.stack([self._losses[rank] for rank in here]).mean()

    def statistics(self) -> list[Buffers]:
        """Each worker's batch-norm statistics, as last heard."""
        return self._buffers

    def momenta(self) -> list[Tensor]:
        """Each worker's momentum, as last heard: it is what a worker sends."""
        return self._momenta

    def leave(self, rank: int) -> None:
        """That worker has heard that the run is over."""
        with self._changed:
            if self._over:  # else it is one that another process of its rank has replaced
                self._left.add(rank)
            self._changed.notify_all()

    def close(self) -> None:
        """Tell the workers that the run is over, and wait until those who are there have heard it."""
        with self._changed:
            self._over = True
            told: Told = dict.fromkeys(self._asking.values())
            self._asking.clear()
        _tell(told)
        with self._changed:
            self._changed.wait_for(lambda: self._left | self._gone.keys() >= set(range(self.config.workers)), _LEAVING)


def _tell(told: Told) -> None:
    """Without a lock: who waits for an answer may go on here."""
    for answer, its in told.items():
        answer.set_result(its)


_here: list[Remote] = []  # the run that this process serves


def install(remote: Remote) -> None:
    """Workers' calls go to `remote` from now on."""
    _here[:] = [remote]


def uninstall() -> None:
    """The run is over, and its gradients need not be kept."""
    _here.clear()


def describe() -> str:
    """Called by a worker: the run's configuration, as JSON."""
    return _here[0].config.to_json()


def datagrams() -> int | None:
    """Called by a worker: the port to which gradients go as datagrams, if they do."""
    inbox = _here[0].inbox
    return inbox.port if inbox else None


def leave(rank: int) -> None:
    """Called by a worker that has heard that the run is over."""
    _here[0].leave(rank)


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def exchange(*sent: object) -> Answer:
    """Called by a worker with the parts of a `Sent`; no thread waits with it for its answer."""
    return _here[0].exchange(Sent(*sent))  # type: ignore[arg-type]
