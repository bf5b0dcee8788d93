"""The training loop, written once for every transport."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fa.attacks import Attack
from fa.data import Dataset
from fa.rules import Aggregate, Rule, make_rule, per_worker
from fa.training.checkpoint import EVERY, Checkpoint, RunState
from fa.training.config import TrainConfig
from fa.training.direction_norm import scale_to_unit_mean
from fa.training.evaluation import Evaluation
from fa.training.optimizer import SGD
from fa.training.parameter_vector import Buffers
from fa.training.records import EXCLUDED, USED, CurvePoint, Run, WorkerRow, prepare_output_dir
from fa.training.schedule import schedule
from fa.training.setup import build_model, configured_attack, load_dataset, parse_recipe, worker_partitions
from fa.training.transports.base import GatheredGradients, ServedRun, Transport
from fa.training.transports.server_config import RpcConfig, TcpConfig
from fa.training.transports.simulation import SimulatedTransport
from fa.utils.ambient import usual_settings
from fa.utils.devices import find_device
from fa.utils.files import exclusive
from fa.utils.signals import held_back
from fa.utils.timing import PhaseTimer
from fa.utils.validation import MOST_THREADS, TooFewWorkersError, check, check_integer


class Progress(NamedTuple):
    """State of a run after an iteration, for the `progress` callback."""

    iteration: int  # number of finished iterations
    loss: Tensor  # scalar, on the run's device: reading it waits for the device
    accuracy: float | None  # at the last evaluation, if any
    G: Tensor  # (p, n), the iteration's gradients with the attack; the next iteration overwrites it
    workers: Sequence[WorkerRow] = ()  # the rule's decision on each worker
    evaluated: bool = False  # True if the accuracy belongs to this iteration


@usual_settings()
def train(
    config: TrainConfig,
    out: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    threads: int | None = None,
    server: TcpConfig | RpcConfig | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = EVERY,
) -> Run:
    """Train a model with p workers, some of them Byzantine.

    Equal configurations with equal numbers of threads give equal bits on one machine. Losses or parameters that are
    NaN or Inf do not end a run. If too few gradients are finite for the rule, iterations take no step, and the records
    say so.

    Args:
        config: The run's configuration.
        out: New folder for the records; None to write none.
        progress: Called after each iteration.
        threads: Torch's number of threads during the run; None leaves it unchanged.
        server: Settings of worker processes, over TCP or TensorPipe RPC. None: workers are simulated in this process.
        checkpoint: File to which the run saves its state, and from which it resumes. It is removed once `out` is
            written. Without `out`, the caller removes it.
        checkpoint_every: Seconds between two checkpoints.

    Returns:
        The run's curve, the rule's decisions, and the time that each phase took.

    Raises:
        ValueError: Settings are invalid, `out` exists, or another process is writing `out` or `checkpoint`.
        UnwrittenRunError: The run is finished, and its records cannot be written; the error has the run.
        TooFewWorkersError: The rule needs more workers than there are, or than are left.

    Example:
        >>> from fa.training import TrainConfig, train
        >>> train(TrainConfig(rule="median", workers=5, byzantine=1, iterations=2, batch=4)).curve[-1].iteration
        2
    """
    timer = PhaseTimer()
    check(
        "server", server, server is None or isinstance(server, TcpConfig | RpcConfig), "a TcpConfig, RpcConfig or None"
    )
    device = find_device(config.device)
    rule, attack = _checked(config, server)
    if out is not None:
        out = prepare_output_dir(out, checkpoint=checkpoint)
    with _torch_threads(threads), _reproducible_convolutions(), _reserved(out=out, checkpoint=checkpoint):
        saved = None if checkpoint is None else Checkpoint(checkpoint, checkpoint_every)
        dataset = load_dataset(config)
        worker_partitions(config, dataset)  # raises before worker processes start
        model, parameters = build_model(config, dataset, device)
        evaluation = Evaluation(model, dataset, device)
        threads_used = torch.get_num_threads()
        backend: dict[str, object] = {"name": "simulate"} if server is None else server.description()
        if saved is not None:
            saved.set_identity(config, dataset.checksum, threads_used, backend)
        initial = evaluation.accuracy([Buffers(model)])  # A resumed run too begins with the initial parameters.
        with _transport(model, dataset, config, parameters, rule, attack, server, timer) as transport:
            loop = Loop(config, rule, transport, parameters, len(dataset.train_labels), timer)
            honest = slice(config.byzantine, None)
            state = loop.run(lambda: evaluation.accuracy(transport.statistics()[honest]), progress, saved)
        if state.backends[:-1]:
            backend = backend | {"earlier": state.backends[:-1]}
        curve, rows = tuple(state.curve), tuple(state.workers)
        run = Run(
            config=config,
            curve=curve,
            workers=rows,
            seconds=timer.total,
            threads=threads_used,
            checksum=dataset.checksum,
            backend=backend,
            seconds_of=timer.seconds,
            initial_accuracy=initial,
            schedule=schedule(config, len(dataset.train_labels)),
        )
        if out is not None:
            run.write(out)
            if saved is not None:
                saved.remove()
        return run


def _checked(config: TrainConfig, server: TcpConfig | RpcConfig | None) -> tuple[Rule, Attack]:
    """Create the run's rule and attack, and check what needs no data set."""
    rule = make_rule(config.rule, f=config.rule_f, **config.options)
    rule.check_workers(config.workers)
    attack = configured_attack(config)
    parse_recipe(config, attack)
    if server is not None:
        server.check_run(config)
    return rule, attack


