"""The run store: finished runs, each in a folder named by a hash of everything that determines its results."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fa.data import tiny_imagenet
from fa.data.registry import REGISTRY
from fa.training import record_schema
from fa.training.config import RECORD_VERSION, TrainConfig
from fa.training.records import EXCLUDED, EXCLUDED_BEFORE, FILES, UNDEFINED, USED, Run
from fa.utils.files import create_folder, exclusive, file_checksum, new_folder

if TYPE_CHECKING:
    from pandas import DataFrame

MANIFEST = "manifest.json"


class DamagedRecord(ValueError):
    """A record whose files differ from those that were written."""


class InvalidRecord(ValueError):
    """A record whose config.json is as it was written, and is not of the schema that this release reads."""


@dataclass(frozen=True)
class Record:
    """A finished run on disk."""

    folder: Path

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        """The rows of curve.csv as numbers."""
        with (self.folder / "curve.csv").open(newline="", encoding="utf-8") as file:
            return [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]

    @cached_property
    def description(self) -> dict[str, Any]:
        """The content of config.json: configuration, versions, hardware, seconds.

        Raises:
            NewerRecord: A later release wrote this record.
            InvalidRecord: An earlier release wrote it, or it does not describe a run.
        """
        described = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        try:
            return record_schema.read(described)
        except record_schema.NewerRecord as error:
            raise record_schema.NewerRecord(f"{self.folder}: {error}, or take another folder") from None
        except ValueError as error:
            raise InvalidRecord(f"{self.folder}: {error}. Remove this folder to repeat the run") from None

    @property
    def final_accuracy(self) -> float:
        """Test accuracy of the last parameters."""
        return float(self.description["final_accuracy"])

    @property
    def initial_accuracy(self) -> float | None:
        """Test accuracy of the initial parameters; None if an earlier release wrote the record."""
        value = self.description.get("initial_accuracy")
        return None if value is None else float(value)

    def workers(self) -> DataFrame:
        """Read workers.csv.

        Returns:
            One row for each iteration and worker: iteration, worker, value and weight (NaN if the rule defines none),
            status, `reason` (why the worker was excluded; empty if it was used), and `share` (the weight over the sum
            of all absolute weights of the iteration).

        Raises:
            KeyError, ValueError: The file is damaged.
        """
        import pandas

        table = pandas.read_csv(self.folder / "workers.csv", na_values=UNDEFINED, keep_default_na=False)
        table = table.astype(_WORKERS)
        size = table["weight"].abs().groupby(table["iteration"]).transform("sum")
        return table.assign(share=table["weight"] / size.where(size > 0), reason=table["status"].map(_reason))

    def check(self) -> None:
        """Check every file against the manifest.

        Raises:
            DamagedRecord: A file is missing or changed.
            NewerRecord: A later release wrote this record.
            InvalidRecord: An earlier release wrote it, or it does not describe a run.
        """
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise DamagedRecord(f"{MANIFEST} cannot be read") from None
        for name in FILES:
            path = self.folder / name
            if not path.is_file():
                raise DamagedRecord(f"{name} is missing")
            if not isinstance(manifest, dict) or manifest.get(name) != file_checksum(path):
                raise DamagedRecord(f"{name} is not as it was written")
        _ = self.description


_WORKERS = {"iteration": int, "worker": int, "value": float, "weight": float, "status": str}
"""Types of the columns of workers.csv."""


def _reason(status: str) -> str:
    """Return the reason why a worker was excluded; empty if it was used."""
    decision = status.partition(";")[0]
    return "" if decision == USED else decision.removeprefix(EXCLUDED).removeprefix(EXCLUDED_BEFORE)


class RunStore:
    """The records below one folder."""

    def __init__(self, root: str | Path, fallback: str | Path | None = None) -> None:
        """Open a store.

        Args:
            root: Folder of the records; created by the first run.
            fallback: Folder whose records are read too, but not written.
        """
        self.root = Path(root)
        self._fallback = None if fallback is None else RunStore(fallback)
        self._identities: dict[Path, dict[str, Any] | None] = {}

    def key(self, config: TrainConfig) -> str:
        """Return the name of a run's folder.

        The hash covers the configuration, the data's checksum, the version of the training code, the files of a user's
        rule or attack, and the version of the package that provides it. It does not cover what those files import.

        Args:
            config: Configuration of the run.

        Returns:
            The first 16 hex digits of a SHA-256.
        """
        return hashlib.sha256(json.dumps(_identity(config), sort_keys=True).encode()).hexdigest()[:16]

    def checkpoint(self, config: TrainConfig) -> Path:
        """Return the path of an unfinished run's checkpoint, and create the store's folder.

        Args:
            config: Configuration of the run.

        Returns:
            A path in the store's folder. The file need not exist; `save` deletes it.
        """
        create_folder(self.root)
        return self.root / f".{self.key(config)}.checkpoint"

    def claim(self, config: TrainConfig) -> AbstractContextManager[None]:
        """Reserve a run for the block, so that no other process does it at the same time.

        Args:
            config: Configuration of the run.

        Returns:
            A context manager, which releases the run when the block ends.

        Raises:
            ValueError: The block is entered while another process has reserved the run.
        """
        create_folder(self.root)
        return exclusive("run", self.root / f"{self.key(config)}.run", patient=False)  # A sweep asks again.

    def find(self, config: TrainConfig) -> Record | None:
        """Find the finished run of a configuration.

        A run with torch's layers stands for one with the fast layers, and a run on another device for one on this
        device. They differ in rounding and in dropout's draws, and in time.

        Args:
            config: Configuration of the run.

        Returns:
            The record in this store, else in the fallback. None if no run is finished, or its files are damaged.

        Raises:
            NewerRecord: A later release wrote the record, which is neither read nor replaced.
            InvalidRecord: The record is of an earlier schema. The message names the folder to remove.

        Example:
            >>> RunStore("no-such-folder").find(TrainConfig(byzantine=0)) is None
            True
        """
        for same in _equivalent(config):
            record = self._whole(same)
            if record is None and self._fallback is not None:
                record = self._fallback._whole(same)
            if record is not None:
                return record
        return None

    def _whole(self, config: TrainConfig) -> Record | None:
        record = Record(self.root / self.key(config))
        return record if record.folder.is_dir() and not _damage(record) else None

    def explain(self, config: TrainConfig) -> str:
        """Explain why a configuration will run, or that it is finished.

        Args:
            config: Configuration of the run.

        Returns:
            A clause for a message. It has the damage of the record, or up to three settings in which the nearest record
            differs.

        Raises:
            NewerRecord: A later release wrote the record.
            InvalidRecord: The record is of an earlier schema.

        Example:
            >>> RunStore("no-such-folder").explain(TrainConfig(byzantine=0))
            'no run is finished yet'
        """
        if self.find(config) is not None:
            return "it is finished"
        record = Record(self.root / self.key(config))
        if not record.folder.is_dir():
            return self._nearest(config)
        damage = _damage(record)
        # Without damage, another process has finished it meanwhile.
        return f"its record is damaged: {damage}" if damage else "it is finished"

    def save(self, run: Run) -> Record:
        """Write a finished run atomically, and delete its checkpoint. A damaged record is overwritten.

        Args:
            run: The finished run.

        Returns:
            The record in the store, which another process may have written meanwhile.

        Raises:
            OSError: The record cannot be written.
            NewerRecord: A later release wrote a record of this run, which stays.
            InvalidRecord: A record of an earlier schema is in the way, and stays.
        """
        target = self.root / self.key(run.config)
        try:
            with new_folder(target) as folder:
                run.write_files(folder)
                manifest = {name: file_checksum(folder / name) for name in FILES}
                text = json.dumps(manifest, indent=2, sort_keys=True)
                (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
                if target.is_dir() and self._whole(run.config) is None:
                    shutil.rmtree(target)
        except OSError:
            if self._whole(run.config) is None:  # Otherwise another process has finished the same run.
                raise
        self.checkpoint(run.config).unlink(missing_ok=True)
        return Record(target)

    def _nearest(self, config: TrainConfig) -> str:
        """Return the settings in which the most similar record differs."""
        wanted = _flatten(_identity(config))
        for path in sorted(self.root.glob("*/config.json")):
            if path not in self._identities:  # A sweep asks for each of its runs.
                self._identities[path] = _recorded_identity(path)
        differences = [_differences(wanted, identity) for identity in self._identities.values() if identity]
        if not differences:
            return "no run is finished yet"
        nearest = min(differences, key=len)
        shown = ", ".join(f"{name} ({recorded!r} there, {value!r} here)" for name, value, recorded in nearest[:3])
        more = f" and {len(nearest) - 3} more" if len(nearest) > 3 else ""
        return f"no run with these settings is finished; the nearest differs in {shown}{more}"


def _recorded_identity(path: Path) -> dict[str, Any] | None:
    """Return what a record's config.json has of its run's identity; None if it is of another schema or damaged."""
    with suppress(OSError, ValueError):  # Damage is reported for the configuration itself.
        described = json.loads(path.read_text(encoding="utf-8"))
        readable = isinstance(described, dict) and isinstance(described.get("config"), dict)
        if readable and described.get("schema_version") == record_schema.SCHEMA_VERSION:
            names = ("config", "data_checksum", "record_version", "files", "packages")
            return _flatten({name: described[name] for name in names if name in described})
    return None


def _damage(record: Record) -> str:
    """Return what is wrong with a record; empty if it is whole."""
    try:
        record.check()
    except DamagedRecord as damage:
        return str(damage)
    return ""


def _equivalent(config: TrainConfig) -> list[TrainConfig]:
    """Return the configurations whose records stand for this one's, itself first."""
    devices = dict.fromkeys((config.device, "cpu", "cuda"))
    layers = dict.fromkeys((config.layers, "torch"))
    return [replace(config, device=device, layers=layer) for device in devices for layer in layers]


