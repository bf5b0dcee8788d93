"""The run store: a record is found again only if it is whole and of exactly this configuration, data and code."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fa.data import MissingDataError, load
from fa.experiments.runs import store
from fa.experiments.runs.store import Record, RunStore
from fa.training import CurvePoint, Run, TrainConfig, WorkerRow, record_schema
from fa.utils import plugins

FIGURES = Path(__file__).parents[1] / "figures"
COMMITTED = sorted(FIGURES.glob("*/records*"))
PROVENANCE = sorted(path for path in FIGURES.glob("*/*.json") if "runs" in json.loads(path.read_text()))
CONFIG = TrainConfig(rule="mean", workers=3, byzantine=1, iterations=2, batch=4)


def finished(config: TrainConfig = CONFIG) -> Run:
    curve = (CurvePoint(2, 1, 0.5, 2.25, 0.125),)
    workers = tuple(WorkerRow(i, w, None, 0.5, "used") for i in (1, 2) for w in range(3))
    return Run(
        config=config, curve=curve, workers=workers, seconds=1.0, threads=1, checksum=load(config.dataset).checksum
    )


@pytest.fixture
def runs(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "records")


def test_a_saved_run_is_found_and_read_back(runs: RunStore) -> None:
    assert runs.find(CONFIG) is None
    before = runs.explain(CONFIG)
    runs.save(finished())
    record = runs.find(CONFIG)
    assert record is not None
    assert record.curve == [{"iteration": 2, "epoch": 1, "seconds": 0.5, "train_loss": 2.25, "test_accuracy": 0.125}]
    assert record.description["config"]["rule"] == "mean"
    assert runs.explain(CONFIG) not in ("", before)
    assert [path.name for path in runs.root.iterdir()] == [runs.key(CONFIG)]


@pytest.mark.parametrize(
    "change",
    [
        {"rule": "median"},
        {"rule": "fa", "rule_options": {"m": 2}},
        {"attack": "sign_flip"},
        {"iterations": 3},
        {"batch": 5},
        {"lr": 0.1},
        {"seed": 1},
        {"sampling": "cycled"},
        {"evaluate_every": 1},
        {"validation": 0.2},
        {"precision": "bfloat16"},
        {"accumulate": 2},
    ],
)
def test_any_other_setting_is_another_run_and_why_names_it(runs: RunStore, change: dict) -> None:
    runs.save(finished())
    other = TrainConfig.from_json(json.dumps(json.loads(CONFIG.to_json()) | change))
    assert runs.find(other) is None
    why = runs.explain(other)
    assert {name for name in vars(CONFIG) if re.search(rf"\b{name} \(", why)} == change.keys()


def test_a_run_on_another_device_stands_for_this_one_unless_this_one_is_there(
    runs: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    there = runs.save(finished(replace(CONFIG, device="cuda")))
    assert runs.find(CONFIG) == there
    here = runs.save(finished())
    assert runs.find(CONFIG) == here
    assert runs.find(replace(CONFIG, device="cuda")) == there
    for number in ("cuda:0", "cuda:1"):  # one kind of device
        assert runs.find(replace(CONFIG, device=number)) == there
    assert runs.save(finished(replace(CONFIG, device="cuda:1"))) == there


def test_a_run_with_the_fast_layers_is_found_among_those_with_torchs_layers_and_not_the_other_way(
    runs: RunStore, tmp_path: Path
) -> None:
    fast = replace(CONFIG, layers="fast")
    assert runs.find(fast) is None
    slow = runs.save(finished())
    assert runs.find(fast) == slow
    assert RunStore(tmp_path / "other", runs.root).find(fast) == slow
    quick = runs.save(finished(fast))
    assert runs.find(fast) == quick != slow
    assert runs.find(CONFIG) == slow
    (only_fast := RunStore(tmp_path / "fast")).save(finished(fast))
    assert only_fast.find(CONFIG) is None


def test_other_data_or_code_is_another_run(runs: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    key = runs.key(CONFIG)
    monkeypatch.setattr(store, "_data_checksum", lambda dataset: "other")
    assert runs.key(CONFIG) != key
    monkeypatch.undo()
    monkeypatch.setattr(store, "RECORD_VERSION", 10**6)
    assert runs.key(CONFIG) != key


def test_another_version_of_a_rules_package_or_folder_of_data_is_another_run(
    runs: RunStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = replace(CONFIG, rule="byzfl:Median")
    key = runs.key(config)
    assert runs.key(config) == key
    monkeypatch.setattr(plugins, "version", lambda name: "99.0")
    assert runs.key(config) != key
    keys = set()
    for folder in ("a", "b"):
        monkeypatch.setenv("FA_TINY_IMAGENET", str(tmp_path / folder))
        monkeypatch.setattr("fa.data.load", lambda name, folder=folder: SimpleNamespace(checksum=folder))
        keys.add(runs.key(replace(CONFIG, dataset="tiny-imagenet")))
    assert len(keys) == 2


@pytest.mark.parametrize("name", [*store.FILES, store.MANIFEST])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "empty"])
def test_a_damaged_record_is_named_and_makes_way(runs: RunStore, name: str, damage: str) -> None:
    path = runs.save(finished()).folder / name
    text = path.read_text()
    if damage == "missing":
        path.unlink()
    else:
        path.write_text({"truncated": text[:-9], "changed": text.replace("a", "b"), "empty": ""}[damage])
    assert runs.find(CONFIG) is None
    with pytest.raises(store.DamagedRecord) as damage:
        Record(path.parent).check()
    assert str(damage.value) in runs.explain(CONFIG)
    assert name in str(damage.value) or name == store.MANIFEST  # of which a changed sum tells against another file
    runs.save(finished())
    assert runs.find(CONFIG) is not None
    assert path.read_text() == text


def rewritten(record: Record, change: Callable[[dict[str, Any]], object]) -> None:
    """config.json as another release would have written it, and the manifest with it."""
    path = record.folder / "config.json"
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))
    manifest = json.loads((record.folder / store.MANIFEST).read_text())
    manifest["config.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (record.folder / store.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("version", [3, None, True, "4"])
def test_a_record_of_another_schema_is_refused(runs: RunStore, version: object) -> None:
    record = runs.save(finished())
    rewritten(record, lambda described: described.update(schema_version=version))
    before = (record.folder / "config.json").read_bytes()
    place = re.escape(str(record.folder))
    pattern = rf"^{place}: schema_version\b.*{record_schema.SCHEMA_VERSION}.*{version!r}.*\b[Rr]emove\b"
    for use in (
        lambda config: Record(record.folder).check(),
        lambda config: Record(record.folder).description,
        runs.find,
        RunStore(runs.root.parent / "other", runs.root).find,
        runs.explain,
        lambda config: runs.save(finished(config)),
    ):
        with pytest.raises(store.InvalidRecord, match=pattern):
            use(CONFIG)
    assert (record.folder / "config.json").read_bytes() == before
    shutil.rmtree(record.folder)  # the cure
    assert runs.find(CONFIG) is None
    runs.save(finished())
    assert runs.find(CONFIG) is not None


@pytest.mark.parametrize("name", ["config", "backend", "seconds_of", "data_checksum", "threads", "final_accuracy"])
@pytest.mark.parametrize("value", [None, []])
def test_a_record_without_one_of_its_parts_is_refused(runs: RunStore, name: str, value: object) -> None:
    record = runs.save(finished())
    rewritten(record, lambda described: described.update({name: value}))
    with pytest.raises(store.InvalidRecord, match=rf"^{re.escape(str(record.folder))}: {name}\b"):
        Record(record.folder).check()


@pytest.mark.parametrize("name", ["schema_version", "record_version"])
def test_a_record_of_a_later_release_is_neither_read_nor_replaced(runs: RunStore, name: str) -> None:
    record = runs.save(finished())
    rewritten(record, lambda described: described.update({name: 99}))
    before = (record.folder / "config.json").read_bytes()
    for use in (runs.find, runs.explain, lambda config: runs.save(finished(config))):
        with pytest.raises(record_schema.NewerRecord, match=rf"\b{name} 99\b"):
            use(CONFIG)
    assert (record.folder / "config.json").read_bytes() == before
    assert [path.name for path in runs.root.iterdir()] == [record.folder.name]


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: "-".join(folder.parts[-2:]))
def test_committed_records_are_found_by_their_own_configurations(folder: Path) -> None:
    records = RunStore(folder)
    configs = {path.parent: described_config(path) for path in folder.glob("*/config.json")}
    assert set(configs) == set(folder.glob("[!.]*"))  # a killed sweep leaves hidden locks
    for path, config in configs.items():
        record = records.find(config)
        assert record is not None
        assert record.folder == path
        record.check()
        assert TrainConfig.from_json(json.dumps(record.description["config"])) == config


def test_some_records_are_committed() -> None:
    assert {folder.name for folder in COMMITTED} == {"records", "records-rpc"}


def described_config(path: Path) -> TrainConfig:
    """The configuration in a config.json."""
    return TrainConfig.from_json(json.dumps(json.loads(path.read_text())["config"]))


@pytest.mark.parametrize("path", PROVENANCE, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_committed_figure_names_its_runs_by_their_keys(path: Path) -> None:
    runs = json.loads(path.read_text())["runs"]
    configs = [TrainConfig.from_json(json.dumps(config)) for config in runs.values()]
    assert list(runs) == [RunStore(path.parent).key(config) for config in configs]
    assert list(runs.values()) == [json.loads(config.to_json()) for config in configs]


def test_a_record_of_another_process_that_was_faster_stays(runs: RunStore) -> None:
    first = runs.save(finished()).folder.stat().st_ino
    assert runs.save(finished()).folder.stat().st_ino == first


def test_a_failure_in_the_middle_leaves_nothing(runs: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "file_checksum", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        runs.save(finished())
    assert list(runs.root.iterdir()) == []


def test_the_nearest_record_may_have_other_layers(runs: RunStore) -> None:
    runs.save(finished(replace(CONFIG, layers="fast", seed=5)))
    runs.save(finished(replace(CONFIG, batch=CONFIG.batch + 1, seed=4)))
    why = runs.explain(CONFIG)
    assert re.search(r"\bseed \(5 there", why), why
    assert "layers" not in why


@pytest.mark.parametrize("text", ["[]", "{", "", "null", f'{{"schema_version": {record_schema.SCHEMA_VERSION}}}'])
def test_a_strange_record_beside_it_does_not_stop_why(runs: RunStore, text: str) -> None:
    (runs.root / "other").mkdir(parents=True)
    (runs.root / "other" / "config.json").write_text(text)
    assert runs.explain(CONFIG) == RunStore(runs.root.parent / "empty").explain(CONFIG)


def test_records_are_found_where_the_data_are_not(
    runs: RunStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FA_DATA", str(tmp_path / "empty"))
    config = replace(CONFIG, dataset="fashion-mnist")
    with pytest.raises(MissingDataError):
        load(config.dataset)
    runs.save(replace(finished(), config=config))
    assert runs.find(config) is not None
    assert runs.key(config) != runs.key(replace(config, dataset="mnist"))