def _transport(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    parameters: Tensor,
    rule: Rule,
    attack: Attack,
    server: TcpConfig | RpcConfig | None,
    timer: PhaseTimer,
) -> AbstractContextManager[Transport]:
    """Start the workers, which end with the context."""
    if server is None:
        return nullcontext(SimulatedTransport(model, dataset, config, parameters, attack))
    run = ServedRun(model, config, parameters, dataset.checksum, rule.needs_gram, timer, attack)
    if isinstance(server, TcpConfig):
        from fa.training.transports.tcp.launch import serve_tcp

        return serve_tcp(run, server)
    from fa.training.transports.rpc.launch import serve_rpc

    return serve_rpc(run, server)


class Loop:
    """Outer loop of Algorithm 1: gather the gradients, aggregate them, step; evaluate at intervals."""

    def __init__(
        self,
        config: TrainConfig,
        rule: Rule,
        transport: Transport,
        parameters: Tensor,
        train_size: int,
        timer: PhaseTimer | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            config: The run's configuration.
            rule: The aggregation rule.
            transport: Source of the gradients.
            parameters: Vector of the model's parameters (n,), updated in place.
            train_size: Number of training images, which defines an epoch.
            timer: Timer of the run's phases.
        """
        self._config = config
        self._rule = rule
        self._transport = transport
        self._parameters = parameters
        self._timer = timer or PhaseTimer()
        self._schedule = schedule(config, train_size)
        self._optimizer = SGD(parameters, config, self._schedule.decay_every)

    def run(
        self,
        evaluate: Callable[[], float],
        progress: Callable[[Progress], None] | None,
        checkpoint: Checkpoint | None = None,
    ) -> RunState:
        """Do the iterations that remain.

        Args:
            evaluate: Returns the test accuracy at the present parameters.
            progress: Called after each iteration.
            checkpoint: Checkpoint to resume from, and to write to.

        Returns:
            The state after the last iteration.
        """
        state = RunState()
        if checkpoint is not None:
            restored = checkpoint.load(self._parameters, self._transport.statistics(), self._transport.momenta())
            state, self._optimizer.velocity = restored
        self._timer.resume(state.total_seconds, state.seconds_of)
        while state.iteration < self._config.iterations:  # again if a signal's handler does not end the process
            with held_back(checkpoint is not None) as interrupted:
                while state.iteration < self._config.iterations and not interrupted():
                    self._advance(state, evaluate, progress, checkpoint)
                if checkpoint is not None and interrupted():
                    self._save(state, checkpoint)
        return state

    def _advance(
        self,
        state: RunState,
        evaluate: Callable[[], float],
        progress: Callable[[Progress], None] | None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Do one iteration; see `run`."""
        before = time.perf_counter()
        gathered, rows = self._iterate(state.iteration)
        state.seconds += time.perf_counter() - before
        state.workers += rows
        state.iteration = done = state.iteration + 1
        if done % self._schedule.evaluate_every == 0 or done == self._config.iterations:
            epoch = -(-done // self._schedule.epoch)
            with self._timer.phase("evaluate"):
                point = CurvePoint(done, epoch, state.seconds, float(gathered.loss), evaluate())
            state.curve.append(point)
        if checkpoint is not None and checkpoint.due():
            self._save(state, checkpoint)
        if progress is not None:
            last = state.curve[-1] if state.curve else None
            accuracy = None if last is None else last.test_accuracy
            evaluated = last is not None and last.iteration == done
            progress(Progress(done, gathered.loss, accuracy, gathered.G, rows, evaluated))

    def _save(self, state: RunState, checkpoint: Checkpoint) -> None:
        state.total_seconds, state.seconds_of = self._timer.total, self._timer.seconds
        workers = self._transport.statistics(), self._transport.momenta()
        checkpoint.save(state, self._parameters, self._optimizer.velocity, *workers)

    def _iterate(self, iteration: int) -> tuple[GatheredGradients, list[WorkerRow]]:
        with self._timer.phase("gather"):
            gathered = self._transport.gradients(iteration)
        try:
            with self._timer.phase("aggregate"):
                aggregate = self._rule.aggregate(gathered.G, iteration, inner_products=gathered.inner_products)
                direction = aggregate.direction
                if self._config.direction_norm == "unit_mean":
                    direction = scale_to_unit_mean(direction, gathered.G, gathered.inner_products)
        except TooFewWorkersError as error:
            if torch.isfinite(gathered.loss) or not self._enough(gathered.missing):
                reasons = "".join(f"; worker {worker}: {reason}" for worker, reason in gathered.missing.items())
                raise TooFewWorkersError(f"iteration {iteration + 1}: {error}{reasons}") from error
            # The model has diverged, and too few gradients are finite: take no step, and record it.
            return gathered, _rows_without_step(iteration + 1, self._config.workers, gathered.missing)
        with self._timer.phase("update"):
            self._optimizer.step(direction, iteration)
        return gathered, _rows(iteration + 1, gathered, aggregate)

    def _enough(self, missing: Mapping[int, str]) -> bool:
        """Return True if the rule could serve the workers that are not missing, were their gradients finite."""
        try:
            rows = [worker for worker in range(self._config.workers) if worker not in missing]
            self._rule.for_rows(rows, self._config.workers).adjusted_for_missing(len(missing), len(rows))
        except TooFewWorkersError:
            return False
        return True


def _rows(iteration: int, gathered: GatheredGradients, aggregate: Aggregate) -> list[WorkerRow]:
    decision, workers = aggregate.decision, len(gathered.G)
    reasons = decision.excluded | dict(gathered.missing)
    values, weights = per_worker(decision.values, workers), per_worker(decision.weights, workers)
    selected = set(decision.selected)

    def status(worker: int) -> str:
        text = USED if worker in selected else EXCLUDED + reasons.get(worker, "not selected")
        return f"{text}; {gathered.notes[worker]}" if worker in gathered.notes else text

    return [WorkerRow(iteration, i, values[i], weights[i], status(i)) for i in range(workers)]


def _rows_without_step(iteration: int, workers: int, missing: Mapping[int, str]) -> list[WorkerRow]:
    reasons = [missing.get(worker, "the loss is not finite") for worker in range(workers)]
    return [WorkerRow(iteration, i, None, None, EXCLUDED + reason) for i, reason in enumerate(reasons)]


@contextmanager
def _reserved(**paths: str | Path | None) -> Iterator[None]:
    """Reserve the files and folders that a run writes."""
    with ExitStack() as stack:
        for name, path in paths.items():
            if path is not None:
                stack.enter_context(exclusive(name, Path(os.path.abspath(path))))
        yield


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        check_integer("threads", threads, 1)
        check("threads", threads, threads <= MOST_THREADS, f"at most {MOST_THREADS}")
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _reproducible_convolutions() -> AbstractContextManager[None]:
    """Make convolutions on a GPU deterministic and float32: torch's default there is TF32, with ten bits."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
