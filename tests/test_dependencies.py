"""Every third-party package that fa imports, lazily or not, is one that pyproject.toml asks for."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def imported(source: str) -> Iterator[str]:
    """The top-level packages that a module imports, in functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def declared() -> set[str]:
    """The distributions of pyproject.toml, extras included, by canonical name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = chain(project["dependencies"], *project["optional-dependencies"].values())
    return {canonicalize_name(Requirement(text).name) for text in texts}


def test_lazy_imports_are_seen() -> None:
    source = "import a.b, c\ndef f():\n    from d.e import f\n    from . import g\n"
    assert sorted(imported(source)) == ["a", "c", "d"]


def test_every_package_that_is_imported_is_declared() -> None:
    distributions, undeclared = packages_distributions(), set()
    with_torch = {"triton"}  # torch pins it where it has CUDA on Linux; fa works without it.
    for path in (ROOT / "fa").rglob("*.py"):
        for package in set(imported(path.read_text())) - sys.stdlib_module_names - {"fa"} - with_torch:
            names = {canonicalize_name(name) for name in distributions.get(package, [package])}
            if not names & declared():
                undeclared.add(f"{package} in {path.relative_to(ROOT)}")
    assert undeclared == set()
