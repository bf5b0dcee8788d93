"""The tree in ARCHITECTURE.md names every room of fa, and imports go downwards in it."""

import ast
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "ARCHITECTURE.md").read_text()


def entries(prefix: str, text: str = PAGE) -> list[str]:
    """Return the names in the drawn tree that stand directly behind a prefix, from top to bottom."""
    return re.findall(rf"^{prefix}[├└]── (\w+)(?:/|\.py)", text, flags=re.MULTILINE)


def inner(package: str) -> list[str]:
    """Return the entries that the drawn tree shows within a package of fa."""
    (drawn,) = re.findall(rf"^[├└]── {package}/.*\n((?:[│ ]   .*\n)*)", PAGE, flags=re.MULTILINE)
    return entries("[│ ]   ", drawn)


def imported(source: Path) -> Iterator[str]:
    """Yield the modules that a module imports when it is itself imported: not within functions, nor for type checks."""
    for statement in ast.parse(source.read_text()).body:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def upwards(package: str, order: list[str]) -> list[str]:
    """Return the imports between entries of a package that run against their order."""
    level = {name: place for place, name in enumerate(order)}
    folder = ROOT / package.replace(".", "/")
    return [
        f"{source.relative_to(ROOT)} imports {module}"
        for source in folder.rglob("*.py")
        for entry in [source.relative_to(folder).parts[0].removesuffix(".py")]
        for module in imported(source)
        if entry != "__init__" and module.startswith(f"{package}.")
        for other in [module.removeprefix(f"{package}.").split(".")[0]]
        if level.get(other, len(level)) < level[entry]
    ]


def names(package: str) -> set[str]:
    return {module.name for module in pkgutil.iter_modules([str(ROOT / package.replace(".", "/"))])}


def test_every_room_has_its_place() -> None:
    order = entries("")
    assert set(order) - {"__init__"} == names("fa")
    assert len(order) == len(set(order))
    assert set(inner("experiments")) == names("fa.experiments")


@pytest.mark.parametrize(("package", "order"), [("fa", entries("")), ("fa.experiments", inner("experiments"))])
def test_imports_go_downwards(package: str, order: list[str]) -> None:
    assert upwards(package, order) == []
