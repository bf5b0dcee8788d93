"""A run's course for TensorBoard, written while it goes on."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from fa.training.records import faulty_share
from fa.utils.validation import check

if TYPE_CHECKING:
    from fa.training.loop import Progress


class Board:
    """Event files in a folder, to which each iteration adds: the honest workers' loss, the test accuracy where it was
    evaluated, the faulty workers' share of the weights (or of those used, where the rule weighs no whole gradient), and
    histograms of the weights and the explained variances, where the rule has them.

    A context manager; what it is called with is what `train` tells of an iteration. Events that an earlier run left
    there, of the first iteration told and later, are purged. Raises ValueError without tensorboard.
    """

    def __init__(self, folder: str | Path, byzantine: int) -> None:
        """The first `byzantine` workers are the faulty ones."""
        check_installed()
        self._folder = Path(folder)
        taken = self._folder.exists() and not self._folder.is_dir()
        check("tensorboard", str(folder), not taken, "a folder, which is made where there is none")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._byzantine = byzantine
        self._writer: Any = None

    def __enter__(self) -> Board:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()

    def __call__(self, progress: Progress) -> None:
        """Add what an iteration has come to."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=progress.iteration)
        step, rows = progress.iteration, progress.workers
        self._writer.add_scalar("loss/honest workers", float(progress.loss), step)
        if progress.evaluated:
            self._writer.add_scalar("accuracy/test", progress.accuracy, step)
        weights = _numbers([row.weight for row in rows])
        name = "of the weights" if weights.size else "of the workers used"
        self._writer.add_scalar(f"faulty workers/{name}", faulty_share(rows, self._byzantine), step)
        for what, numbers in (("weights", weights), ("values", _numbers([row.value for row in rows]))):
            if numbers.size:
                self._writer.add_histogram(f"workers/{what}", numbers, step)


def check_installed() -> None:
    """Raise ValueError, with the command that installs it, where there is no tensorboard."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError("tensorboard must be installed to log to it: pip install 'flag-aggregator[tensorboard]'")


def _numbers(given: Sequence[float | None]) -> np.ndarray:
    return np.array([number for number in given if number is not None])
