"""Runs that were killed go on from their checkpoint, to the numbers of a run that was not."""

import errno
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch

from fa import cli
from fa.experiments.runs.store import Record, RunStore
from fa.experiments.runs.sweep import sweep
from fa.training import Progress, Run, TrainConfig, train
from fa.training.checkpoint import read, write
from fa.training.parameter_vector import flatten
from fa.training.transports.base import RpcConfig, ServedRun, TcpConfig
from fa.training.transports.rounds import NEW, GradientMessage
from fa.training.transports.rpc.server import RpcTransport
from tests.processes import beside, build_normed, free_port, normed_tcp_worker, normed_worker

CONFIG = TrainConfig(
    workers=4, byzantine=1, rule="median", iterations=12, batch=4, lr=0.05, momentum=0.9, seed=5, attack="sign_flip"
)


class Stop(Exception):
    pass


def stopped_at(iteration: int):
    def progress(state: Progress) -> None:
        if state.iteration == iteration:
            raise Stop

    return progress


def numbers(run: Run) -> list[tuple]:
    return [(*point[:2], *point[3:]) for point in run.curve] + list(run.workers)  # all but the seconds


@pytest.mark.parametrize(
    "config", [CONFIG, replace(CONFIG, momentum=0.0, worker_momentum=0.9)], ids=["server", "workers"]
)
@pytest.mark.parametrize("server", [None, RpcConfig(), TcpConfig()], ids=["simulate", "rpc", "tcp"])
def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(
    server: RpcConfig | TcpConfig | None, config: TrainConfig, tmp_path: Path
) -> None:
    """Whoever keeps the momentum."""
    kept = tmp_path / "kept"
    whole = train(config, threads=1)
    with pytest.raises(Stop):
        train(config, threads=1, server=server, checkpoint=kept, checkpoint_every=0, progress=stopped_at(6))
    seen = []
    again = train(config, tmp_path / "out", seen.append, 1, checkpoint=kept, checkpoint_every=0, server=server)
    assert [state.iteration for state in seen] == list(range(7, 13))
    assert numbers(again) == numbers(whole)
    assert set(again.seconds_of) - {"join", "compute"} == {"gather", "aggregate", "update", "evaluate"}
    assert ("join" in again.seconds_of) == ("compute" in again.seconds_of) == (server is not None)
    assert not kept.exists()  # the run is in out


def statistics(kept: Path) -> np.ndarray:
    rows = read(kept)["statistics"]
    return torch.stack([torch.cat([tensor.double().flatten() for tensor in row]) for row in rows]).numpy()


