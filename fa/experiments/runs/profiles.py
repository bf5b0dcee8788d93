"""Profiles: the four sizes of every experiment, as settings that all figures of a profile share.

The source is section 3.1 of the paper. Where it is silent, the authors' released code gives momentum, weight decay,
learning rate, schedule, seeds and the order of a worker's data. There all Byzantine workers send the same random
vector, as in the profile paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fa.utils.validation import check_one_of

SCHEDULE = MappingProxyType({"lr_decay_epochs": 10, "evaluate_every": 0})
"""The released code's schedule, which does not depend on the data set's size: ten epochs, and an accuracy each."""

_EMBEDDED = {"dataset": "mnist-mini", "model": "convnet", "sampling": "random", "momentum": 0.9, **SCHEDULE}
_CIFAR = {
    **SCHEDULE,
    "dataset": "cifar10",
    "model": "resnet18",
    "sampling": "cycled",
    "momentum": 0.9,
    "layers": "fast",
}

PROFILES = MappingProxyType(
    {
        # A few iterations, to execute every line; no result.
        "smoke": {**_EMBEDDED, "batch": 8, "iterations": 4, "lr": 0.05, "seeds": (2021,)},
        # Every rule and every f on a small problem, at one learning rate. At the paper's 0.2, five of six rules end
        # lower after 80 iterations (f = 3): FA 0.77 (at 0.05: 0.85), Bulyan 0.83 (0.89), Multi-Krum 0.90 (0.93),
        # Median 0.43 (0.64), Trimmed Mean 0.36 (0.62).
        "quick": {**_EMBEDDED, "batch": 32, "iterations": 60, "lr": 0.05, "evaluate_every": 5, "seeds": (2021,)},
        # The paper's model and data, with few and small minibatches for a processor: half an epoch. At the paper's
        # learning rate so short a run ends at 0.21 to 0.26 (at 0.05: 0.39; Multi-Krum, B = 32, 150 iterations).
        "cpu": {**_CIFAR, "batch": 16, "iterations": 100, "lr": 0.05, "evaluate_every": 25, "seeds": (2021,)},
        # The paper's settings.
        "paper": {
            **_CIFAR,
            "sampling": "sequential",
            "attack": "random_shared",
            "batch": 128,
            "iterations": 1050,
            "lr": 0.2,
            "seeds": (2021, 2022, 2023),
        },
    }
)


MARGIN = 0.02
"""The least margin: accuracies closer than this are equal. docs/claims.md describes how margins are measured."""

MARGINS = MappingProxyType({"smoke": MARGIN, "quick": 0.024, "cpu": 0.038, "paper": 0.085})
"""The margin by profile, as docs/claims.md has it under "Noise"."""


def profile_settings(profile: str, **overrides: Any) -> dict[str, Any]:
    """Return the settings of a profile.

    Args:
        profile: A key of `PROFILES`: "smoke", "quick", "cpu" or "paper".
        **overrides: Settings that replace the profile's or are added, unless they are None.

    Returns:
        Settings by name, which are fields of `TrainConfig`, and "seeds".

    Raises:
        ValueError: Unknown profile.

    Example:
        >>> settings = profile_settings("quick", lr=0.1, batch=None)
        >>> settings["lr"], settings["batch"]
        (0.1, 32)
    """
    check_one_of("profile", profile, tuple(PROFILES))
    return PROFILES[profile] | {name: value for name, value in overrides.items() if value is not None}


def for_profile(sizes: Mapping[str, Any], profile: str) -> Any:
    """Return the entry of a profile.

    Args:
        sizes: Entries by profile.
        profile: Name of the profile.

    Raises:
        ValueError: Unknown profile.
    """
    check_one_of("profile", profile, tuple(sizes))
    return sizes[profile]
