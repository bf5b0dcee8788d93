"""Modules of a package that are imported on first access."""

import importlib
from collections.abc import Callable
from types import ModuleType


def lazy_modules(package: str, names: tuple[str, ...]) -> Callable[[str], ModuleType]:
    """Return the `__getattr__` of a package whose modules are imported on first access.

    Args:
        package: Name of the package.
        names: Names of the modules.

    Returns:
        A function that imports one of them, and raises AttributeError for another name.
    """

    def getattr_of_package(name: str) -> ModuleType:
        if name in names:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return getattr_of_package
