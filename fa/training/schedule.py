"""Schedule of a run: its epochs, the steps of its learning rate, and its evaluations, in iterations."""

from __future__ import annotations

from typing import NamedTuple

from fa.training.config import TrainConfig

DECAY_EPOCHS = 10
"""Default of the epochs between two steps of the learning rate, as in the released code."""

LEAST_DECAY_ITERATIONS = 260
"""Default of the least number of iterations between two steps of the learning rate.

It is 10 epochs of CIFAR-10 with the paper's 15 workers and batches of 128. On the embedded digits 10 epochs are 50
iterations, after which the rate would be too small before the model has learned.
"""

LEAST_POINTS = 10
"""Default of the least number of test accuracies in a run, so that a run of less than ten epochs gives a curve."""


class Schedule(NamedTuple):
    """The schedule of a run on one data set."""

    epoch: int  # iterations of an epoch
    decay_epochs: int  # epochs between two steps of the learning rate
    evaluate_every: int  # iterations between two test accuracies

    @property
    def decay_every(self) -> int:
        """Iterations between two steps of the learning rate."""
        return self.epoch * self.decay_epochs


def schedule(config: TrainConfig, train_size: int) -> Schedule:
    """Compute the schedule of a run, with the defaults of settings that are None.

    Args:
        config: The run's configuration.
        train_size: Number of training images of the data set, without those held out.

    Returns:
        The schedule.

    Example:
        >>> schedule(TrainConfig(), train_size=10_000)
        Schedule(epoch=5, decay_epochs=52, evaluate_every=5)
    """
    epoch = config.epoch_length(train_size)
    decay_epochs = config.lr_decay_epochs
    if decay_epochs is None:
        decay_epochs = max(DECAY_EPOCHS, -(-LEAST_DECAY_ITERATIONS // epoch))
    evaluate_every = config.evaluate_every
    if evaluate_every is None:
        evaluate_every = min(epoch, max(1, config.iterations // LEAST_POINTS))
    return Schedule(epoch, decay_epochs, evaluate_every or epoch)