@pytest.mark.parametrize("backend", ["simulate", "rpc", "tcp"])
def test_batch_norm_statistics_are_each_workers_own_again(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit those of a run that was never stopped; no two workers' are equal, so that none may be another's."""
    monkeypatch.setattr("fa.models.build", build_normed)

    def run_until(iteration: int, kept: Path, backend: str) -> np.ndarray:
        port = free_port()
        kind = {"simulate": None, "rpc": RpcConfig, "tcp": TcpConfig}[backend]
        server = kind and kind(port=port, spawn_workers=False)
        work = normed_tcp_worker if backend == "tcp" else normed_worker
        workers = [beside(work, rank, port) for rank in range(CONFIG.workers if server else 0)]
        with pytest.raises(Stop):
            train(CONFIG, None, stopped_at(iteration), 1, checkpoint=kept, checkpoint_every=0, server=server)
        for process in workers:
            process.join(120)
        return statistics(kept)

    expected = run_until(11, tmp_path / "whole", "simulate")
    half = run_until(6, tmp_path / "kept", backend)
    assert len(np.unique(half, axis=0)) == CONFIG.workers
    assert np.array_equal(run_until(11, tmp_path / "kept", backend), expected)


def test_a_server_that_was_killed_goes_on_when_its_command_is_given_again(tmp_path: Path) -> None:
    kept, out = tmp_path / "kept", tmp_path / "out"
    arguments = [
        *("train", "--backend", "rpc", "--threads", "1"),
        *("--rule", "median", "--workers", "4", "--byzantine", "1", "--attack", "sign_flip", "--momentum", "0.9"),
        *("--iterations", "12", "--batch", "4", "--lr", "0.05", "--seed", "5", "--out", str(out)),
        *("--checkpoint", str(kept), "--checkpoint-every", "0", "--evaluate-every", "12"),
    ]
    first = subprocess.Popen([sys.executable, "-c", "from fa.cli import main; main()", *arguments])
    try:
        while not kept.exists() and first.poll() is None:
            time.sleep(0.01)
    finally:
        first.kill()
    assert first.wait() == -signal.SIGKILL
    assert not out.exists()
    assert 0 < read(kept)["state"]["iteration"] < 12
    with pytest.raises(SystemExit) as done:
        cli.main(arguments)
    assert done.value.code == 0
    train(replace(CONFIG, evaluate_every=12), tmp_path / "whole", threads=1)
    there, here = Record(out), Record(tmp_path / "whole")
    assert [point | {"seconds": 0} for point in there.curve] == [point | {"seconds": 0} for point in here.curve]
    assert (out / "workers.csv").read_text() == (tmp_path / "whole" / "workers.csv").read_text()
    assert there.description["backend"] == {"name": "rpc", "deadline": 60.0, "quorum": None, "gradients": "rpc"}
    assert here.description["backend"] == {"name": "simulate"}


def test_a_new_worker_process_is_given_the_batch_norm_statistics_and_the_momentum_of_its_rank() -> None:
    model = build_normed(seed=0)
    parameters = flatten(model)
    config = replace(CONFIG, workers=2, byzantine=0, worker_momentum=0.9)
    transport = RpcTransport(ServedRun(model, config, parameters), RpcConfig(quorum=1, deadline=30))
    transport.statistics()[1].tensors[0].fill_(3.0)
    fresh = [torch.zeros_like(tensor) for tensor in transport.statistics()[1].tensors]
    transport.first_process_ended(0, "absent")
    answer = transport.exchange(GradientMessage(1, NEW, torch.zeros_like(parameters), torch.zeros(()), fresh))
    server = threading.Thread(target=transport.gradients, args=(0,))
    server.start()
    iteration, _, statistics = answer.wait()
    assert iteration == 0
    assert torch.equal(statistics[0], torch.full((784,), 3.0))
    again = transport.exchange(GradientMessage(1, 0, torch.ones_like(parameters), torch.ones(()), fresh))
    server.join()
    server = threading.Thread(target=transport.gradients, args=(1,))
    server.start()
    assert again.wait()[2] == []  # it has its own by now
    transport.exchange(GradientMessage(1, 1, 2 * torch.ones_like(parameters), torch.ones(()), fresh))
    server.join()
    assert torch.equal(transport.momenta()[1], 2 * torch.ones_like(parameters))  # which is what it sent
    answer = transport.exchange(GradientMessage(1, NEW, torch.zeros_like(parameters), torch.zeros(()), fresh))
    server = threading.Thread(target=transport.gradients, args=(2,))
    server.start()
    assert torch.equal(answer.wait()[2][-1], transport.momenta()[1])
    transport.exchange(GradientMessage(1, 2, torch.ones_like(parameters), torch.ones(()), fresh))
    server.join()


@pytest.mark.parametrize(
    ("change", "difference"), [({"lr": 0.1}, r"\blr\b.*\b0\.05\b.*\b0\.1\b"), ({"seed": 6}, r"\bseed\b.*\b5\b.*\b6\b")]
)
def test_a_checkpoint_of_another_run_is_refused(change: dict, difference: str, tmp_path: Path) -> None:
    kept = stop_half_way(tmp_path)
    before = kept.read_bytes()
    with pytest.raises(ValueError, match=re.escape(str(kept)) + ".*" + difference):
        train(replace(CONFIG, **change), threads=1, checkpoint=kept)
    with pytest.raises(ValueError, match=r"\bthreads\b.*\b1\b.*\b2\b"):
        train(CONFIG, threads=2, checkpoint=kept)
    assert kept.read_bytes() == before


def of_an_array(_: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones(3))
    return file.getvalue()


def flipped(at: int) -> Callable[[bytes], bytes]:
    return lambda b: b[:at] + bytes([b[at] ^ 1]) + b[at + 1 :] if at >= 0 else b[:at] + bytes([b[at] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[: len(b) // 2], lambda b: b"", of_an_array, *map(flipped, (0, 3000, 20_000, -1))],
)
def test_a_damaged_checkpoint_is_named(damage, tmp_path: Path) -> None:
    kept = stop_half_way(tmp_path)
    damaged = damage(kept.read_bytes())
    kept.write_bytes(damaged)
    with pytest.raises(ValueError, match=re.escape(str(kept))):
        train(CONFIG, threads=1, checkpoint=kept)
    assert kept.read_bytes() == damaged


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch) -> None:
    kept = stop_half_way(tmp_path)
    before = kept.read_bytes()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=rf"^checkpoint must be .*{os.strerror(errno.ENOSPC)}"):
        train(CONFIG, threads=1, checkpoint=kept, checkpoint_every=0)
    assert kept.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_the_records_tell_of_every_backend_that_a_run_had(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    for stop, rpc in ((4, None), (6, RpcConfig(deadline=50.0)), (8, RpcConfig(deadline=50.0))):
        with pytest.raises(Stop):
            train(CONFIG, threads=1, server=rpc, checkpoint=kept, checkpoint_every=0, progress=stopped_at(stop))
    run = train(CONFIG, threads=1, checkpoint=kept)
    assert run.backend["name"] == "simulate"
    assert [backend["name"] for backend in run.backend["earlier"]] == ["simulate", "rpc"]
    assert "earlier" not in train(CONFIG, threads=1).backend


def test_a_checkpoint_without_a_place_is_named_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "kept"):
        with pytest.raises(ValueError, match=rf"^checkpoint must be .*{re.escape(str(place))}'"):
            train(CONFIG, threads=1, checkpoint=place, progress=stopped_at(1))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@contextmanager
def rewriting(kept: Path) -> Iterator[dict[str, Any]]:
    content = read(kept)
    yield content
    write(kept, content)


def test_seconds_are_those_of_all_processes_that_did_a_share_of_the_run(tmp_path: Path) -> None:
    kept = stop_half_way(tmp_path)
    with rewriting(kept) as content:
        content["state"]["whole"] = 1e6
        content["state"]["seconds_of"] |= {"gather": 5e5, "join": 3.0}
    again = train(CONFIG, threads=1, checkpoint=kept)
    assert 1e6 < again.seconds < 2e6
    assert 5e5 < again.seconds_of["gather"] < 6e5
    assert again.seconds_of["join"] == 3.0
    assert set(again.seconds_of) == {"join", "gather", "aggregate", "update", "evaluate"}


def test_a_sweep_goes_on_from_a_runs_checkpoint(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    kept = store.checkpoint(CONFIG)
    stop_half_way(tmp_path).rename(kept)
    with rewriting(kept) as content:  # so that it shows whether the run began there
        content["parameters"].zero_()
    (outcome,) = sweep([CONFIG], store, jobs=1, progress=False)
    assert outcome.record is not None
    whole = train(CONFIG, threads=1)
    assert outcome.record.curve[-1]["train_loss"] != pytest.approx(whole.curve[-1].train_loss, rel=1e-4)
    assert not kept.exists()


def stop_half_way(folder: Path) -> Path:
    kept = folder / "kept"
    kept.write_bytes(half_way())
    return kept


@cache
def half_way() -> bytes:
    """Return the checkpoint of a run that was stopped."""
    with TemporaryDirectory() as folder:
        kept = Path(folder) / "kept"
        with pytest.raises(Stop):
            train(CONFIG, threads=1, checkpoint=kept, checkpoint_every=0, progress=stopped_at(6))
        return kept.read_bytes()
