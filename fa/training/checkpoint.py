"""The state of a run between two iterations, in one file, from which a run that was killed goes on."""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fa import custom
from fa.checks import check_real, require
from fa.training.config import RECORD_VERSION, TrainConfig
from fa.training.flat import Buffers
from fa.training.records import CurvePoint, WorkerRow
from fa.utils.files import new_file, temporary

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

    Nothing in it is pickled: it is a npz file of numbers and one JSON text. Raises ValueError where `path` cannot be
    written, its folder is not there, and for `every` < 0.
    """

    def __init__(self, path: str | Path, every: float = EVERY) -> None:
        check_real("checkpoint_every", every, 0)
        self.path = Path(os.path.abspath(path))
        require(not self.path.is_dir(), "checkpoint", str(self.path), "a file")
        require(self.path.parent.is_dir(), "checkpoint", str(self.path), "a file in a folder that is there")
        trial = temporary(self.path.parent)  # before any work is done for which there is no place
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
        } | custom.files(config.rule, config.attack)

    def load(
        self, parameters: Tensor, statistics: list[Buffers], momenta: Sequence[Tensor] = ()
    ) -> tuple[State, Tensor | None]:
        """The state at which to begin, with `parameters` (n,), `statistics` and the workers' `momenta` set to those of
        then, and the optimizer's velocity (n,), None where it has none.

        Where no file is, that is the beginning. Raises ValueError for one that is damaged or of another run.
        """
        if not self.path.exists():
            return State(backends=[self._backend]), None
        said, arrays = self._read()
        self._refuse_another(said["identity"])
        parameters.copy_(torch.from_numpy(arrays["parameters"]))
        for buffers, row in zip(statistics, arrays["statistics"], strict=True):
            _unpack(row, buffers)
        for own, row in zip(momenta, arrays.get("momenta", ()), strict=True):
            own.copy_(torch.from_numpy(row))
        curve = [CurvePoint(*point) for point in said["curve"]]
        workers = [WorkerRow(*row) for row in said["workers"]]
        velocity = torch.from_numpy(arrays["velocity"]).to(parameters.device) if "velocity" in arrays else None
        whole, seconds_of = said.get("whole", said["seconds"]), said.get("seconds_of", {})
        backends = said.get("backends", [])
        backends += [self._backend] if backends[-1:] != [self._backend] else []
        return State(said["iteration"], said["seconds"], whole, seconds_of, curve, workers, backends), velocity

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
        arrays = {"parameters": parameters.cpu().numpy(), "statistics": np.stack([_pack(each) for each in statistics])}
        if velocity is not None:
            arrays["velocity"] = velocity.cpu().numpy()
        if momenta:
            arrays["momenta"] = torch.stack(list(momenta)).cpu().numpy()
        said = json.dumps(vars(state) | {"identity": self._identity})  # floats so that they are read back bit for bit
        try:
            with new_file(self.path) as unfinished, unfinished.open("wb") as file:
                np.savez(file, allow_pickle=False, said=np.frombuffer(said.encode(), np.uint8), **arrays)
        except OSError as error:
            raise self._unwritable(error) from error
        self._last = time.monotonic()

    def remove(self) -> None:
        """The run is kept elsewhere by now."""
        self.path.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> ValueError:
        return ValueError(f"checkpoint must be a file that can be written ({error}); it is {self.path}")

    def _read(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        try:
            with self.path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as held:
                arrays = dict(held)
            return json.loads(arrays.pop("said").tobytes()), arrays
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
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


def _pack(buffers: Buffers) -> np.ndarray:
    """One worker's statistics as a row of float64, which holds float32 and whole numbers to 2^53 exactly."""
    pieces = [tensor.detach().cpu().double().flatten() for tensor in buffers.tensors]
    return torch.cat(pieces).numpy() if pieces else np.zeros(0)


def _unpack(row: np.ndarray, buffers: Buffers) -> None:
    pieces = torch.from_numpy(row).split([tensor.numel() for tensor in buffers.tensors])
    for tensor, piece in zip(buffers.tensors, pieces, strict=True):
        tensor.copy_(piece.view(tensor.shape))
