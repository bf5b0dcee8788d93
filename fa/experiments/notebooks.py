"""The notebooks of figures and theory: which there are, and executing one by papermill."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fa.experiments import named
from fa.experiments.paths import project


def find(names: Sequence[str] = ()) -> list[Path]:
    """The notebooks of these names: whole (fig02_mean_tolerance), short (fig02), or of a family (fig, extra, supp,
    theory, augmentation); of all figures if none is named. Raises ValueError for a name that no notebook has.
    """
    paths = {path.stem: path for path in sorted((project() / "notebooks").glob("*.ipynb"))}
    return [paths[stem] for stem in named(names or ("fig",), list(paths))]


def execute(path: Path, target: Path, **parameters: Any) -> Path:
    """Execute a notebook with those of these parameters that it has, into `target`/notebooks; return the copy with its
    outputs. One that has the parameter `interactive` is told that nobody is there.

    What its cells print is shown as it comes. Raises ValueError with the cell's error where one fails; the copy shows
    how far it came.
    """
    import papermill

    executed = target / "notebooks" / path.name
    parameters = {"interactive": False} | parameters
    known = papermill.inspect_notebook(path)
    executed.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            path,
            executed,
            parameters={name: value for name, value in parameters.items() if name in known},
            cwd=path.parent,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            extra_arguments=["--log-level=CRITICAL"],  # the kernel's own remarks, not the cells'
        )
    except papermill.PapermillExecutionError as error:
        raise ValueError(f"{path.name} failed with {error.ename}: {error.evalue} (see {executed})") from error
    except OSError as error:
        raise ValueError(f"{path.name} could not be executed into {executed}: {error.strerror or error}") from error
    return executed
