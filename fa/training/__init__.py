"""Training with p workers, some of them Byzantine: one loop over a transport that gathers the gradients."""

import importlib
from typing import TYPE_CHECKING, Any

from fa.training.config import RECORD_VERSION, TrainConfig
from fa.training.records import CurvePoint, Run, WorkerRow

if TYPE_CHECKING:
    from fa.training import ddp
    from fa.training.loop import Progress, train

__all__ = ["RECORD_VERSION", "CurvePoint", "Progress", "Run", "TrainConfig", "WorkerRow", "ddp", "train"]


def __getattr__(name: str) -> Any:
    """Import `train`, `Progress` and `ddp` on first access: configurations and records need no models."""
    if name == "ddp":
        return importlib.import_module("fa.training.ddp")
    if name not in ("Progress", "train"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fa.training import loop

    return getattr(loop, name)
