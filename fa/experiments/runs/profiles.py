"""The four sizes at which every experiment runs, as data: settings that all figures of a profile share.

Sources: the paper, section 3.1, and the authors' released code where the paper is silent: momentum, weight decay,
learning rate, schedule, seeds, how workers pass through their slices of the data, and that the Byzantine workers of the
profile paper send one and the same random vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fa.utils.validation import check_one_of

_EMBEDDED = {"dataset": "mnist-mini", "model": "convnet", "sampling": "random", "momentum": 0.9}
_CIFAR = {"dataset": "cifar10", "model": "resnet18", "sampling": "cycled", "momentum": 0.9, "layers": "fast"}

PROFILES = MappingProxyType(
    {
        # Every line of code, no result: a few iterations.
        "smoke": {**_EMBEDDED, "batch": 8, "iterations": 4, "lr": 0.05, "seeds": (2021,)},
        # Every rule and every f on a small problem, at one rate for all. At the paper's 0.2, with f = 3, five of six
        # rules end lower after 80 iterations: FA .77 for .85, Bulyan .83 for .89, Multi-Krum .90 for .93, Median .43
        # for .64, Trimmed Mean .36 for .62; only MeaMed does not (.92 for .91). An epoch is 20 iterations, so a curve
        # has three points.
        "quick": {**_EMBEDDED, "batch": 32, "iterations": 60, "lr": 0.05, "seeds": (2021,)},
        # The paper's model and data, with steps so few and small that a processor can do them: half an epoch. At the
        # paper's rate and momentum so short a run ends at .21 to .26 where it ends at .39 at .05 (Multi-Krum, B = 32,
        # 150 iterations).
        "cpu": {**_CIFAR, "batch": 16, "iterations": 100, "lr": 0.05, "evaluate_every": 25, "seeds": (2021,)},
        # The paper's settings, and the released code's where the paper is silent.
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
"""The least margin: accuracies closer than this are equal. docs/claims.md says how the margins were measured."""

MARGINS = MappingProxyType({"smoke": MARGIN, "quick": MARGIN, "cpu": MARGIN, "paper": 0.04})
"""The margin by profile: twice the standard deviation of the final accuracy over repetitions, and at least MARGIN."""


def settings(profile: str, **given: Any) -> dict[str, Any]:
    """The settings of a profile, with those that are given (not None) in their place."""
    check_one_of("profile", profile, tuple(PROFILES))
    return PROFILES[profile] | {name: value for name, value in given.items() if value is not None}


def sized(sizes: Mapping[str, Any], profile: str) -> Any:
    """A notebook's own numbers for a profile, of those that it has; ValueError for one that it has not."""
    check_one_of("profile", profile, tuple(sizes))
    return sizes[profile]
