"""Rules and attacks from outside this package: a user's file, a supported library, or an installed package.

Three kinds of names lead to them:

- "FILE.py:NAME": NAME is defined in that file.
- "LIBRARY:NAME": a module of `fa.interop` wraps that library's NAME.
- a plain name: an entry point in the group "fa.rules" or "fa.attacks".
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from fa.utils.files import expand_user, file_checksum
from fa.utils.validation import TooFewWorkersError

LIBRARIES = ("byzfl",)
"""Libraries whose rules and attacks `fa.interop` wraps."""

OTHER_SPECS = "or FILE.py:NAME for one of your own, or byzfl:NAME"
"""Description of plugin names, as the end of a list of built-in names."""

_PREFIX = "fa_custom_"  # of the names of users' modules

_loaded: dict[tuple[Path, str], ModuleType] = {}


def is_file_spec(name: str) -> bool:
    """Return True if a name has the form FILE.py:NAME.

    Args:
        name: Name of a rule or attack.

    Returns:
        True for FILE.py:NAME, whether or not the file exists.
    """
    return ".py:" in name


def is_library_spec(name: str) -> bool:
    """Return True if a name has the form LIBRARY:NAME, with a library in `LIBRARIES`.

    Args:
        name: Name of a rule or attack.

    Returns:
        True for LIBRARY:NAME, whether or not the library is installed.
    """
    library, _, attribute = name.partition(":")
    return library in LIBRARIES and attribute != ""


def resolve_spec(name: str) -> str:
    """Return FILE.py:NAME with the file's absolute path, and any other name unchanged.

    Args:
        name: Name of a rule or attack.

    Returns:
        The name.

    Raises:
        ValueError: The file does not exist.
    """
    return f"{_path(name)}:{name.rpartition(':')[2]}" if is_file_spec(name) else name


def display_name(name: str, options: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Return the name for a title: "NAME (FILE.py)" if it is in a file, with the options in parentheses.

    Args:
        name: Name of a rule or attack.
        options: Its options by name.

    Returns:
        The name for a title.

    Example:
        >>> from fa.utils.plugins import display_name
        >>> display_name("rules/my_rule.py:MyRule")
        'MyRule (my_rule.py)'
        >>> display_name("fa", {"m": 8, "preaggregators": ("krum", "unit")})
        'fa (m = 8, preaggregators = krum unit)'
    """
    path, _, attribute = name.rpartition(":")
    title = f"{attribute} ({Path(path).name})" if is_file_spec(name) else name
    text = ", ".join(f"{option} = {_display_value(value)}" for option, value in options.items())
    return f"{title} ({text})" if text else title


def _display_value(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def files_and_packages(names: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the files and packages that a rule and an attack come from, as a part of a run's identity.

    Args:
        names: Names by kind, "rule" and "attack", without those of this package.

    Returns:
        A dictionary with "files", the SHA-256 of each name's file, and "packages", the package and version of each
        name. An entry without names is omitted.

    Raises:
        ValueError: A file does not exist.
    """
    files = {name: file_checksum(_path(name)) for name in names.values() if is_file_spec(name)}
    packages = {name: package for kind, name in names.items() if (package := _package(kind, name))}
    return {part: content for part, content in (("files", files), ("packages", packages)) if content}


def _package(kind: str, name: str) -> str:
    """Return the package and the version that provide a rule or attack; empty for files and names of this package."""
    if is_library_spec(name):
        library = name.partition(":")[0]
        try:
            return f"{library} {version(library)}"
        except PackageNotFoundError:
            return library
    point = None if is_file_spec(name) else _entry_point(kind, name)
    return "" if point is None or point.dist is None else f"{point.dist.name} {point.dist.version}"


def _entry_point(kind: str, name: str) -> EntryPoint | None:
    """Return the first entry point with this name in the group "fa.rules" or "fa.attacks", or None."""
    return next(iter(entry_points(group=f"fa.{kind}s", name=name)), None)


def load(kind: str, name: str) -> Any:
    """Load a rule or an attack from outside this package.

    Args:
        kind: "rule" or "attack".
        name: FILE.py:NAME, LIBRARY:NAME, or the name of an entry point in the group "fa.rules" or "fa.attacks".

    Returns:
        The object, or None for a plain name that is not an entry point.

    Raises:
        ValueError: The file cannot be read or run, or does not define NAME. The message has the file and the line.
    """
    if is_library_spec(name):
        library, _, attribute = name.partition(":")
        return getattr(importlib.import_module(f"fa.interop.{library}"), kind)(attribute)
    if not is_file_spec(name):
        point = _entry_point(kind, name)
        return None if point is None else point.load()
    attribute = name.rpartition(":")[2]
    module = _module(kind, name)
    if not hasattr(module, attribute):
        defined = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        names = ", ".join(defined) or "nothing"
        raise ValueError(
            f"{kind} must be the name of a definition in {_path(name)}, got {attribute!r}. The file defines {names}"
        )
    return getattr(module, attribute)


@contextmanager
def attribute_errors_to_plugin(kind: str) -> Iterator[None]:
    """Turn an error that a user's file raises within the block into a ValueError with the file and the line.

    Errors of other origin pass unchanged.

    Args:
        kind: "rule" or "attack".
    """
    try:
        yield
    except TooFewWorkersError:
        raise
    except Exception as error:
        place = _last_line(error, {path for path, _ in _loaded})
        if place is None:
            raise
        raise ValueError(f"{kind} failed: {place}: {type(error).__name__}: {error}") from error


def file_spec(defined: type) -> str | None:
    """Return FILE.py:NAME of a class that a user's file defines, and None for any other.

    Args:
        defined: The class.
    """
    if not defined.__module__.startswith(_PREFIX):
        return None
    module = sys.modules[defined.__module__]
    names = [name for name, value in vars(module).items() if value is defined]  # A function may have made the class.
    return f"{module.__file__}:{names[0] if names else defined.__qualname__}"


def _path(name: str) -> Path:
    """Return the absolute path in FILE.py:NAME; raise ValueError if it is not a file."""
    path = expand_user("the file of a rule or attack", name.rpartition(":")[0])
    if not path.is_file():
        raise ValueError(
            f"{name.rpartition(':')[0]} must be a file, as in ./my_rule.py:MyRule. {path.parent} does not have it"
        )
    return path.resolve()


def _module(kind: str, name: str) -> ModuleType:
    """Return the file as a module, run once for each content of the file."""
    path = _path(name)
    key = path, file_checksum(path)
    if key not in _loaded:
        _loaded[key] = _run(kind, path, f"{_PREFIX}{key[1][:16]}_{path.stem}")
    return _loaded[key]


def _run(kind: str, path: Path, module_name: str) -> ModuleType:
    """Run the file as a module."""
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None  # It exists for every name that ends in .py.
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # Dataclasses resolve their annotations in sys.modules.
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # The user's file may raise an error of any type.
        del sys.modules[module_name]
        raise ValueError(f"{kind} cannot be loaded: {_place(error, path)}: {type(error).__name__}: {error}") from error
    return module


def _place(error: BaseException, path: Path) -> str:
    """Return the file and line of an error, by preference the last line in the user's file."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    return _last_line(error, {path}) or str(path)


def _last_line(error: BaseException, files: set[Path]) -> str | None:
    """Return the last line of these files that an error passed through, with its file, or None."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) in files]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else None
