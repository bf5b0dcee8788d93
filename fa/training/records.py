"""Records of a run: curve.csv, workers.csv and config.json, in a folder that appears complete or not at all."""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fa import __version__
from fa.training.config import RECORD_VERSION, TrainConfig
from fa.training.record_schema import SCHEMA_VERSION
from fa.training.schedule import Schedule
from fa.utils.files import PREFIX, publish, sync_folder, temporary_folder
from fa.utils.validation import check

FILES = ("curve.csv", "workers.csv", "config.json")
"""Files of a record; config.json is written last, and so marks a complete one."""

USED = "used"
"""Status of a worker whose gradient contributes to the direction."""

EXCLUDED = "excluded: "
"""Start of the status of an excluded worker, which its reason follows."""

EXCLUDED_BEFORE = "left out: "
"""The same start in records of older releases."""

UNDEFINED = "none"
"""Entry of workers.csv for a value or weight that the rule does not define."""


class CurvePoint(NamedTuple):
    """The state of a run after `iteration` iterations."""

    iteration: int
    epoch: int  # of that iteration, from 1
    seconds: float  # spent in iterations so far, without evaluations and set-up
    train_loss: float  # mean over the honest workers' minibatches; may be NaN or infinite
    test_accuracy: float  # a fraction


class WorkerRow(NamedTuple):
    """The rule's decision on one worker's gradient."""

    iteration: int
    worker: int
    value: float | None  # explained variance v_i, if the rule defines it
    weight: float | None  # weight in the aggregate, if the rule has one weight per gradient
    status: str  # USED, or EXCLUDED and the reason; then notes, such as "; 6 of 61 datagrams lost"


