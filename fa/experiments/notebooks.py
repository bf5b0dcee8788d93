"""The figures' notebooks: which there are, and executing one by papermill."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fa.experiments.paths import project


def find(names: Sequence[str] = ()) -> list[Path]:
    """The notebooks of these figures, named shortly (fig02) or wholly; of all figures if none is named.

    Raises ValueError for a name that no notebook has.
    """
    paths = sorted((project() / "notebooks").glob("fig*.ipynb"))
    for name in names:
        if not any(_is_named(path, name) for path in paths):
            raise ValueError(f"figure must be one of {', '.join(path.stem for path in paths)}; it is {name!r}")
    return [path for path in paths if not names or any(_is_named(path, name) for name in names)]


def _is_named(path: Path, name: str) -> bool:
    return name in (path.stem, path.stem.split("_")[0])


def execute(path: Path, target: Path, **parameters: Any) -> Path:
    """Execute a notebook with these parameters into `target`/notebooks and return the copy with its outputs.

    What its cells print is shown as it comes. Raises ValueError with the cell's error where one fails; the copy shows
    how far it came.
    """
    import papermill

    executed = target / "notebooks" / path.name
    executed.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            path,
            executed,
            parameters=parameters,
            cwd=path.parent,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            extra_arguments=["--log-level=CRITICAL"],  # the kernel's own remarks, not the cells'
        )
    except papermill.PapermillExecutionError as error:
        raise ValueError(f"{path.name} failed with {error.ename}: {error.evalue} (see {executed})") from error
    return executed
