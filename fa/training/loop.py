"""The training loop, written once for every transport."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fa import models
from fa.attacks import make_attack
from fa.data import Dataset
from fa.layers import accelerate
from fa.rules import Aggregate, Rule, make_rule, per_worker
from fa.training.checkpoint import EVERY, Checkpoint, State
from fa.training.config import TrainConfig
from fa.training.optimizer import SGD, Evaluation
from fa.training.parameter_vector import flatten
from fa.training.records import USED, CurvePoint, Run, WorkerRow, make_room
from fa.training.transports.base import Cluster, Gathered, Transport
from fa.training.transports.simulation import Simulation
from fa.training.worker import data_of, own_images, recipe_of
from fa.utils.devices import find_device
from fa.utils.timing import PhaseTimer
from fa.utils.validation import TooFewWorkersError, check_integer


class Progress(NamedTuple):
    """What a run tells about itself after each iteration."""

    iteration: int  # how many are done
    loss: Tensor  # scalar, on the run's device: reading it waits for the device
    accuracy: float | None  # of the last evaluation
    G: Tensor  # (p, n), what the server was sent in that iteration; the next one overwrites it
    workers: Sequence[WorkerRow] = ()  # what the rule made of it
    evaluated: bool = False  # whether the accuracy is of this iteration


def train(
    config: TrainConfig,
    out: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    threads: int | None = None,
    cluster: Cluster | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = EVERY,
) -> Run:
    """Do one run, write its records to `out` if given, and return it.

    `progress` is called after each iteration; `threads` is torch's number of threads during the run (None: as it is).
    With a `cluster` the workers are processes of their own; without, they are simulated in this one. Equal
    configurations with equal threads give equal bits on one machine. With a `checkpoint`, a file, the run goes on from
    the state that is there, and puts its own there every `checkpoint_every` seconds; once `out` is written, the file is
    removed (without `out` that is left to the caller, who has the only copy). A loss or parameters that are NaN or Inf
    do not end a run. The server, who sees gradients and no losses, steps as long as the rule finds enough of them
    finite; from then on no step is taken, and the records say so. Raises ValueError for bad settings, before data are
    loaded where they do not depend on them; for an `out` that holds files or cannot be written; and when the rule's
    condition on the number of workers does not hold, or no longer does although the honest workers' loss is finite.
    """
    parts = PhaseTimer()
    if out is not None:
        out = make_room(out)
    with _torch_threads(threads):
        device = find_device(config.device)
        rule = _checked(config, cluster)
        kept = None if checkpoint is None else Checkpoint(checkpoint, checkpoint_every)
        dataset = data_of(config)
        own_images(config, dataset)
        model = models.build(config.model, *dataset.shape, seed=config.seed).to(device)
        if config.layers == "fast":
            accelerate(model)
        parameters = flatten(model)
        evaluation = Evaluation(model, dataset, device)
        used = torch.get_num_threads()
        backend: dict[str, object] = {"name": "simulate"} if cluster is None else cluster.description()
        if kept is not None:
            kept.identify(config, dataset.checksum, used, backend)
        with _transport(model, dataset, config, parameters, rule, cluster, parts) as transport:
            loop = Loop(config, rule, transport, parameters, len(dataset.train_labels), parts)
            honest = slice(config.byzantine, None)
            state = loop.run(lambda: evaluation.accuracy(transport.statistics()[honest]), progress, kept)
    if state.backends[:-1]:
        backend = backend | {"earlier": state.backends[:-1]}
    curve, rows = tuple(state.curve), tuple(state.workers)
    run = Run(config, curve, rows, parts.total, used, dataset.checksum, backend, parts.seconds)
    if out is not None:
        run.write(out)
        if kept is not None:
            kept.remove()
    return run


def _checked(config: TrainConfig, cluster: Cluster | None) -> Rule:
    """The run's rule; ValueError, before any data are read, for what does not go with the configuration."""
    rule = make_rule(config.rule, f=config.rule_f, **config.options)
    rule.check_workers(config.workers)
    make_attack(config.attack)
    recipe_of(config)
    if cluster is not None:
        cluster.check(config)
    return rule


@contextmanager
def _transport(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    parameters: Tensor,
    rule: Rule,
    cluster: Cluster | None,
    parts: PhaseTimer,
) -> Iterator[Transport]:
    if cluster is None:
        yield Simulation(model, dataset, config, parameters)
        return
    from fa.training.transports.rpc.launch import serving

    with serving(model, config, parameters, rule.needs_gram, cluster, parts) as remote:
        yield remote


