"""Every option of every command given what it cannot take: exit code 1 or 2, a line or two on stderr, no traceback, and
nothing left behind.
"""

import importlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest

from fa import cli
from fa.training import TrainConfig, train
from tests.texts import check_refusal

QUICK = "--workers 3 --byzantine 1 --iterations 1 --batch 4 --rule median --threads 1"
ARGUMENTS = {  # of each command, so that all but one are right
    "train": QUICK,
    "server": f"{QUICK} --listen 127.0.0.1:1",
    "worker": "--rank 0 --server 127.0.0.1:1",
    "sweep": "fig02 --profile smoke --why",
    "reproduce": "fig02 --profile smoke",
    "report": "",
    "aggregate": "G.npy --out d.npy",
    "certify": "G.npy",
    "bench": "--n 10 --p 3 --repeats 1 --patience 0.001",
    "augment": "lv --out made",
    "data fetch": "mnist",
    "data list": "",
    "grid": "grid.toml --dry-run",
    "plot": "run",
    "keys": "made --workers 1",
    "doctor": "",
}
PLACES = ("folder", "empty", "garbled", "full", "/dev/null/x", "/proc/x")
NUMBERS = ("-1", "-0.5", "0", "nan", "x", "1e400", "")
WORDS = ("", "nonsense", "./none.py:X", "folder", "/", "é", "a\x00b")

ZERO = [
    "byzantine",
    "f",
    "momentum",
    "worker_momentum",
    "evaluate_every",
    "weight_decay",
    "seed",
    "validation",
    "lam",
    "tol",
    "rank",
    "restarts",
]
FINE = {  # what only looks wrong, or is looked at where it is used
    *((option, "0") for option in ZERO),
    *((option, place) for option in ("out", "root", "tensorboard") for place in ("folder",)),
    ("patience", "1e400"),
    ("strict", ""),  # click reads it as false
}
JOINS = {
    ("bench", "out"),
    ("reproduce", "out"),
    ("data fetch", "root"),
    ("train", "tensorboard"),
}  # folders that may hold other files
UNUSED = {  # places that these commands do not come to with these arguments
    ("sweep", "out"), ("data list", "root"), ("augment", "root"), ("reproduce", "jobs"), ("sweep", "jobs"),
    ("aggregate", "group_term"),
    ("grid", "out"),
    ("aggregate", "formulation"),  # see tests/test_rules.py: here a type checker is before ours
}  # fmt: skip


def test_every_command_is_tried() -> None:
    assert {name.split()[0] for name in ARGUMENTS} == set(cli.COMMANDS)


def command_of(name: str) -> click.Command:
    first, *rest = name.split()
    command = getattr(importlib.import_module(f"fa.cli.{first}"), first)
    return command.commands[rest[0]] if rest else command


def values_of(parameter: click.Parameter) -> tuple[str, ...]:
    if isinstance(parameter.type, click.Path):
        return PLACES
    if isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType):
        return NUMBERS
    return ("", "nonsense") if isinstance(parameter.type, click.Choice) else WORDS


def cases() -> Iterator[tuple[str, click.Parameter]]:
    for name in ARGUMENTS:
        for parameter in command_of(name).params:
            skipped = (name, parameter.name) in UNUSED or (name == "server" and parameter.name != "listen")
            if not skipped and not getattr(parameter, "is_flag", False):
                yield name, parameter


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(TrainConfig(rule="mean", workers=2, byzantine=0, iterations=1, batch=4), folder, threads=1)
    return folder


