"""Directives of the API reference."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

INTERNAL = {"fa.bench", "fa.cli", "fa.kernels", "fa.utils"}
"""Packages that are not public (ARCHITECTURE.md)."""


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("package", _Package)
    app.add_directive("public-modules", _PublicModules)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def public_packages() -> list[str]:
    """Return the public modules and packages in the root of fa."""
    fa = importlib.import_module("fa")
    return [module.name for module in pkgutil.iter_modules(fa.__path__, "fa.") if module.name not in INTERNAL]


def submodules(name: str) -> Iterator[str]:
    """Yield the modules below a package that are not private, each after its parent."""
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{name}."):
        if "._" not in module.name:
            yield module.name


class _Package(SphinxDirective):
    """Document a package and, without the option `alone`, all modules below it."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"alone": directives.flag}

    def run(self) -> list[nodes.Node]:
        (name,) = self.arguments
        text = _automodule(name)
        for module in () if "alone" in self.options else submodules(name):
            text += f"{module}\n{'-' * len(module)}\n\n{_automodule(module)}"
        return self.parse_text_to_nodes(text, allow_section_headings=True)


class _PublicModules(SphinxDirective):
    """List the public modules, with the first paragraph of each docstring."""

    def run(self) -> list[nodes.Node]:
        text = ".. list-table::\n\n"
        for name in ("fa", *public_packages()):
            summary = (importlib.import_module(name).__doc__ or "").partition("\n\n")[0]
            text += f"   * - :py:mod:`{name}`\n     - {' '.join(summary.split())}\n"
        return self.parse_text_to_nodes(text)


def _automodule(name: str) -> str:
    """Return the directives for one module: its docstring, the names that it imports for its users, its definitions."""
    module = importlib.import_module(name)
    options = "".join(f"   :{option}:\n" for option in ("members", "ignore-module-all", "show-inheritance"))
    text = f".. automodule:: {name}\n{options}\n"
    things = [getattr(module, public) for public in getattr(module, "__all__", ())]
    defined = [thing for thing in things if inspect.isclass(thing) or inspect.isroutine(thing)]
    elsewhere = "".join(
        f"   ~{thing.__module__}.{thing.__qualname__}\n" for thing in defined if thing.__module__ != name
    )
    if elsewhere:
        text += f"Import from ``{name}``:\n\n.. autosummary::\n   :nosignatures:\n\n{elsewhere}\n"
    return text
