"""The package without the extras: what `pip install` of the wheel alone gives, the optional packages being blocked."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

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
import fa
for module in pkgutil.walk_packages(fa.__path__, "fa."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(module.name, error.name.partition(".")[0])
"""


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


def test_every_module_can_be_imported_without_the_extras() -> None:
    """What needs one imports it where it is used."""
    done = run(EVERY)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "doctor",
        "train --workers 3 --byzantine 1 --iterations 2 --batch 4 --rule median",
        "sweep fig02 --profile smoke --why",
    ],
)
def test_commands_that_need_no_extra_work_without_them(words: str) -> None:
    done = run("from fa.cli import main; main()", *words.split())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "needed", "installs"),
    [
        ("reproduce fig02 --profile smoke --out OUT", "papermill", "flag-aggregator[notebooks]"),
        ("bench --n 10 --p 3 --out OUT", "matplotlib", "flag-aggregator[notebooks]"),
        ("augment lv --out OUT", "scipy", "flag-aggregator[theory]"),
        ("train --rule byzfl:Krum", "byzfl", "byzfl"),
    ],
)
def test_commands_that_need_one_say_what_to_install(words: str, needed: str, installs: str, tmp_path: Path) -> None:
    done = run("from fa.cli import main; main()", *words.replace("OUT", str(tmp_path / "out")).split())
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("fa: ")
    assert needed in done.stderr.partition("pip install")[0]
    assert installs in done.stderr.partition("pip install")[2]
    assert done.stderr.count("\n") == 1


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
    words = "train --workers 3 --byzantine 1 --iterations 2 --batch 4 --rule median"
    done = run("from fa.cli import main; main()", *words.split(), folder=tmp_path / "installed")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\bmedian\b.*\b3\b", done.stdout)
    (first, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    done = run(first + "\nprint(fa.__file__, tuple(d.shape))", folder=tmp_path / "installed")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0].startswith(str(tmp_path / "installed"))