@pytest.fixture
def place(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with gradients, and things that are none."""
    np.save(tmp_path / "G.npy", np.random.default_rng(0).standard_normal((7, 30)))
    (tmp_path / "grid.toml").write_text('rules = ["mean"]\nattacks = ["none"]\nbyzantine = [0]\n')
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "empty").touch()
    (tmp_path / "garbled").write_bytes(bytes(range(256)))
    (tmp_path / "folder").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FA_DATA", str(tmp_path / "folder"))
    return tmp_path


def wrong(name: str, parameter: click.Parameter, value: str) -> list[str]:
    """The command line with this value in the place of a right one."""
    words = ARGUMENTS[name].split()
    if isinstance(parameter, click.Argument):
        return [*name.split(), "--", value] if not words else [*name.split(), value, *words[1:]]
    return [*name.split(), *words, parameter.opts[-1] if len(parameter.opts[-1]) > 2 else parameter.opts[0], value]


@pytest.mark.parametrize(
    ("name", "parameter"), [pytest.param(*case, id=f"{case[0]} {case[1].name}") for case in cases()]
)
def test_a_wrong_value_is_told_in_a_line_or_two(
    name: str, parameter: click.Parameter, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = sorted(place.rglob("*"))
    for value in values_of(parameter):
        if (parameter.name, value) in FINE or (value == "full" and (name, parameter.name) in JOINS):
            continue
        with pytest.raises(SystemExit) as leaving:
            cli.main(wrong(name, parameter, value))
        told = capsys.readouterr().err
        assert leaving.value.code in (1, 2), (value, told)
        assert told.startswith("fa: "), value
        assert told.count("\n") <= 3, told
        assert "Traceback" not in told
        assert sorted(place.rglob("*")) == there, value
    assert (place / "full" / "mine").read_text() == "mine"


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("extra", ["--no-such-option", "surplus"])
def test_what_a_command_does_not_take_is_told(
    name: str, extra: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main([*name.split(), *ARGUMENTS[name].split(), extra])
    told = capsys.readouterr().err
    assert leaving.value.code in (1, 2)
    assert told.startswith("fa: ")
    assert told.count("\n") <= 3


def test_a_broken_pipe_within_a_command_is_told(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """click ends silently for every broken pipe, which is right only for that of the output."""

    def breaks(*_: object, **__: object) -> None:
        raise BrokenPipeError(32, "Broken pipe of a child")

    monkeypatch.setattr("fa.data.describe", breaks, raising=False)
    with pytest.raises(SystemExit) as leaving:
        cli.main(["data", "list"])
    check_refusal(leaving.value.code, capsys.readouterr().err, "Broken pipe of a child")


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_reader_that_leaves_ends_a_command_silently(kind: str) -> None:
    reader, writer = os.pipe() if kind == "pipe" else [end.detach() for end in socket.socketpair()]
    os.close(reader)
    code = "from fa.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "data", "list"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == ""


def test_a_home_folder_after_an_equals_sign_is_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves it unchanged there."""
    monkeypatch.setenv("HOME", str(place / "folder"))
    with pytest.raises(SystemExit) as leaving:
        cli.main(["aggregate", "G.npy", "--rule", "mean", "--out=~/d.npy"])
    assert leaving.value.code == 0
    assert (place / "folder" / "d.npy").is_file()


def test_a_place_where_nothing_may_be_written_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    place.joinpath("folder").chmod(0o500)
    for words in (
        f"train {QUICK} --out folder/run",
        "aggregate G.npy --out folder/d.npy",
        "augment lv --out folder/lv",
    ):
        with pytest.raises(SystemExit) as leaving:
            cli.main(words.split())
        assert leaving.value.code == 2
        assert "folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ("train --workers 4", r"^fa: byzantine must be .*\b4\b.*\b3\b"),
        ("train --workers 4 --byzantine 1 --checkpoint none/kept", r"^fa: checkpoint must be .*\bnone/kept\b"),
        ("train --workers 99999999999999999999 --byzantine 1 --iterations 1", r"^fa: workers must be .*\b9{20}\b"),
        ("train --workers 4 --byzantine 2 --rule median", r"^fa: median\b.*\b2f\b.*\b4\b.*\b2\b"),
    ],
)
def test_it_says_what_does_not_hold(
    arguments: str, pattern: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(arguments.split())
    check_refusal(leaving.value.code, capsys.readouterr().err, pattern)
    assert not (place / "none").exists()


def test_held_out_images_are_not_called_test_images(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", *QUICK.split(), "--validation", "0.1"])
    result = capsys.readouterr().out
    assert re.search(r"\bvalidation\b", result)
    assert not re.search(r"\btest\b", result)
