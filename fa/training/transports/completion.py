"""Completion of an iteration's gradients: exclusions, the attack, and the mean loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fa.attacks import Attack
from fa.training.config import TrainConfig
from fa.utils.validation import TooFewWorkersError


class Completed(NamedTuple):
    """What `complete` determines beside G."""

    loss: Tensor  # scalar: the mean over the honest workers that are not excluded
    missing: dict[int, str]  # reason for each rank that is excluded


def complete(
    G: Tensor,
    attack: Attack,
    config: TrainConfig,
    iteration: int,
    losses: Mapping[int, Tensor],
    missing: Mapping[int, str],
) -> Completed:
    """Write the attack and the missing rows into G.

    A worker whose loss alone is not finite is missing too. If no loss is finite, the model has diverged.

    Args:
        G: Gradients (p, n).
        attack: The run's attack.
        config: The run's configuration.
        iteration: Iteration, from 0.
        losses: Scalar loss of each rank with a gradient.
        missing: Reason for each rank without a gradient.

    Raises:
        TooFewWorkersError: No honest worker has a gradient.
    """
    honest = {rank: loss for rank, loss in losses.items() if rank >= config.byzantine}
    missing = {**missing, **_without_finite_loss(honest)}
    rows = sorted(honest.keys() - missing)
    if not rows:
        reasons = "; ".join(f"worker {rank}: {reason}" for rank, reason in missing.items())
        raise TooFewWorkersError(f"iteration {iteration + 1}: no honest worker is left ({reasons})")
    absent = list(missing)
    if absent and config.byzantine:  # the attack reads all honest rows: missing ones are the others' mean
        G[absent] = G[rows].mean(dim=0)
    attack.apply(G, range(config.byzantine), config.seed, iteration)
    if absent:
        G[absent] = torch.nan
    return Completed(torch.stack([honest[rank] for rank in rows]).mean(), missing)


def _without_finite_loss(losses: Mapping[int, Tensor]) -> dict[int, str]:
    """Return a reason for each rank whose loss is not finite, if others have a finite loss."""
    if not losses:
        return {}
    finite = torch.stack(list(losses.values())).isfinite().tolist()  # waits for a GPU once
    if not any(finite):
        return {}
    return {
        rank: f"sent a loss of {float(loss)}"
        for (rank, loss), good in zip(losses.items(), finite, strict=True)
        if not good
    }
