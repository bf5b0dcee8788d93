"""Rules and attacks that are not this package's: in a file of the user's, or brought by an installed package.

FILE.py:NAME names what the file defines; LIBRARY:NAME what a module of `fa.interop` makes of a library's own; a plain
name may be an entry point of a package, in the group "fa.rules" or "fa.attacks".
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from fa.utils.validation import ConditionError

LIBRARIES = ("byzfl",)
"""Those whose rules and attacks `fa.interop` takes by their names."""

_loaded: dict[tuple[Path, str], ModuleType] = {}


OTHERS = "or FILE.py:NAME for one of your own, or byzfl:NAME"
"""What else may be named where rules and attacks are."""


def in_file(name: str) -> bool:
    """Whether this names something in a file."""
    return ".py:" in name


def of_library(name: str) -> bool:
    """Whether this names something of a library's own."""
    library, _, theirs = name.partition(":")
    return library in LIBRARIES and theirs != ""


def absolute(name: str) -> str:
    """The same name from whatever folder it is read: FILE.py:NAME with the file's whole path."""
    return f"{_path(name)}:{name.rpartition(':')[2]}" if in_file(name) else name


def shown(name: str) -> str:
    """The name as a title has it: NAME (FILE.py) for what is in a file."""
    path, _, attribute = name.rpartition(":")
    return f"{attribute} ({Path(path).name})" if in_file(name) else name


def files(*names: str) -> dict[str, dict[str, str]]:
    """For an identity: the checksums of those names that are in files, as "files"; nothing where none is.

    ValueError for a file that there is not.
    """
    own = {name: _checksum(_path(name)) for name in names if in_file(name)}
    return {"files": own} if own else {}


def load(kind: str, name: str) -> Any:
    """What FILE.py:NAME, LIBRARY:NAME, or the entry point of that name in the group "fa.KINDs", stands for; None where
    a plain name is no entry point. ValueError, with the file and the line, for a file that cannot be read or run, or
    lacks the name.
    """
    if of_library(name):
        library, _, theirs = name.partition(":")
        return getattr(importlib.import_module(f"fa.interop.{library}"), kind)(theirs)
    if not in_file(name):
        found = list(entry_points(group=f"fa.{kind}s", name=name))
        return found[0].load() if found else None
    attribute = name.rpartition(":")[2]
    module = _module(kind, name)
    if not hasattr(module, attribute):
        defined = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        there = ", ".join(defined) or "nothing"
        raise ValueError(
            f"{kind} must name what its file defines; {_path(name)} defines {there}, and not {attribute!r}"
        )
    return getattr(module, attribute)


@contextmanager
def blamed(kind: str) -> Iterator[None]:
    """What goes wrong in a file of the user's, while a rule or an attack of it works, is a ValueError that names the
    file and the line; all else passes.
    """
    try:
        yield
    except ConditionError:
        raise
    except Exception as error:
        place = _line(error, {path for path, _ in _loaded})
        if place is None:
            raise
        raise ValueError(f"{kind} failed: {place}: {type(error).__name__}: {error}") from error


def _path(name: str) -> Path:
    path = Path(name.rpartition(":")[0]).expanduser()
    if not path.is_file():
        raise ValueError(
            f"{name.rpartition(':')[0]} must be a file, as in ./my_rule.py:MyRule; there is none in {path.parent}"
        )
    return path.resolve()


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _module(kind: str, name: str) -> ModuleType:
    """The file as a module, run once for each content that it has."""
    path = _path(name)
    key = path, _checksum(path)
    if key not in _loaded:
        _loaded[key] = _run(kind, path, f"fa_custom_{key[1][:16]}_{path.stem}")
    return _loaded[key]


def _run(kind: str, path: Path, module_name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None  # a file whose name ends in .py has one
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # where dataclasses look their annotations up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises is told with its place
        del sys.modules[module_name]
        raise ValueError(f"{kind} cannot be loaded: {_place(error, path)}: {type(error).__name__}: {error}") from error
    return module


def _place(error: Exception, path: Path) -> str:
    """File and line of what went wrong, the last line in the user's own file if there is one."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    return _line(error, {path}) or str(path)


def _line(error: Exception, files: set[Path]) -> str | None:
    """The last line in one of these files that an error came through, and the file; None where it came through none."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) in files]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else None
