"""The state of a run between two iterations, in one file, from which the run can resume."""

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
from fa.utils.files import new_file, temporary_folder
from fa.utils.validation import check, check_real

_CHECKSUM = 32  # bytes of a SHA-256
_FIELDS = {"whole": "total_seconds"}  # of `RunState`, by their names in a file that differ
EVERY = 300.0  # seconds between two checkpoints


@dataclass
class RunState:
    """Progress of a run, and its records so far."""

    iteration: int = 0  # number of finished iterations
    seconds: float = 0.0  # time of these iterations
    total_seconds: float = 0.0  # until this state was saved, set-up and evaluations included
    seconds_of: dict[str, float] = field(default_factory=dict)  # time of each phase
    curve: list[CurvePoint] = field(default_factory=list)
    workers: list[WorkerRow] = field(default_factory=list)
    backends: list[dict[str, Any]] = field(default_factory=list)  # descriptions of the transports used so far


class Checkpoint:
    """One run's checkpoint file, written atomically, and read back bit for bit."""

    def __init__(self, path: str | Path, every: float = EVERY) -> None:
        """Check that the file can be written.

        Args:
            path: The file.
            every: Seconds between two checkpoints.

        Raises:
            ValueError: The file cannot be written, its folder does not exist, or `every` is negative.
        """
        check_real("checkpoint_every", every, 0)
        self.path = Path(os.path.abspath(path))
        check("checkpoint", str(self.path), not self.path.is_dir(), "a file")
        check("checkpoint", str(self.path), self.path.parent.is_dir(), "a file in an existing folder")
        try:
            with temporary_folder(self.path.parent):  # Fail before any work is done that could not be saved.
                pass
        except OSError as error:
            raise self._unwritable(error) from error
        self._every = every
        self._last = time.monotonic()
        self._identity: dict[str, Any] = {}
        self._backend: dict[str, Any] = {}

    def set_identity(self, config: TrainConfig, checksum: str, threads: int, backend: dict[str, Any]) -> None:
        """Set what the checkpoint belongs to; call it before `load` and `save`.

        Args:
            config: The run's configuration.
            checksum: Checksum of the data's content.
            threads: Torch's number of threads.
            backend: Description of the transport, which may change when the run resumes.
        """
        self._backend = backend
        self._identity = {
            **json.loads(config.to_json()),
            "data_checksum": checksum,
            "record_version": RECORD_VERSION,
            "threads": threads,  # another number would round differently
        } | config.files_and_packages()

    def load(
        self, parameters: Tensor, statistics: list[Buffers], momenta: Sequence[Tensor] = ()
    ) -> tuple[RunState, Tensor | None]:
        """Restore a run, or begin it if the file does not exist.

        Args:
            parameters: Vector (n,), overwritten.
            statistics: The workers' batch-norm statistics, overwritten.
            momenta: The workers' momenta (n,), overwritten.

        Returns:
            The state, and the optimizer's velocity (n,), if any.

        Raises:
            ValueError: The file is damaged, or belongs to another run.
        """
        if not self.path.exists():
            return RunState(backends=[self._backend]), None
        content = self._read()
        self._check_identity(content["identity"])
        parameters.copy_(content["parameters"])
        for buffers, tensors in zip(statistics, content["statistics"], strict=True):
            for tensor, saved in zip(buffers.tensors, tensors, strict=True):
                tensor.copy_(saved)
        for momentum, saved in zip(momenta, content["momenta"], strict=True):
            momentum.copy_(saved)
        saved_state = content["state"]
        curve = [CurvePoint(*point) for point in saved_state["curve"]]
        workers = [WorkerRow(*row) for row in saved_state["workers"]]
        named = {_FIELDS.get(name, name): value for name, value in saved_state.items()}
        state = RunState(**named | {"curve": curve, "workers": workers})
        state.backends += [self._backend] if state.backends[-1:] != [self._backend] else []
        velocity = content["velocity"]
        return state, None if velocity is None else velocity.to(parameters.device)

    def due(self) -> bool:
        """Return whether the next checkpoint should be written."""
        return time.monotonic() - self._last >= self._every

    def save(
        self,
        state: RunState,
        parameters: Tensor,
        velocity: Tensor | None,
        statistics: list[Buffers],
        momenta: Sequence[Tensor] = (),
    ) -> None:
        """Replace the file by this state.

        Args:
            state: Progress and records.
            parameters: Vector (n,).
            velocity: The optimizer's velocity (n,), if any.
            statistics: The workers' batch-norm statistics.
            momenta: The workers' momenta (n,).

        Raises:
            ValueError: The file cannot be written.
        """
        content = {
            "identity": self._identity,
            "state": _saved(state),
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
        """Delete the file, once the run's records are written."""
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

    def _check_identity(self, saved: dict[str, Any]) -> None:
        names = sorted(saved.keys() | self._identity.keys())
        pairs = [(name, saved.get(name), self._identity.get(name)) for name in names]
        differ = ", ".join(f"{name} ({was!r} there, {now!r} here)" for name, was, now in pairs if was != now)
        if differ:
            raise ValueError(
                f"checkpoint must be of the same run; {self.path} differs in {differ}: name another file, or remove it"
            )


def write(path: Path, content: dict[str, Any]) -> None:
    """Write the content by torch.save, followed by its SHA-256 (32 bytes).

    Args:
        path: File to write or replace.
        content: Tensors, and other objects that torch.load accepts without pickle.

    Raises:
        OSError: The file cannot be written.
    """
    saved = io.BytesIO()  # torch.save raises a RuntimeError where the disk is full.
    torch.save(content, saved)
    with new_file(path) as unfinished, unfinished.open("wb") as file:
        file.write(saved.getbuffer())
        file.write(hashlib.sha256(saved.getbuffer()).digest())


def read(path: Path) -> dict[str, Any]:
    """Read the file of `write`.

    Args:
        path: The file.

    Returns:
        The content.

    Raises:
        OSError: The file cannot be read.
        ValueError: A bit of it has changed.
    """
    content = path.read_bytes()
    if hashlib.sha256(memoryview(content)[:-_CHECKSUM]).digest() != content[-_CHECKSUM:]:
        raise ValueError("its checksum differs")
    loaded: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return loaded


def _saved(state: RunState) -> dict[str, Any]:
    """Return the state with the names and types of a file, which older releases read too."""
    values = vars(state) | {name: list(map(tuple, getattr(state, name))) for name in ("curve", "workers")}
    return values | {name: values.pop(field) for name, field in _FIELDS.items()}


def _copy(tensor: Tensor) -> Tensor:
    """Copy to the CPU: torch.save would write a view with its whole storage."""
    return tensor.detach().cpu().clone()
