"""Training with p workers, some of them Byzantine: one loop over a transport that gathers the gradients."""

from typing import TYPE_CHECKING

from fa.training.config import RECORD_VERSION, TrainConfig
from fa.training.records import CurvePoint, Run, WorkerRow
from fa.utils.lazy import lazy_names

if TYPE_CHECKING:
    from fa.training import ddp
    from fa.training.loop import Progress, train

__all__ = ["RECORD_VERSION", "CurvePoint", "Progress", "Run", "TrainConfig", "WorkerRow", "ddp", "train"]

# Imported on first access: configurations and records need no models.
__getattr__, __dir__ = lazy_names(
    __name__, {"Progress": "fa.training.loop", "train": "fa.training.loop", "ddp": "fa.training.ddp"}
)
