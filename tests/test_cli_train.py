"""The command line's manners, and `fa train`."""

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fa
from fa import cli, training
from fa.attacks import ATTACKS
from fa.cli import help_texts
from fa.cli.rule_options import OPTIONS
from fa.cli.train import train as train_command
from fa.data.registry import REGISTRY
from fa.training import Run, TrainConfig
from fa.training.records import CurvePoint
from fa.training.schedule import schedule
from tests.texts import check_refusal, numbers

QUICK = ["train", "--workers", "3", "--byzantine", "1", "--iterations", "2", "--batch", "4", "--rule", "median"]
QUICK += ["--threads", "1"]

TELLING = """
from fa.cli import main
from fa.training.transports.simulation import SimulatedTransport

plain = SimulatedTransport.gradients

def gradients(self, iteration):
    if iteration == 3:
        print("training", flush=True)
    return plain(self, iteration)

SimulatedTransport.gradients = gradients
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
    monkeypatch.setattr("fa.utils.progress_bar.LINES", float("inf"))
    code, out, err = call(capsys, *QUICK)
    assert (code, err) == (0, "")
    assert all(name in out for name in ("median", "random", "convnet", "mnist-mini"))
    assert {3, 1, 2021, 2} <= set(numbers(out))  # workers, Byzantine workers, seed, iterations
    assert list(tmp_path.iterdir()) == [], "without --out nothing is written"


def test_where_stderr_is_no_terminal_a_line_now_and_then_tells_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fa.utils.progress_bar.LINES", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a process that a notebook starts: colors may go there, a bar not
    _, _, err = call(capsys, *QUICK, "--iterations", "3", "--evaluate-every", "3")
    first, last = err.splitlines()  # of the first iteration, which compiles, nothing is told
    assert (numbers(first)[:2], numbers(last)[:2]) == ([2, 3], [3, 3])
    assert len(numbers(last)) == len(numbers(first)) + 1  # the accuracy
    assert 0 <= numbers(last)[-1] <= 1


def test_a_run_with_out_leaves_its_records(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = call(capsys, *QUICK, "--seed", "7", "--lr", "0.01", "--out", str(tmp_path / "run"))
    assert code == 0
    assert str(tmp_path / "run") in out
    description = json.loads((tmp_path / "run" / "config.json").read_text())
    assert TrainConfig.from_json(json.dumps(description["config"])) == TrainConfig(
        workers=3, byzantine=1, iterations=2, batch=4, rule="median", seed=7, lr=0.01
    )
    assert description["schedule"]["evaluate_every"] == 1
    with (tmp_path / "run" / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2, "a short run is evaluated often enough to be a curve"
    assert f"{float(rows[-1]['test_accuracy']):.4f}" in out


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
    ("arguments", "epochs"),
    [
        ([], 52),  # an epoch of the embedded digits has 10,000/(15 * 128) = 5 iterations
        (["--batch", "32"], 13),
        (["--validation", "0.5"], 130),
        (["--dataset", "cifar10"], 10),
        (["--lr-decay-epochs", "3"], 3),
    ],
)
def test_the_schedule_fits_the_data_set_and_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], epochs: int
) -> None:
    def instead(config: TrainConfig, **_: object) -> Run:
        size = round((1 - config.validation) * REGISTRY[config.dataset].train)
        curve = (CurvePoint(1, 1, 1.0, 1.0, 0.5),)
        own = schedule(config, size)
        return Run(config=config, curve=curve, workers=(), seconds=1.0, threads=1, checksum="", schedule=own)

    monkeypatch.setattr(training, "train", instead)
    code, out, _ = call(capsys, "train", *arguments)
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("learning rate"))
    rate, factor, printed, iterations = numbers(line)
    assert (rate, factor, printed) == (0.2, 0.2, epochs)
    if len(arguments) == 0 or arguments[0] != "--lr-decay-epochs":
        assert 260 <= iterations < 270


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["trian"], r"^fa: command must be .*'trian'.*'train'"),
        (["train", "--lamda", "3"], r"--lamda\b"),
        (["train", "--workers", "many"], r"--workers\b.*'many'"),
        (["train", "--workers", "0"], r"^fa: workers must be .*\b0\b"),
        (["train", "--byzantine", "15"], r"^fa: byzantine must be .*\b15\b"),
        (["train", "--rule", "best"], r"^fa: rule must be .*'best'"),
        (["train", "--rule", "median", "--m", "8"], "'m'"),
        (["train", "--attack", "lie"], r"^fa: attack must be .*'lie'"),
        (["train", "--dataset", "mnits"], r"^fa: dataset must be .*'mnits'"),
        (["train", "--model", "convnot"], r"^fa: model must be .*'convnot'"),
        (["train", "--device", "abacus"], r"^fa: device must be .*'abacus'"),
        ([*QUICK, "--backend", "tcp", "--gradients", "rpc"], r"^fa: backend must be .*--gradients.*'tcp'"),
        ([*QUICK, "--backend", "tcp", "--lost", "zero"], r"^fa: backend must be .*--lost.*'tcp'"),
        ([*QUICK, "--gradients", "udp"], r"^fa: backend must be 'rpc'.*--gradients"),
        ([*QUICK, "--keys", "keys"], r"^fa: backend must be 'tcp'.*--keys"),
        ([*QUICK, "--lr", "1e39"], r"^fa: lr must be .*1e\+39"),
        ([*QUICK, "--weight-decay", "1e39"], r"^fa: weight_decay must be .*1e\+39"),
        ([*QUICK, "--backend", "tcp", "--deadline", "1e10"], r"^fa: deadline must be .*10000000000"),
        ([*QUICK, "--attack", "ipm", "--attack-option", f"factor={'9' * 400}"], r"^fa: factor must be .*999"),
        (
            ["worker", "--rank", "0", "--server", "127.0.0.1:1", "--timeout", "1e10"],
            r"^fa: timeout must be .*10000000000",
        ),
        (["keys", "made", "--days", "4000000"], r"^fa: days must be .*\b36500, got 4000000"),
        (["train", "--threads", "0"], r"--threads\b.*\b0\b"),
        (["train", "--threads", "1025"], r"--threads\b.*\b1025\b"),
        ([*QUICK, "--rule", "bulyan"], r"^fa: bulyan\b.*\b4f \+ 3\b.*\b3\b"),
    ],
)
def test_a_users_error_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], pattern: str) -> None:
    code, out, err = call(capsys, *arguments)
    assert out == ""
    check_refusal(code, err, pattern)


def test_an_occupied_directory_is_refused_before_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("trained"))
    code, _, err = call(capsys, *QUICK, "--out", str(tmp_path))
    check_refusal(code, err, rf"^fa: out must be .*{re.escape(repr(str(tmp_path)))}")
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


def test_help_lists_the_rules_and_attacks() -> None:
    """The names are repeated in the command line, whose help does not import them."""
    assert (help_texts.RULES, help_texts.ATTACKS) == (fa.RULES, tuple(ATTACKS))
    texts = {option.name: getattr(option, "help", "") for option in train_command.params}
    for name, known in (("rule", fa.RULES), ("attack", ATTACKS)):
        assert set(known) <= set(re.findall(r"\w+", texts[name]))


@pytest.mark.parametrize("name", ["lam", "a", "tol", "max_iter", "formulation", "regularizer", "start", "group_term"])
def test_help_shows_the_defaults_of_rule_options(name: str) -> None:
    default = getattr(fa.make_rule("fa"), name)
    shown = re.search(r"\[default: ([^,;\]]+)", OPTIONS[name][1])
    assert shown
    assert (float(shown[1]) if isinstance(default, int | float) else shown[1]) == default


def test_help_shows_every_default_in_one_form(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.COMMANDS:
        assert "[default: (" not in call(capsys, name, "--help")[1], name


WITHOUT_TORCH = """
import json, sys
from fa.cli import main

for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments.split())
    except SystemExit as leaving:
        print(json.dumps([arguments, leaving.code, "torch" in sys.modules]), file=sys.stderr)
"""


def test_help_and_errors_do_not_wait_for_torch() -> None:
    """Loading torch takes seconds. One process for all: after a command that loads it, all later ones are named."""
    expected = {f"{name} --help": 0 for name in cli.COMMANDS}
    wrong = ("train --workers many", "train --workers 0", "train --sampling often", "train --out /dev/null")
    expected |= dict.fromkeys((*wrong, "sweep fig99", "reproduce fig99"), 2)
    command = [sys.executable, "-c", WITHOUT_TORCH, json.dumps([*expected])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    results = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]
    assert results == [[arguments, code, False] for arguments, code in expected.items()]


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
    assert (process.returncode, out, last[:4]) == (130, "", "fa: ")
    assert all(numbers(line)[1] == 100_000 for line in progress), err
    assert list(tmp_path.iterdir()) == []
