"""What a run leaves behind: curve.csv, workers.csv and config.json, written as one whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fa import __version__
from fa.training.config import RECORD_VERSION, TrainConfig
from fa.training.record_schema import SCHEMA_VERSION
from fa.utils import plugins
from fa.utils.files import sync_folder, temporary_path
from fa.utils.validation import check

FILES = ("curve.csv", "workers.csv", "config.json")  # the last is written last, and stands for the whole
USED = "used"
UNDEFINED = "none"
"""What stands in workers.csv for a value or weight that the rule does not define."""


class CurvePoint(NamedTuple):
    """The state of a run after `iteration` iterations."""

    iteration: int
    epoch: int  # the epoch, counted from 1, in which that iteration lies
    seconds: float  # spent in iterations so far: evaluations and set-up left out
    train_loss: float  # mean over the honest workers' minibatches of that iteration; may be NaN or infinite
    test_accuracy: float  # a fraction


class WorkerRow(NamedTuple):
    """What the server made of one worker's gradient."""

    iteration: int
    worker: int
    value: float | None  # explained variance v_i, where the rule has them
    weight: float | None  # weight in the aggregate, where the rule has one for a whole gradient
    status: str  # "used", or "left out: " and the reason; where some were lost, "; 6 of 61 datagrams lost"


PARTS = {
    "join": "waiting for worker processes to join",
    "gather": "from the iterations' beginnings until their gradients are there",
    "compute": "of that, the slowest worker's own time for its gradient, where workers are processes",
    "gram": "of that, inner products of the gradients that had come, and what was left of them after the last",
    "aggregate": "the rule: what it decides, and the direction",
    "update": "the optimizer's step",
    "evaluate": "test accuracies",
}
"""What a run's seconds are spent on, as config.json has it. A GPU's gradients are waited for in "aggregate"."""


def faulty_share(rows: Sequence[WorkerRow], byzantine: int) -> float:
    """The share of the first `byzantine` workers in the sizes of all weights; where there are none, in those that were
    used; 0 where nobody was.
    """
    weighed = any(row.weight is not None for row in rows)
    sizes = [abs(row.weight or 0.0) if weighed else float(row.status.startswith(USED)) for row in rows]
    return sum(sizes[:byzantine]) / (sum(sizes) or 1.0)


@dataclass(frozen=True)
class Run:
    """A finished run."""

    config: TrainConfig
    curve: tuple[CurvePoint, ...]
    workers: tuple[WorkerRow, ...]
    seconds: float  # the whole run, evaluations and set-up included, of all processes that did a share of it
    threads: int
    checksum: str  # of the data's content
    backend: Mapping[str, object] = field(default_factory=lambda: {"name": "simulate"})  # how workers were run
    seconds_of: Mapping[str, float] = field(default_factory=dict)  # parts of the whole, see `PARTS`

    @property
    def final_accuracy(self) -> float:
        """Test accuracy after the last iteration, a fraction."""
        return self.curve[-1].test_accuracy

    def write(self, directory: str | Path) -> Path:
        """Make `directory` with the three files in it and return its absolute path. It appears complete, or not at all;
        one that is there already, and empty, gets whole files one by one, config.json last.

        Raises ValueError where it cannot be written, or holds files by now: the message says where the records are.
        """
        target = _absolute(directory)
        making = _workspace(target)
        try:
            self.write_files(making)
            sync_folder(making)
        except BaseException as error:
            shutil.rmtree(making, ignore_errors=True)
            if isinstance(error, OSError):
                raise ValueError(f"{target} cannot be written: {error.strerror or error}") from error
            raise
        try:
            _move(making, target)
        except (ValueError, OSError) as error:  # the work is done, and must not be lost
            raise ValueError(f"{error}; the run is finished, and its records are in {making}") from error
        return target

    def write_files(self, folder: Path) -> None:
        """Write the three files into `folder`."""
        _write_csv(folder / "curve.csv", CurvePoint._fields, self.curve)
        _write_csv(folder / "workers.csv", WorkerRow._fields, self.workers)
        (folder / "config.json").write_text(json.dumps(self.description(), indent=2, sort_keys=True) + "\n")

    def description(self) -> dict[str, Any]:
        """What config.json holds."""
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
            "seconds_of": {part: round(its, 6) for part, its in self.seconds_of.items()},
            "final_accuracy": self.final_accuracy,
        } | plugins.file_checksums(self.config.rule, self.config.attack)


def make_room(directory: str | Path) -> Path:
    """The absolute path of `directory`, to which a run can be written: it is new or empty, and files can be made there.

    Its parents are made. Raises ValueError otherwise.
    """
    target = _absolute(directory)
    _refuse_occupied(target)
    _workspace(target).rmdir()
    return target


def _absolute(directory: str | Path) -> Path:
    return Path(os.path.abspath(directory))  # which also takes "." and ".." out, so that the path has a name


def _refuse_occupied(target: Path, besides: Path | None = None) -> None:
    usable = not target.is_symlink() and (not target.exists() or target.is_dir())
    check("out", str(target), usable, "a directory, new or empty")
    holds = target.is_dir() and any(path != besides for path in target.iterdir())
    check("out", str(target), not holds, "empty: it holds files already")


def _workspace(target: Path) -> Path:
    """A temporary directory beside `target`, or in it where it is there: it may be mounted, or somebody's working
    directory, and its parent need not be ours to write.
    """
    place = target if target.is_dir() else target.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        making = temporary_path(place)
        making.mkdir()
    except OSError as error:
        raise ValueError(
            f"out must be a directory where files can be made ({error.strerror}), got {str(target)!r}"
        ) from error
    return making


def _move(making: Path, target: Path) -> None:
    _refuse_occupied(target, besides=making)
    if making.parent != target:
        making.rename(target)
        return
    for name in FILES:
        (making / name).rename(target / name)
    making.rmdir()


# torch is imported where it is used: the command line refuses a bad `out` before it waits for torch.


def versions() -> dict[str, str]:
    """The versions of what the numbers depend on."""
    import numpy
    import torch

    return {
        "fa": __version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def hardware(device: str) -> dict[str, str | int]:
    """The processor, its cores, and the device that trained."""
    import torch

    kind = torch.device(device)
    name = torch.cuda.get_device_name(kind) if kind.type == "cuda" else device
    instructions = torch.backends.cpu.get_cpu_capability()  # on which the last bits depend
    return {"cpu": _cpu_model(), "instructions": instructions, "cores": os.cpu_count() or 1, "device": name}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def _cell(value: object) -> str:
    """Real numbers to six digits, which is all that float32 holds, and no empty cell."""
    if value is None:
        return UNDEFINED
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(map(_cell, row) for row in rows)
