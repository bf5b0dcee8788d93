"""The API reference: what docstrings refer to is there, and pdoc builds it without a warning."""

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

import fa

ROOT = Path(__file__).parents[1]
MEMBERS = (FunctionType, classmethod, staticmethod, property, cached_property)
REFERENCE = re.compile(r"`(fa\.[\w.]+)(?:\(\.*\))?`")


def modules() -> Iterator[ModuleType]:
    yield fa
    for module in pkgutil.walk_packages(fa.__path__, "fa."):
        yield importlib.import_module(module.name)


def documented(module: ModuleType) -> Iterator[str]:
    """The docstrings of a module, of what it defines, and of its classes' members."""
    yield module.__doc__ or ""
    for thing in vars(module).values():
        if getattr(thing, "__module__", None) == module.__name__:
            yield inspect.getdoc(thing) or ""
            if inspect.isclass(thing):
                own = [member for member in vars(thing).values() if isinstance(member, MEMBERS)]
                yield from (inspect.getdoc(member) or "" for member in own)


def resolved(name: str) -> Any:
    """What a dotted name stands for; AttributeError or ImportError where it is nothing."""
    found: Any = fa
    done = "fa"
    for part in name.split(".")[1:]:
        done = f"{done}.{part}"
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(done)
    return found


def test_what_docstrings_refer_to_is_there() -> None:
    seen, broken = 0, []
    for module in modules():
        for text in documented(module):
            for name in REFERENCE.findall(text):
                seen += 1
                try:
                    resolved(name)
                except (AttributeError, ImportError):
                    broken.append(f"{module.__name__}: {name}")
    assert broken == []
    assert seen > 20


def test_the_examples_of_docstrings_run() -> None:
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(verbose=False)
    examples = [test for module in modules() for test in finder.find(module, module.__name__) if test.examples]
    for test in examples:
        runner.run(test)
    assert runner.failures == 0
    assert len(examples) >= 3


@pytest.mark.slow
def test_the_reference_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="needs pdoc")
    command = [sys.executable, str(ROOT / "docs" / "build.py"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    pages = {page.relative_to(tmp_path).with_suffix("").as_posix() for page in tmp_path.rglob("*.html")}
    assert {module.__name__.replace(".", "/") for module in modules()} <= pages
