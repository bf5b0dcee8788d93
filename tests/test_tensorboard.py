"""TensorBoard's events are the run's own numbers."""

import errno
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fa.cli import cli, main
from fa.training import TrainConfig, train
from fa.training.records import USED, WorkerRow, byzantine_share
from fa.training.tensorboard import TensorBoardLogger
from tests.texts import check_refusal

INSTALL = "tensorboard is not installed: pip install tensorboard"
SHORT = {"workers": 5, "byzantine": 1, "iterations": 4, "batch": 4, "evaluate_every": 2}


def events(folder: Path):
    """What is in the event files, by TensorBoard's own reader."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=INSTALL)
    return accumulator.EventAccumulator(str(folder), size_guidance={"histograms": 0}).Reload()


def scalars(board, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in board.Scalars(tag)]


@pytest.mark.parametrize("rule", ["fa", "multi_krum", "median"])
def test_events_are_the_records(rule: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason=INSTALL)
    with TensorBoardLogger(tmp_path, byzantine=1) as board:
        run = train(TrainConfig(rule=rule, **SHORT), progress=board)
    read = events(tmp_path)
    assert scalars(read, "accuracy/test") == [
        (point.iteration, pytest.approx(point.test_accuracy)) for point in run.curve
    ]
    (loss,) = (tag for tag in read.Tags()["scalars"] if tag.startswith("loss/"))
    losses = dict(scalars(read, loss))
    assert list(losses) == [1, 2, 3, 4]
    for point in run.curve:
        assert losses[point.iteration] == pytest.approx(point.train_loss)
    (tag,) = (tag for tag in read.Tags()["scalars"] if "Byzantine" in tag)
    assert ("weights" in tag) == (rule != "median")
    shares = dict(scalars(read, tag))
    for step in range(1, 5):
        rows = [row for row in run.workers if row.iteration == step]
        assert shares[step] == pytest.approx(byzantine_share(rows, 1))
        weights = [row.weight for row in rows if row.weight is not None]
        if weights:
            value = next(event.histogram_value for event in read.Histograms("workers/weights") if event.step == step)
            assert (value.num, value.sum) == (5, pytest.approx(sum(weights)))
    assert ("workers/values" in read.Tags()["histograms"]) == (rule == "fa")


def test_a_run_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason=INSTALL)
    command = ["train", "--rule", "mean", "--workers", "3", "--byzantine", "1", "--batch", "4"]
    for iterations in ("3", "2"):
        arguments = [*command, "--iterations", iterations, "--tensorboard", str(tmp_path)]
        CliRunner().invoke(cli, arguments, catch_exceptions=False)
    board = events(tmp_path)
    (loss,) = (tag for tag in board.Tags()["scalars"] if tag.startswith("loss/"))
    assert [step for step, _ in scalars(board, loss)] == [1, 2]


def test_a_file_is_no_folder_for_events(tmp_path: Path) -> None:
    (tmp_path / "board").touch()
    with pytest.raises(ValueError, match=rf"^tensorboard must be .*{re.escape(str(tmp_path / 'board'))}"):
        TensorBoardLogger(tmp_path / "board", 1)


def test_the_share_is_of_sizes_or_of_those_used() -> None:
    def rows(*weights: float | None, used: str = "yyy") -> list[WorkerRow]:
        status = {"y": f"{USED}; 6 lost", "n": "left out"}
        return [WorkerRow(1, w, None, weight, status[used[w]]) for w, weight in enumerate(weights)]

    assert byzantine_share(rows(-0.5, 0.25, 0.25), 1) == 0.5
    assert byzantine_share(rows(None, None, None, used="yny"), 1) == 0.5
    assert byzantine_share(rows(None, None, None, used="nny"), 2) == 0.0
    assert byzantine_share(rows(None, None, None, used="nnn"), 2) == 0.0


def test_without_tensorboard_nothing_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "tensorboard" else find(name, *a))
    monkeypatch.setattr("fa.training.train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(SystemExit) as ended:
        main(["train", "--tensorboard", str(tmp_path / "board")])
    check_refusal(ended.value.code, capsys.readouterr().err, r"\btensorboard\b.*pip install .*\[tensorboard\]")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_the_log_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    lines: list[str] = []
    with TensorBoardLogger(tmp_path, 1, lines.append) as board:
        run = train(TrainConfig(rule="median", workers=5, byzantine=1, iterations=3, batch=4), progress=board)
    assert run.curve[-1].iteration == 3
    assert [str(tmp_path) in line and "No space" in line for line in lines] == [True]
