"""TensorBoard events of a run, written after each iteration."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from fa.training.records import byzantine_share
from fa.utils.validation import check

if TYPE_CHECKING:
    from fa.training.loop import Progress


class TensorBoardLogger:
    """Context manager that writes event files; an instance is a `progress` callback of `train`.

    Each iteration adds the honest workers' loss, `byzantine_share`, and histograms of the weights and explained
    variances that the rule defines. Evaluations add the test accuracy. Events of an earlier run are purged from the
    first logged iteration on.
    """

    def __init__(self, folder: str | Path, byzantine: int, report: Callable[[str], None] = warnings.warn) -> None:
        """Create the folder, if needed.

        Args:
            folder: Folder of the event files.
            byzantine: Number of Byzantine workers: the first ranks.
            report: Function for a message if the folder cannot be written; default: a warning. The run then goes on
                without a log.

        Raises:
            ValueError: `folder` is a file, or tensorboard is not installed.
        """
        check_installed()
        self._folder = Path(folder)
        is_file = self._folder.exists() and not self._folder.is_dir()
        check("tensorboard", str(folder), not is_file, "a folder, which may be new")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._byzantine = byzantine
        self._report = report
        self._failed = False
        self._writer: Any = None

    def __enter__(self) -> TensorBoardLogger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._writer is not None and not self._failed:
            self._try(self._writer.close)

    def __call__(self, progress: Progress) -> None:
        """Log an iteration."""
        if not self._failed:
            self._try(lambda: self._log(progress))

    def _try(self, write: Callable[[], object]) -> None:
        """Write, or report once that the disk fails."""
        try:
            write()
        except OSError as error:
            self._failed = True
            self._report(f"tensorboard: {self._folder} cannot be written: {error.strerror or error}; no more is logged")

    def _log(self, progress: Progress) -> None:
        """Write an iteration's events."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=progress.iteration)
        step, rows = progress.iteration, progress.workers
        self._writer.add_scalar("loss/honest workers", float(progress.loss), step)
        if progress.evaluated:
            self._writer.add_scalar("accuracy/test", progress.accuracy, step)
        weights = _defined([row.weight for row in rows])
        name = "of the weights" if weights.size else "of the workers used"
        self._writer.add_scalar(f"Byzantine workers/{name}", byzantine_share(rows, self._byzantine), step)
        for tag, values in (("weights", weights), ("values", _defined([row.value for row in rows]))):
            if values.size:
                self._writer.add_histogram(f"workers/{tag}", values, step)


def check_installed() -> None:
    """Raise ValueError, with the command that installs it, if tensorboard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError("tensorboard must be installed to log to it: pip install 'flag-aggregator[tensorboard]'")


def _defined(values: Sequence[float | None]) -> np.ndarray:
    return np.array([value for value in values if value is not None])
