"""The rooms are those that ARCHITECTURE.md names, and imports go downwards in its table."""

import ast
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\| (`[a-z0-9`, ]+`) \|.*\|.*\|$", (ROOT / "ARCHITECTURE.md").read_text(), flags=re.MULTILINE)
LEVEL = {room: level for level, row in enumerate(ROWS) for room in re.findall(r"`(\w+)`", row)}


def imported(source: Path) -> Iterator[str]:
    """The rooms that a module imports when it is itself imported: not within functions, nor for the type checker."""
    for statement in ast.parse(source.read_text()).body:
        if isinstance(statement, ast.Import):
            yield from (alias.name.split(".")[1] for alias in statement.names if alias.name.startswith("fa."))
        elif isinstance(statement, ast.ImportFrom) and statement.module == "fa":
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("fa."):
            yield str(statement.module).split(".")[1]


def test_every_room_has_its_place() -> None:
    assert set(LEVEL) == {module.name for module in pkgutil.iter_modules([str(ROOT / "fa")])}


def test_imports_go_downwards() -> None:
    upwards = [
        f"{source.relative_to(ROOT)} imports {room}"
        for source in (ROOT / "fa").rglob("*.py")
        for own in [source.relative_to(ROOT / "fa").parts[0].removesuffix(".py")]
        for room in imported(source)
        if own != "__init__" and LEVEL[room] < LEVEL[own]
    ]
    assert upwards == []
