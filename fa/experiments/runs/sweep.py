"""Many runs, each in its own process: finished runs are kept even if others fail.

A fork server that has loaded torch and the compiled code starts each process. A run has one thread, so that its bits do
not depend on the number of parallel runs. A child exits when its parent dies.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from fa.data.registry import check_present
from fa.experiments.runs.store import Record, RunStore
from fa.training.config import TrainConfig
from fa.training.records import Run
from fa.utils import plugins
from fa.utils.blas import usable_cores
from fa.utils.files import InUseError
from fa.utils.forkserver import exit_when_parent_dies, forkserver_context
from fa.utils.malloc import retain_freed_memory
from fa.utils.progress_bar import reporter
from fa.utils.validation import check_integer

_POLL = 0.5
"""Seconds between two looks at runs that another process is doing."""

_GRACE = 30.0
"""Seconds for which an interrupted sweep waits for its children's checkpoints."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one configuration.

    Attributes:
        config: The configuration.
        record: Its record; None if the run failed.
        error: The reason of the failure.
        settings: Its settings in which the runs of the sweep differ, for messages; see `differing_settings`.
    """

    config: TrainConfig
    record: Record | None
    error: str = ""
    settings: str = ""

    def __str__(self) -> str:
        """Describe the run in one line, with its final accuracy or the error."""
        config = self.config
        result = f"failed: {(self.error.splitlines() or [''])[-1]}"
        if self.record is not None:
            result = f"{self.record.curve[-1]['test_accuracy']:.3f}"
        rule = plugins.display_name(config.rule, config.options)
        settings = f"{self.settings}, " if self.settings else ""
        return f"{rule}, f = {config.byzantine}, {settings}seed {config.seed}: {result}"


@dataclass
class _Child:
    config: TrainConfig
    claim: ExitStack
    process: Any
    answer: Connection


def sweep(
    configs: Sequence[TrainConfig],
    store: RunStore,
    jobs: int | None = None,
    progress: bool = True,
    processes: bool = False,
) -> list[Outcome]:
    """Run the configurations that the store lacks.

    A failed run does not affect the others. If the store has no room for a record, it is written among the temporary
    files. Ctrl-C ends the children, which save their checkpoints, and raises KeyboardInterrupt. Finished runs remain in
    the store, and the same call resumes the rest. Runs that another process is doing come last: their records are
    awaited.

    Args:
        configs: Configurations.
        store: The run store.
        jobs: Number of runs at a time; default: one a core, or one on a GPU.
        progress: True to show progress.
        processes: True if workers are processes. Runs then follow one another, and `jobs` is ignored.

    Returns:
        The outcomes, in the order of `configs`.

    Raises:
        ValueError: `jobs` is not a positive integer.
    """
    if jobs is not None:
        check_integer("jobs", jobs, 1)
    records = {config: store.find(config) for config in configs}
    missing = [config for config, record in records.items() if record is None]
    for dataset in {config.dataset for config in missing}:
        check_present(dataset)
    failures: dict[TrainConfig, str] = {}
    settings = differing_settings(configs)
    if progress and missing:
        print(f"{len(missing)} runs to do, {len(records) - len(missing)} are finished", flush=True)
    with reporter("runs", progress and bool(missing)) as report:
        report(len(records) - len(missing), len(records), str)
        runs = _in_turn(missing, store) if processes else _run_all(missing, store, jobs or _usual_jobs(missing))
        for outcome in (replace(outcome, settings=settings[outcome.config]) for outcome in runs):
            records[outcome.config], failures[outcome.config] = outcome.record, outcome.error
            done = sum(record is not None for record in records.values()) + sum(map(bool, failures.values()))
            report(done, len(records), outcome.__str__)
    return [Outcome(config, records[config], failures.get(config, ""), settings[config]) for config in configs]


def differing_settings(configs: Sequence[TrainConfig]) -> dict[TrainConfig, str]:
    """Describe the settings in which runs differ, except the rule, f and the seed.

    Args:
        configs: Configurations.

    Returns:
        Text by configuration; empty if the others do not differ.

    Example:
        >>> list(differing_settings([TrainConfig(lr=0.1), TrainConfig(lr=0.2, seed=1)]).values())
        ['lr = 0.1', 'lr = 0.2']
    """
    named = ("rule", "rule_options", "byzantine", "seed")
    names = [field.name for field in fields(TrainConfig) if field.name not in named]
    differing = [name for name in names if len({repr(getattr(config, name)) for config in configs}) > 1]
    return {config: ", ".join(f"{name} = {getattr(config, name)}" for name in differing) for config in configs}


def select_shard(configs: Sequence[TrainConfig], text: str) -> list[TrainConfig]:
    """Return one of k nearly equal parts: every k-th configuration, so that all parts have slow ones.

    Args:
        configs: Configurations.
        text: The part "i/k", with i from 1.

    Raises:
        ValueError: `text` is not such a part.
    """
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"shard must be i/k with 1 <= i <= k, as in 2/8, got {text!r}")
    return list(configs[int(part) - 1 :: int(parts)])


def _in_turn(configs: Sequence[TrainConfig], store: RunStore) -> Iterator[Outcome]:
    """Run the configurations one after another, with workers as processes.

    Their times are meaningful only if nothing else runs beside them.
    """
    import fa.experiments.runs.preload  # noqa: F401 (compilation would count as time of an iteration)
    from fa.training import train
    from fa.training.transports.server_config import RpcConfig

    waiting = list(configs)
    while waiting:
        claimed = _claim_next(waiting, store)
        if claimed is None:
            time.sleep(_POLL)
            continue
        config, claim = claimed
        record, error = store.find(config), ""
        with claim:
            if record is None:
                try:
                    run = train(config, threads=1, server=RpcConfig(), checkpoint=store.checkpoint(config))
                    record = _save(run, store)
                except (ValueError, OSError, RuntimeError) as failure:
                    error = str(failure)
        yield Outcome(config, record, error)


def _run_all(configs: Sequence[TrainConfig], store: RunStore, jobs: int) -> Iterator[Outcome]:
    context = forkserver_context(preload="fa.experiments.runs.preload")
    waiting, running = list(configs), list[_Child]()
    try:
        while waiting or running:
            while len(running) < jobs and (claimed := _claim_next(waiting, store)):
                config, claim = claimed
                if record := store.find(config):  # Another process has finished it meanwhile.
                    claim.close()
                    yield Outcome(config, record)
                    continue
                try:
                    running.append(_start(context, config, claim, store.root))
                except OSError as error:  # such as too little memory, or too many processes
                    claim.close()
                    if running:  # A child that ends may leave what this one lacks.
                        waiting.insert(0, config)
                        break
                    yield Outcome(config, None, f"its process cannot start: {error}")
            # A dying child closes its pipe too. A child with a long message cannot exit before it is read.
            idle = len(running) < jobs  # The runs that wait are another process's.
            ready = wait([child.answer for child in running], _POLL if idle and waiting else None) if running else []
            if waiting and not running:
                time.sleep(_POLL)
            for child in [child for child in running if child.answer in ready]:
                running.remove(child)
                yield _outcome(child, store.root)
    finally:
        _end(running)


def _claim_next(waiting: list[TrainConfig], store: RunStore) -> tuple[TrainConfig, ExitStack] | None:
    """Remove the first configuration that no other process is doing, and return it with its claim."""
    for config in waiting:
        claim = ExitStack()
        with suppress(InUseError):
            claim.enter_context(store.claim(config))
            waiting.remove(config)
            return config, claim
    return None


def _end(running: Sequence[_Child]) -> None:
    """End the children: they save their checkpoints first, if that takes less than `_GRACE` seconds."""
    for child in running:
        child.process.terminate()
    end = time.monotonic() + _GRACE
    for child in running:
        child.process.join(max(0.0, end - time.monotonic()))
    for child in running:
        child.process.kill()
        child.process.join()
        child.claim.close()


def _start(context: Any, config: TrainConfig, claim: ExitStack, root: Path) -> _Child:
    answer, child_end = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(config.to_json(), str(root), child_end), daemon=True)
    try:
        process.start()
    except OSError:
        answer.close()
        raise
    finally:
        child_end.close()
    return _Child(config, claim, process, answer)


def _outcome(child: _Child, root: Path) -> Outcome:
    try:
        error = child.answer.recv_bytes().decode()
    except (EOFError, OSError):  # The child sent no message, or died while it sent one.
        error = ""
    child.answer.close()
    child.process.join()
    child.claim.close()
    if not error and child.process.exitcode != 0:
        error = f"its process ended with exit code {child.process.exitcode}"
    record = None if error else RunStore(root).find(child.config)
    return Outcome(child.config, record, error or ("" if record else "its record is not in the store"))


def _work(settings: str, root: str, answer: Connection) -> None:
    """Do one run in the child, save it to the store, and send a failure to the parent."""
    exit_when_parent_dies()
    retain_freed_memory()
    try:
        from fa.training import train

        store, config = RunStore(root), TrainConfig.from_json(settings)
        _save(train(config, threads=1, checkpoint=store.checkpoint(config)), store)
    except (ValueError, OSError) as error:
        answer.send_bytes(str(error).encode())
    except BaseException:
        answer.send_bytes(traceback.format_exc().encode())
        raise


def _save(run: Run, store: RunStore) -> Record:
    """Save a finished run.

    Raises:
        ValueError: The store cannot be written to. The message has the result, and where the record is instead.
    """
    try:
        return store.save(run)
    except OSError as error:
        last = run.curve[-1]
        result = f"finished with accuracy {last.test_accuracy:.4f} and loss {last.train_loss:.4g}"
        raise ValueError(
            f"{result}, not saved: {error.strerror or error}; {_save_elsewhere(run, store.root)}"
        ) from error


def _save_elsewhere(run: Run, root: Path) -> str:
    """Write a record among the temporary files, and describe where."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="fa-record-"))
        try:
            record = RunStore(folder).save(run)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        return f"nor is there room among the temporary files ({error.strerror or error})"
    return f"move {record.folder} to {root}"


def _usual_jobs(configs: Sequence[TrainConfig]) -> int:
    """Return the number of usable cores, or 1 for a GPU, whose memory cannot be divided."""
    if any(config.device != "cpu" for config in configs):
        return 1
    return usable_cores()
