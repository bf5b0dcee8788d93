"""The run store: finished runs, each in a folder named by a hash of all that decides its numbers."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from fa.data.registry import REGISTRY
from fa.training import record_schema
from fa.training.config import RECORD_VERSION, TrainConfig
from fa.training.records import FILES, Run
from fa.utils import plugins
from fa.utils.files import PREFIX, new_folder

MANIFEST = "manifest.json"
_ABANDONED = 600.0  # seconds after which nobody is still writing a record


class DamagedRecord(ValueError):
    """A record whose files are not those that were written."""


@dataclass(frozen=True)
class Record:
    """A finished run on disk."""

    folder: Path

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        """The rows of curve.csv as numbers."""
        with (self.folder / "curve.csv").open(newline="") as file:
            return [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]

    @cached_property
    def description(self) -> dict[str, Any]:
        """config.json: the configuration, versions, hardware, seconds."""
        try:
            return record_schema.read(json.loads((self.folder / "config.json").read_text()))
        except record_schema.NewerRecord as error:
            raise record_schema.NewerRecord(f"{self.folder}: {error}, or take another folder") from None

    def check(self) -> None:
        """Raise DamagedRecord unless every file is as the manifest has it, NewerRecord where it is not ours to read."""
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text())
        except (OSError, ValueError):
            raise DamagedRecord(f"{MANIFEST} cannot be read") from None
        for name in FILES:
            path = self.folder / name
            if not path.is_file():
                raise DamagedRecord(f"{name} is missing")
            if not isinstance(manifest, dict) or manifest.get(name) != _checksum(path):
                raise DamagedRecord(f"{name} is not as it was written")
        _ = self.description


class RunStore:
    """The records below one folder; `beside` is another whose records are read too, and not written."""

    def __init__(self, root: str | Path, beside: str | Path | None = None) -> None:
        self.root = Path(root)
        self._beside = None if beside is None else RunStore(beside)

    def key(self, config: TrainConfig) -> str:
        """16 hex digits of the SHA-256 of the configuration, the data's checksum, the version of the training code, and
        the files of a rule or attack of the user's own.
        """
        return hashlib.sha256(json.dumps(_identity(config), sort_keys=True).encode()).hexdigest()[:16]

    def checkpoint(self, config: TrainConfig) -> Path:
        """The file from which a run of this configuration goes on, in a folder that is there."""
        self.root.mkdir(parents=True, exist_ok=True)
        return self.root / f".{self.key(config)}.checkpoint"

    def find(self, config: TrainConfig) -> Record | None:
        """Return the finished run of this configuration, if it exists and is whole.

        A run with torch's layers stands for one with the fast layers, from which it differs in rounding only.
        """
        for same in dict.fromkeys((config, replace(config, layers="torch"))):
            record = self._whole(same)
            if record is None and self._beside is not None:
                record = self._beside.find(same)
            if record is not None:
                return record
        return None

    def _whole(self, config: TrainConfig) -> Record | None:
        record = Record(self.root / self.key(config))
        if not record.folder.is_dir():
            return None
        try:
            record.check()
        except DamagedRecord:
            return None
        return record

    def why(self, config: TrainConfig) -> str:
        """Why this configuration will be run, or that it need not be."""
        if self.find(config) is not None:
            return "it is finished"
        record = Record(self.root / self.key(config))
        if not record.folder.is_dir():
            return self._nearest(config)
        try:
            record.check()
        except DamagedRecord as damage:
            return f"its record is damaged: {damage}"
        return "it is finished"  # by another process meanwhile

    def save(self, run: Run) -> Record:
        """Keep a finished run: it appears whole or not at all, and a damaged record makes way for it."""
        target = self.root / self.key(run.config)
        try:
            with new_folder(target) as folder:
                run.write_files(folder)
                manifest = {name: _checksum(folder / name) for name in FILES}
                (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
                if target.is_dir() and self._whole(run.config) is None:
                    shutil.rmtree(target)
        except OSError:
            if self._whole(run.config) is None:  # else another process has finished the same run meanwhile
                raise
        self.checkpoint(run.config).unlink(missing_ok=True)
        return Record(target)

    def _nearest(self, config: TrainConfig) -> str:
        """In what the most similar record differs."""
        wanted = _flat(_identity(config))
        differences = [_differences(wanted, identity) for identity in self._identities()]
        if not differences:
            return "no run is finished yet"
        nearest = min(differences, key=len)
        shown = ", ".join(f"{name} ({there!r} there, {here!r} here)" for name, here, there in nearest[:3])
        more = f" and {len(nearest) - 3} more" if len(nearest) > 3 else ""
        return f"no run with these settings is finished; the nearest differs in {shown}{more}"

    def _identities(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted(self.root.glob("*/config.json")):
            try:
                described = json.loads(path.read_text())
            except (OSError, ValueError):  # a damaged record: named where its own configuration is asked for
                continue
            if not isinstance(described, dict) or described.get("schema_version") != record_schema.SCHEMA_VERSION:
                continue
            found.append(
                _flat(
                    {
                        name: described.get(name)
                        for name in ("config", "data_checksum", "record_version", "files")
                        if name in described
                    }
                )
            )
        return found


def _identity(config: TrainConfig) -> dict[str, Any]:
    return {
        "config": json.loads(config.to_json()),
        "data_checksum": _data_checksum(config.dataset),
        "record_version": RECORD_VERSION,
    } | plugins.file_checksums(config.rule, config.attack)


@cache
def _data_checksum(dataset: str) -> str:
    """The known checksum, which loading holds the data to, so that records are found where the data are not; of the
    user's own data, what they are.
    """
    from fa.data import load

    known = REGISTRY[dataset].checksum if dataset in REGISTRY else None
    return known or load(dataset).checksum


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    settings = identity["config"] if isinstance(identity["config"], dict) else {}
    return settings | {name: value for name, value in identity.items() if name != "config"}


def _differences(wanted: dict[str, Any], there: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    names = sorted(wanted.keys() | there.keys())
    return [(name, wanted.get(name), there.get(name)) for name in names if wanted.get(name) != there.get(name)]


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def clean_up(root: Path) -> None:
    """Remove what a killed process left half made below `root`."""
    for path in root.glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):  # another process has finished with it meanwhile
            if time.time() - path.stat().st_mtime > _ABANDONED:
                if path.is_file():
                    path.unlink()
                else:
                    shutil.rmtree(path, ignore_errors=True)