def _identity(config: TrainConfig) -> dict[str, Any]:
    config = replace(config, device=config.device.partition(":")[0])  # cuda:1 computes what cuda does
    return {
        "config": json.loads(config.to_json()),
        "data_checksum": _data_checksum(config.dataset),
        "record_version": RECORD_VERSION,
    } | config.files_and_packages()


def _data_checksum(dataset: str) -> str:
    """Return the registered checksum, so that the store works without the data, or that of the user's data."""
    registered = REGISTRY[dataset].checksum if dataset in REGISTRY else None
    return registered or _user_checksum(dataset, os.environ.get(tiny_imagenet.VARIABLE))


@cache
def _user_checksum(dataset: str, folder: str | None) -> str:
    """Return the checksum of data in a user's folder."""
    from fa.data import load

    return load(dataset).checksum


def _flatten(identity: dict[str, Any]) -> dict[str, Any]:
    settings = identity["config"] if isinstance(identity["config"], dict) else {}
    return settings | {name: value for name, value in identity.items() if name != "config"}


_EQUIVALENT = {"device", "layers"}
"""Settings in which a record may differ; see `_equivalent`."""


def _differences(wanted: dict[str, Any], recorded: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    names = sorted((wanted.keys() | recorded.keys()) - _EQUIVALENT)
    return [(name, wanted.get(name), recorded.get(name)) for name in names if wanted.get(name) != recorded.get(name)]
