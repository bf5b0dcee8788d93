"""Names of a package that are imported on first access."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package, some names of which are imported on first access.

    Args:
        package: Name of the package.
        modules: The module of each name. A name whose module is PACKAGE.NAME is that module itself.

    Returns:
        A function that returns the value of a name, and raises AttributeError for an unknown one. A function that
        returns the public names of the package, sorted.
    """

    def getattr_of_package(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(modules[name])
        return module if modules[name] == f"{package}.{name}" else getattr(module, name)

    def dir_of_package() -> list[str]:
        module = sys.modules[package]
        return sorted({*modules, *getattr(module, "__all__", ()), *(name for name in vars(module) if name[:2] == "__")})

    return getattr_of_package, dir_of_package


def lazy_modules(package: str, names: tuple[str, ...]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package whose modules are imported on first access.

    Args:
        package: Name of the package.
        names: Names of the modules.

    Returns:
        As for `lazy_names`.
    """
    return lazy_names(package, {name: f"{package}.{name}" for name in names})
