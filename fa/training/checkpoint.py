"""The state of a run between two iterations, in one file, from which a run that was killed goes on."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fa.training.config import RECORD_VERSION, TrainConfig
from fa.training.parameter_vector import Buffers
from fa.training.records import CurvePoint, WorkerRow
from fa.utils import plugins
from fa.utils.files import new_file, temporary_path
from fa.utils.validation import check, check_real

_CHECKSUM = 32  # bytes of a SHA-256
EVERY = 300.0  # seconds from one checkpoint to the next


@dataclass
class State:
    """How far a run is, and what it has recorded."""

    iteration: int = 0  # how many are done
    seconds: float = 0.0  # spent in them
    whole: float = 0.0  # seconds until this state was kept, set-up and evaluations included
    seconds_of: dict[str, float] = field(default_factory=dict)  # parts of the whole
    curve: list[CurvePoint] = field(default_factory=list)
    workers: list[WorkerRow] = field(default_factory=list)
    backends: list[dict[str, Any]] = field(default_factory=list)  # how workers were run, one after another


class Checkpoint:
    """One run's checkpoint: written whole or not at all, every `every` seconds, and read back bit for bit.

    Raises ValueError where `path` cannot be
    written, its folder is not there, and for `every` < 0.
    """

    def __init__(self, path: str | Path, every: float = EVERY) -> None:
        check_real("checkpoint_every", every, 0)
        self.path = Path(os.path.abspath(path))
        check("checkpoint", str(self.path), not self.path.is_dir(), "a file")
        check("checkpoint", str(self.path), self.path.parent.is_dir(), "a file in a folder that is there")
        trial = temporary_path(self.path.parent)  # before any work is done for which there is no place
        try:
            trial.touch()
            trial.unlink()
        except OSError as error:
            raise self._unwritable(error) from error
        self._every = every
        self._last = time.monotonic()

    def identify(self, config: TrainConfig, checksum: str, threads: int, backend: dict[str, Any]) -> None:
        """Say whose it is: the run's configuration, the data's checksum, and how many threads torch has; and how its
        workers are run, which may change when it goes on.
        """
        self._backend = backend
        self._identity = {
            **json.loads(config.to_json()),
            "data_checksum": checksum,
            "record_version": RECORD_VERSION,
            "threads": threads,  # with another number the rest would be rounded differently
        } | plugins.file_checksums(config.rule, config.attack)

    def load(
        self, parameters: Tensor, statistics: list[Buffers], momenta: Sequence[Tensor] = ()
    ) -> tuple[State, Tensor | None]:
        """The state at which to begin, with `parameters` (n,), `statistics` and the workers' `momenta` set to those of
        then, and the optimizer's velocity (n,), None where it has none.

        Where no file is, that is the beginning. Raises ValueError for one that is damaged or of another run.
        """
        if not self.path.exists():
            return State(backends=[self._backend]), None
        content = self._read()
        self._refuse_another(content["identity"])
        parameters.copy_(content["parameters"])
        for buffers, tensors in zip(statistics, content["statistics"], strict=True):
            for tensor, saved in zip(buffers.tensors, tensors, strict=True):
                tensor.copy_(saved)
        for momentum, saved in zip(momenta, content["momenta"], strict=True):
            momentum.copy_(saved)
        saved_state = content["state"]
        curve = [CurvePoint(*point) for point in saved_state["curve"]]
        workers = [WorkerRow(*row) for row in saved_state["workers"]]
        state = State(**saved_state | {"curve": curve, "workers": workers})
        state.backends += [self._backend] if state.backends[-1:] != [self._backend] else []
        velocity = content["velocity"]
        return state, None if velocity is None else velocity.to(parameters.device)

    def due(self) -> bool:
        """Whether the time of the next one has come."""
        return time.monotonic() - self._last >= self._every

    def save(
        self,
        state: State,
        parameters: Tensor,
        velocity: Tensor | None,
        statistics: list[Buffers],
        momenta: Sequence[Tensor] = (),
    ) -> None:
        """Put this state in the place of the last one."""
        content = {
            "identity": self._identity,
            "state": vars(state) | {name: list(map(tuple, getattr(state, name))) for name in ("curve", "workers")},
            "parameters": _copy(parameters),
            "velocity": None if velocity is None else _copy(velocity),
            "statistics": [[_copy(tensor) for tensor in buffers.tensors] for buffers in statistics],
            "momenta": [_copy(momentum) for momentum in momenta],
        }
        try:
            write(self.path, content)
        except OSError as error:
            raise self._unwritable(error) from error
        self._last = time.monotonic()

    def remove(self) -> None:
        """The run is kept elsewhere by now."""
        self.path.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> ValueError:
        return ValueError(f"checkpoint must be a file that can be written ({error}), got {self.path}")

    def _read(self) -> dict[str, Any]:
        try:
            return read(self.path)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"checkpoint must be one that fa wrote; {self.path} cannot be read ({error}): remove it to begin anew"
            ) from error

    def _refuse_another(self, there: dict[str, Any]) -> None:
        names = sorted(there.keys() | self._identity.keys())
        pairs = [(name, there.get(name), self._identity.get(name)) for name in names]
        differ = ", ".join(f"{name} ({was!r} there, {now!r} here)" for name, was, now in pairs if was != now)
        if differ:
            raise ValueError(
                f"checkpoint must be of the same run; {self.path} differs in {differ}: name another file, or remove it"
            )


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint: what torch.save writes, and its SHA-256 (32 bytes) behind it."""
    with new_file(path) as unfinished, unfinished.open("wb+") as file:
        torch.save(content, file)
        file.seek(0)
        file.write(hashlib.file_digest(file, "sha256").digest())


def read(path: Path) -> dict[str, Any]:
    """Read what `write` wrote; ValueError if a bit of the file has changed."""
    content = path.read_bytes()
    if hashlib.sha256(memoryview(content)[:-_CHECKSUM]).digest() != content[-_CHECKSUM:]:
        raise ValueError("its checksum differs")
    loaded: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return loaded


def _copy(tensor: Tensor) -> Tensor:
    """A view would be written with all the memory that it looks at."""
    return tensor.detach().cpu().clone()
