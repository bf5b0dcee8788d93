"""Run a notebook's cells in this process: without the seconds that a kernel takes to import everything again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import RichOutput, capture_output


class _Shell(InteractiveShell):
    """A shell without an event loop of a user interface."""

    def enable_gui(self, gui: str | None = None) -> None:
        """Do nothing."""


@contextmanager
def _pictures_inline(shell: InteractiveShell) -> Iterator[None]:
    """Display open figures after each cell, as in a kernel; then remove the shell."""
    backend = matplotlib.get_backend()
    shell.enable_matplotlib("inline")
    try:
        yield
    finally:
        matplotlib.pyplot.close("all")
        matplotlib.use(backend)
        _Shell.clear_instance()


def run_cells(path: Path, **parameters: Any) -> list[RichOutput]:
    """Run the cells, with the parameters in a cell of their own as papermill has them.

    Args:
        path: The notebook.
        **parameters: Values of its parameters; those that it does not have are ignored.

    Returns:
        The outputs that the cells display.
    """
    shell = _Shell.instance(user_module=ModuleType("notebook_cells"))
    values = {"interactive": False} | parameters
    with chdir(path.parent), _pictures_inline(shell), capture_output() as captured:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                shell.run_cell(cell.source, store_history=True).raise_error()
            if "parameters" in cell.metadata.get("tags", ()):
                lines = [f"{name} = {value!r}" for name, value in values.items() if name in shell.user_ns]
                shell.run_cell("\n".join(["# Parameters", *lines]), store_history=True).raise_error()
    return list(captured.outputs)


def pictures(outputs: list[RichOutput]) -> int:
    """Count the pictures among outputs."""
    return sum("image/png" in (output.data or {}) for output in outputs)
