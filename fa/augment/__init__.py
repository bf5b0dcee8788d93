"""Nonlinear augmentation of images, the paper's second threat: images warped by flows and maps, and noise.

`fa.augment.flows` and `fa.augment.maps` define the dynamical systems.
"""

from fa.augment.flows import SYSTEMS, flow
from fa.augment.images import add_noise, warp
from fa.augment.maps import MOVES, cat_period, source
from fa.utils.lazy import lazy_modules

__all__ = ["MOVES", "SYSTEMS", "add_noise", "cat_period", "flow", "source", "warp"]

__getattr__, __dir__ = lazy_modules(__name__, ("recipes",))