def byzantine_share(rows: Sequence[WorkerRow], byzantine: int) -> float:
    """Return the Byzantine workers' share in the absolute weights of one iteration.

    Args:
        rows: The iteration's rows, by rank.
        byzantine: Number of Byzantine workers: the first ranks.

    Returns:
        Their share in the weights; without weights, their share in the used gradients; 0 if no gradient was used.

    Example:
        >>> byzantine_share([WorkerRow(1, 0, None, 0.25, USED), WorkerRow(1, 1, None, 0.75, USED)], byzantine=1)
        0.25
    """
    weighted = any(row.weight is not None for row in rows)
    sizes = [abs(row.weight or 0.0) if weighted else float(row.status.startswith(USED)) for row in rows]
    return sum(sizes[:byzantine]) / (sum(sizes) or 1.0)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run.

    Phases in `seconds_of`, where a GPU's gradients are awaited in "aggregate":
        join: Waiting for worker processes to join.
        gather: From the beginning of an iteration until its gradients have arrived.
        compute: Of that, the slowest worker's time for its gradient, if workers are processes.
        gram: Of that, inner products of gradients that had arrived, and the rest after the last one.
        aggregate: The rule's decision, and the direction.
        update: The optimizer's step.
        evaluate: Test accuracies.
    """

    config: TrainConfig
    curve: tuple[CurvePoint, ...]  # one point per evaluation
    workers: tuple[WorkerRow, ...]  # one row per iteration and worker
    seconds: float  # of the whole run, evaluations, set-up and earlier processes included
    threads: int  # of torch
    checksum: str  # of the data's content
    backend: Mapping[str, object] = field(default_factory=lambda: {"name": "simulate"})  # description of the transport
    seconds_of: Mapping[str, float] = field(default_factory=dict)  # of each phase
    initial_accuracy: float | None = None  # test accuracy of the initial parameters, a fraction
    schedule: Schedule | None = None  # with the defaults of settings that the configuration leaves open

    @property
    def final_accuracy(self) -> float:
        """Test accuracy after the last iteration, a fraction."""
        return self.curve[-1].test_accuracy

    def write(self, directory: str | Path) -> Path:
        """Write the records.

        Args:
            directory: A new folder, which appears complete or not at all. An existing, empty one receives complete
                files one by one, config.json last.

        Returns:
            Its absolute path.

        Raises:
            UnwrittenRunError: It cannot be written, or holds files by now. The message names the folder of the
                records, if they could be written at all.
        """
        target = _absolute(directory)
        try:
            with _temporary_folder(target) as temporary:
                self.write_files(temporary)
                sync_folder(temporary)
                try:
                    _publish(temporary, target)
                except (ValueError, OSError) as error:  # a finished run must not be lost
                    rescued = temporary.with_name(temporary.name.removeprefix(PREFIX))
                    publish(temporary, rescued)
                    raise ValueError(f"{error}; the run is finished, and its records are in {rescued}") from error
        except ValueError as error:
            raise UnwrittenRunError(str(error), self) from error
        return target

    def write_files(self, folder: Path) -> None:
        """Write the three files into `folder`.

        Args:
            folder: Existing folder.

        Raises:
            OSError: A file cannot be written.
        """
        _write_csv(folder / "curve.csv", CurvePoint._fields, self.curve)
        _write_csv(folder / "workers.csv", WorkerRow._fields, self.workers)
        description = json.dumps(self.description(), indent=2, sort_keys=True)
        (folder / "config.json").write_text(description + "\n", encoding="utf-8")

    def description(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return {
            "config": json.loads(self.config.to_json()),
            "schema_version": SCHEMA_VERSION,
            "record_version": RECORD_VERSION,
            "data_checksum": self.checksum,
            "versions": versions(),
            "hardware": hardware(self.config.device),
            "backend": dict(self.backend),
            "threads": self.threads,
            "seconds": round(self.seconds, 3),
            "seconds_of": {phase: round(seconds, 6) for phase, seconds in self.seconds_of.items()},
            "final_accuracy": self.final_accuracy,
            **({} if self.initial_accuracy is None else {"initial_accuracy": self.initial_accuracy}),
            **({} if self.schedule is None else {"schedule": self.schedule._asdict()}),
        } | self.config.files_and_packages()


class UnwrittenRunError(ValueError):
    """Error of a finished run whose records cannot be written."""

    def __init__(self, message: str, run: Run) -> None:
        """Keep the run.

        Args:
            message: What is wrong.
            run: The finished run; `Run.write` writes its records elsewhere.
        """
        super().__init__(message)
        self.run = run

    def __reduce__(self) -> tuple[type[UnwrittenRunError], tuple[str, Run]]:
        """Support pickle, with which processes pass errors to their parents."""
        return type(self), (str(self), self.run)


def prepare_output_dir(directory: str | Path, **outputs: str | Path | None) -> Path:
    """Check that a run can be written to a folder, and create its parents.

    Args:
        directory: A new or empty folder.
        **outputs: Other files and folders that the run writes meanwhile, by argument.

    Returns:
        Its absolute path.

    Raises:
        ValueError: It holds files, none can be written there, or one of `outputs` would be in it.
    """
    target = _absolute(directory)
    _check_unoccupied(target)
    for name, path in outputs.items():
        within = path is not None and _absolute(path).is_relative_to(target)
        check(name, str(path), not within, f"outside of out ({target}), which must be empty until the run ends")
    with _temporary_folder(target):
        return target


def _absolute(directory: str | Path) -> Path:
    return Path(os.path.abspath(directory))  # also resolves "." and "..", so that the path has a name


def _check_unoccupied(target: Path, ignored: Path | None = None) -> None:
    usable = not target.is_symlink() and (not target.exists() or target.is_dir())
    check("out", str(target), usable, "a directory, new or empty")
    occupied = target.is_dir() and any(path != ignored for path in target.iterdir())
    check("out", str(target), not occupied, "empty: it holds files already")


@contextmanager
def _temporary_folder(target: Path) -> Iterator[Path]:
    """Create a temporary folder beside `target`, or in it if it exists: its parent may not be writable."""
    try:
        with temporary_folder(target if target.is_dir() else target.parent) as temporary:
            yield temporary
    except OSError as error:
        raise ValueError(
            f"out must be a directory in which files can be written ({error.strerror}), got {str(target)!r}"
        ) from error


def _publish(temporary: Path, target: Path) -> None:
    _check_unoccupied(target, ignored=temporary)
    if temporary.parent != target:
        publish(temporary, target)
        return
    for name in FILES:
        publish(temporary / name, target / name)


# torch is imported in functions: the command line checks `out` before it imports torch.


def versions() -> dict[str, str]:
    """Return the versions of the software on which results depend."""
    import numpy
    import torch

    return {
        "fa": __version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def hardware(device: str) -> dict[str, str | int]:
    """Return the processor, its number of cores, and the training device.

    Args:
        device: Name of the training device.

    Returns:
        Entries cpu, instructions, cores and device.
    """
    import torch

    kind = torch.device(device)
    name = torch.cuda.get_device_name(kind) if kind.type == "cuda" else device
    instructions = torch.backends.cpu.get_cpu_capability()  # the last bits depend on it
    return {"cpu": _cpu_model(), "instructions": instructions, "cores": os.cpu_count() or 1, "device": name}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def _cell(value: object) -> str:
    """Format real numbers to six digits, the precision of float32, and never as an empty cell."""
    if value is None:
        return UNDEFINED
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(map(_cell, row) for row in rows)
