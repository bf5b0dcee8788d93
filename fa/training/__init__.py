"""Training with p workers, some of them faulty: one loop over a transport that hands it the gradients."""

from fa.training.config import RECORD_VERSION, TrainConfig

__all__ = ["RECORD_VERSION", "TrainConfig"]
