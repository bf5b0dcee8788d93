"""Nonlinear augmentation of images, the paper's second threat: images warped by flows and maps, and noise.

`fa.augment.flows` and `fa.augment.maps` define the dynamical systems.
"""

import importlib
from typing import Any

from fa.augment.flows import SYSTEMS, flow
from fa.augment.images import add_noise, warp
from fa.augment.maps import MOVES, cat_period, source

__all__ = ["MOVES", "SYSTEMS", "add_noise", "cat_period", "flow", "source", "warp"]

_MODULES = ("recipes",)


def __getattr__(name: str) -> Any:
    """Import a module of this package on first access."""
    if name in _MODULES:
        return importlib.import_module(f"fa.augment.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
