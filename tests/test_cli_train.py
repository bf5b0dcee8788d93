"""The command line's manners, and `fa train`."""

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fa import cli, training
from fa.training import TrainConfig

QUICK = ["train", "--workers", "3", "--byzantine", "1", "--iterations", "2", "--batch", "4", "--rule", "median"]
QUICK += ["--threads", "1"]

TELLING = """
from fa.cli import main
from fa.training.simulation import Simulation

plain = Simulation.gradients

def gradients(self, iteration, parameters):
    if iteration == 3:
        print("training", flush=True)
    return plain(self, iteration, parameters)

Simulation.gradients = gradients
main()
"""


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of `fa ARGUMENTS`, in this process."""
    with pytest.raises(SystemExit) as leaving:
        cli.main(arguments)
    output = capsys.readouterr()
    assert isinstance(leaving.value.code, int)
    return leaving.value.code, output.out, output.err


def test_a_run_prints_its_result(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fa.cli.train._LINES", float("inf"))
    code, out, err = call(capsys, *QUICK)
    assert (code, err) == (0, "")
    assert "median, 3 workers, 1 faulty (random), convnet on mnist-mini, seed 2021" in out
    assert "test accuracy 0." in out
    assert "after 2 iterations" in out
    assert list(tmp_path.iterdir()) == [], "without --out nothing is written"


def test_where_stderr_is_no_terminal_a_line_now_and_then_tells_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fa.cli.train._LINES", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a process that a notebook starts: colours may go there, a bar not
    _, _, err = call(capsys, *QUICK, "--iterations", "3")
    first, last = err.splitlines()  # of the first iteration, which compiles, nothing is told
    assert re.fullmatch(r"2 of 3 iterations, about \d+ s left; loss \d\.\d{3}, accuracy -", first)
    assert re.fullmatch(r"3 of 3 iterations, about 0 s left; loss \d\.\d{3}, accuracy 0\.\d{3}", last)


def test_a_run_with_out_leaves_its_records(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = call(capsys, *QUICK, "--seed", "7", "--lr", "0.01", "--out", str(tmp_path / "run"))
    assert code == 0
    assert f"records in {tmp_path / 'run'}" in out
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert TrainConfig.from_json(json.dumps(config)) == TrainConfig(
        workers=3, byzantine=1, iterations=2, batch=4, rule="median", seed=7, lr=0.01
    )
    with (tmp_path / "run" / "curve.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert f"test accuracy {float(row['test_accuracy']):.4f}" in out


def test_options_of_rules_reach_the_rule(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainConfig] = []

    def instead(config: TrainConfig, **_: object) -> None:
        seen.append(config)
        raise ValueError("enough")

    monkeypatch.setattr(training, "train", instead)
    flags = ["--m", "8", "--lam", "2", "--formulation", "released", "--preaggregators", "krum, unit", "--max-iter", "1"]
    call(capsys, "train", *flags, "--f", "2")
    call(capsys, "train", "--preaggregators", "none", "--keep", "5", "--rule", "multi_krum")
    assert seen[0].options == {
        "m": 8,
        "lam": 2.0,
        "formulation": "released",
        "preaggregators": ("krum", "unit"),
        "max_iter": 1,
    }
    assert seen[0].rule_f == 2
    assert seen[1].options == {"preaggregators": (), "keep": 5}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "command must be one of train, server, worker, "),
        (["trian"], "did you mean 'train'?"),
        (["train", "--lamda", "3"], "--lamda"),
        (["train", "--workers", "many"], "many"),
        (["train", "--workers", "0"], "workers must be an integer of at least 1; it is 0"),
        (["train", "--byzantine", "15"], "byzantine must be less than workers=15; it is 15"),
        (["train", "--rule", "best"], "best"),
        (["train", "--rule", "median", "--m", "8"], "'m'"),
        (["train", "--attack", "lie"], "attack must be one of random"),
        (["train", "--dataset", "mnits"], "mnits"),
        (["train", "--model", "convnot"], "convnot"),
        (["train", "--device", "abacus"], "device must be cpu, or cuda, cuda:0 and so on; it is 'abacus'"),
        (["train", "--threads", "0"], "--threads"),
        ([*QUICK, "--rule", "bulyan"], "p >= 4f + 3; here p = 3"),
    ],
)
def test_a_users_error_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("fa: ")
    assert words in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_an_occupied_directory_is_refused_before_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("the run had begun"))
    code, _, err = call(capsys, *QUICK, "--out", str(tmp_path))
    assert code == 2
    assert err == f"fa: out must be empty: it holds files already; it is {str(tmp_path)!r}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_help_names_every_command_and_imports_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def importing(name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr("importlib.import_module", importing)
    code, out, err = call(capsys, "--help")
    assert (code, err) == (0, "")
    assert all(name in out for name in cli.COMMANDS)


def test_fa_alone_prints_its_help_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    _, usual, _ = call(capsys, "--help")
    code, out, err = call(capsys)
    assert (code, out, err) == (2, "", usual)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_there(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """COMMANDS is a list of words: one whose module is missing or misnamed would fail only when it is called."""
    code, out, err = call(capsys, name, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: fa {name}" in out


WITHOUT_TORCH = """
import sys
from fa.cli import main

try:
    main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        *((f"{name} --help", 0) for name in cli.COMMANDS),
        ("train --workers many", 2),
        ("train --workers 0", 2),
        ("train --sampling often", 2),
        ("train --out /dev/null", 2),
        ("sweep fig99", 2),
        ("reproduce fig99", 2),
    ],
)
def test_help_and_errors_do_not_wait_for_torch(arguments: str, expected: int) -> None:
    """Loading torch takes seconds, which nobody wants to wait for to read which options there are."""
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (expected, "False")


def test_ctrl_c_is_one_line_and_130(tmp_path: Path) -> None:
    """A real process, a real signal, in the midst of training."""
    arguments = ["train", "--iterations", "100000", "--batch", "4", "--threads", "1", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-c", TELLING, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "training\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    *progress, last = err.splitlines()
    assert (process.returncode, out, last) == (130, "", "fa: interrupted")
    assert all("iterations, about" in line for line in progress), err
    assert list(tmp_path.iterdir()) == []
