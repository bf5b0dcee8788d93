"""Run a notebook's cells in this process: without the seconds that a kernel takes to import everything again."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib import pyplot


class _Shell(InteractiveShell):
    """A shell without an event loop of a user interface."""

    def enable_gui(self, gui: str | None = None) -> None:
        """Do nothing."""


def run_cells(path: Path, **parameters: Any) -> int:
    """Run the cells, with the parameters in a cell of their own as papermill has them, and print their results.

    Args:
        path: The notebook.
        **parameters: Values of its parameters; those that it does not have are ignored.

    Returns:
        The number of pictures that a kernel would display.
    """
    shell = _Shell.instance(user_module=ModuleType("notebook_cells"))
    shell.display_formatter.active_types = shell.display_formatter.format_types
    values, displayed = {"interactive": False} | parameters, 0
    texts: list[str] = []
    try:
        with chdir(path.parent), capture_output() as captured:
            for cell in nbformat.read(path, as_version=4).cells:
                if cell.cell_type == "code":
                    result = shell.run_cell(cell.source, store_history=True)
                    result.raise_error()
                    formats = shell.display_formatter.format(result.result)[0]
                    displayed += "image/png" in formats
                    texts.append(str(formats.get("text/html", formats.get("text/plain", ""))))
                if "parameters" in cell.metadata.get("tags", ()):
                    lines = [f"{name} = {value!r}" for name, value in values.items() if name in shell.user_ns]
                    shell.run_cell("\n".join(["# Parameters", *lines]), store_history=True).raise_error()
                displayed += len(pyplot.get_fignums())
                pyplot.close("all")
    finally:
        _Shell.clear_instance()
    print(captured.stdout, *texts, sep="\n")
    return displayed + sum("image/png" in (output.data or {}) for output in captured.outputs)
