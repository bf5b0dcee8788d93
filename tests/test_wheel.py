"""The package without the extras: what `pip install` of the wheel alone gives, the optional packages being blocked."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.texts import check_refusal

ROOT = Path(__file__).parents[1]

PACKAGED = (".py", ".npz", ".txt", ".typed")

WITHOUT = """
import importlib, importlib.abc, pkgutil, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""
EVERY = """
import contextlib, io, json
import fa
from fa.cli import main

def call(words):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words.split())
        except SystemExit as leaving:
            code = leaving.code
    return code, out.getvalue(), err.getvalue()

print(json.dumps({{words: call(words) for words in {commands!r}}}))
for module in pkgutil.walk_packages(fa.__path__, "fa."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(module.name, error.name.partition(".")[0])
"""
NEED_NONE = (
    "--help",
    "doctor",
    "train --workers 3 --byzantine 1 --iterations 2 --batch 4 --rule median",
    "sweep fig02 --profile smoke --why",
)
NEED_ONE = (
    ("reproduce fig02 --profile smoke --out OUT", "papermill", "flag-aggregator[notebooks]"),
    ("bench --n 10 --p 3 --out OUT", "matplotlib", "flag-aggregator[notebooks]"),
    ("augment lv --out OUT", "scipy", "flag-aggregator[theory]"),
    ("train --rule byzfl:Krum", "byzfl", "byzfl"),
)


def optional() -> set[str]:
    """The packages of all extras, by the names they are imported by."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {package.split(">")[0].split("[")[0] for extra in extras.values() for package in extra}
    return (names - {"flag-aggregator"}) | {"IPython", "jupyter_client", "yaml"}


def run(code: str, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Python code where the optional packages are not there; fa is that of the folder."""
    command = [sys.executable, "-c", WITHOUT.format(blocked=optional()) + code, *arguments]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, tuple[int, str, str]], list[str]]:
    """Return exit code, stdout and stderr of each command, and the modules that cannot be imported; one process."""
    out = str(tmp_path_factory.mktemp("without") / "out")
    commands = [*NEED_NONE, *(words for words, *_ in NEED_ONE)]
    done = run(EVERY.format(commands=[words.replace("OUT", out) for words in commands]))
    assert done.returncode == 0, done.stderr
    results, *modules = done.stdout.splitlines()
    return dict(zip(commands, json.loads(results).values(), strict=True)), modules


def test_every_module_can_be_imported_without_the_extras(without: tuple[dict, list[str]]) -> None:
    """What needs one imports it where it is used."""
    assert without[1] == []


@pytest.mark.parametrize("words", NEED_NONE)
def test_commands_that_need_no_extra_work_without_them(words: str, without: tuple[dict, list[str]]) -> None:
    code, _, err = without[0][words]
    assert code == 0, err


@pytest.mark.parametrize(("words", "needed", "installs"), NEED_ONE)
def test_commands_that_need_one_say_what_to_install(
    words: str, needed: str, installs: str, without: tuple[dict, list[str]]
) -> None:
    code, _, err = without[0][words]
    check_refusal(code, err, rf"\b{needed}\b.*pip install")
    assert installs in err.partition("pip install")[2]


@pytest.mark.slow
def test_the_wheel_holds_all_that_training_needs(tmp_path: Path) -> None:
    """Built and unpacked; `fa train` runs from it alone, on the digits that it brings."""
    shutil.copytree(ROOT / "fa", tmp_path / "source" / "fa", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(tmp_path / "source")], check=True)
    (wheel,) = tmp_path.glob("flag_aggregator-*.whl")
    with zipfile.ZipFile(wheel) as held:
        held.extractall(tmp_path / "installed")
    written = {str(path.relative_to(ROOT)) for path in (ROOT / "fa").rglob("*") if path.suffix in PACKAGED}
    assert written <= {str(path.relative_to(tmp_path / "installed")) for path in (tmp_path / "installed").rglob("*")}
    (first, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    code = first + "\nprint(fa.__file__, tuple(d.shape))\nfrom fa.cli import main; main()"
    words = "train --workers 3 --byzantine 1 --iterations 2 --batch 4 --rule mean"  # whose loop compiles quickly
    done = run(code, *words.split(), folder=tmp_path / "installed")
    assert done.returncode == 0, done.stderr
    place, *printed = done.stdout.splitlines()
    assert place.startswith(str(tmp_path / "installed"))
    assert re.search(r"\bmean\b.*\b3\b", "\n".join(printed))