class Loop:
    """Algorithm 1's outer loop: gather the gradients, aggregate them, step; evaluate now and then."""

    def __init__(
        self,
        config: TrainConfig,
        rule: Rule,
        transport: Transport,
        parameters: Tensor,
        train_size: int,
        parts: PhaseTimer | None = None,
    ) -> None:
        """`parts` is told where the time goes."""
        self._config = config
        self._rule = rule
        self._transport = transport
        self._parameters = parameters
        self._parts = parts or PhaseTimer()
        self._epoch_length = config.epoch_length(train_size)
        self._evaluate_every = config.evaluate_every or self._epoch_length
        self._optimizer = SGD(parameters, config, self._epoch_length)

    def run(
        self,
        evaluate: Callable[[], float],
        progress: Callable[[Progress], None] | None,
        checkpoint: Checkpoint | None = None,
    ) -> State:
        """All the iterations that are left, and the state after the last; `evaluate` returns the test accuracy of the
        parameters as they are.
        """
        state = State()
        if checkpoint is not None:
            kept = checkpoint.load(self._parameters, self._transport.statistics(), self._transport.momenta())
            state, self._optimizer.velocity = kept
        self._parts.resume(state.whole, state.seconds_of)
        for iteration in range(state.iteration, self._config.iterations):
            before = time.perf_counter()
            gathered, rows = self._iterate(iteration)
            state.seconds += time.perf_counter() - before
            state.workers += rows
            state.iteration = done = iteration + 1
            if done % self._evaluate_every == 0 or done == self._config.iterations:
                epoch = -(-done // self._epoch_length)
                with self._parts.phase("evaluate"):
                    accuracy = evaluate()
                state.curve.append(CurvePoint(done, epoch, state.seconds, float(gathered.loss), accuracy))
            if checkpoint is not None and checkpoint.due():
                state.whole, state.seconds_of = self._parts.total, self._parts.seconds
                workers = self._transport.statistics(), self._transport.momenta()
                checkpoint.save(state, self._parameters, self._optimizer.velocity, *workers)
            if progress is not None:
                last = state.curve[-1] if state.curve else None
                known = None if last is None else last.test_accuracy
                evaluated = last is not None and last.iteration == done
                progress(Progress(done, gathered.loss, known, gathered.G, rows, evaluated))
        return state

    def _iterate(self, iteration: int) -> tuple[Gathered, list[WorkerRow]]:
        with self._parts.phase("gather"):
            gathered = self._transport.gradients(iteration, self._parameters)
        try:
            with self._parts.phase("aggregate"):
                aggregate = self._rule.aggregate(gathered.G, iteration, inner_products=gathered.products)
        except TooFewWorkersError as error:
            if torch.isfinite(gathered.loss):
                raise TooFewWorkersError(f"iteration {iteration + 1}: {error}") from error
            # The model has diverged and too few gradients are finite: no step is taken, and the records say so.
            return gathered, _nobody(iteration + 1, self._config.workers, gathered.missing)
        with self._parts.phase("update"):
            self._optimizer.step(aggregate.direction, iteration)
        return gathered, _rows(iteration + 1, gathered, aggregate)


def _rows(iteration: int, gathered: Gathered, aggregate: Aggregate) -> list[WorkerRow]:
    decision, workers = aggregate.decision, len(gathered.G)
    reasons = decision.left_out | dict(gathered.missing)
    values, weights = per_worker(decision.values, workers), per_worker(decision.weights, workers)
    selected = set(decision.selected)

    def status(worker: int) -> str:
        said = USED if worker in selected else f"left out: {reasons.get(worker, 'not selected')}"
        return f"{said}; {gathered.remarks[worker]}" if worker in gathered.remarks else said

    return [WorkerRow(iteration, i, values[i], weights[i], status(i)) for i in range(workers)]


def _nobody(iteration: int, workers: int, missing: Mapping[int, str]) -> list[WorkerRow]:
    why = {worker: missing.get(worker, "the loss is not finite") for worker in range(workers)}
    return [WorkerRow(iteration, worker, None, None, f"left out: {reason}") for worker, reason in why.items()]


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        check_integer("threads", threads, 1)
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
