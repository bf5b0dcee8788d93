"""fa: the Flag Aggregator and other aggregation rules, for distributed training with Byzantine workers.

Example:
    >>> import numpy as np, fa
    >>> G = np.array([[1.0, 2.0], [1.0, 4.0], [1.0, 3.0], [1.0, 3.0], [9.0, -9.0]])
    >>> fa.aggregate(G, "multi_krum", f=1)
    array([1., 3.])
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fa import irls
    from fa.attacks import attack
    from fa.autograd import backward, set_grad
    from fa.rules import RULES, Aggregate, Decision, Rule, aggregate, make_rule

__version__ = "0.2.0"

__all__ = [
    "RULES",
    "Aggregate",
    "Decision",
    "Rule",
    "aggregate",
    "attack",
    "backward",
    "irls",
    "make_rule",
    "set_grad",
]

_PACKAGES = (
    "attacks",
    "augment",
    "autograd",
    "data",
    "experiments",
    "flags",
    "gradients",
    "interop",
    "irls",
    "layers",
    "likelihood",
    "models",
    "objective",
    "rules",
    "sdp",
    "sharded",
    "theory",
    "training",
)

_MODULE_OF = {"attack": "fa.attacks", "backward": "fa.autograd", "set_grad": "fa.autograd"}
"""Modules of the public functions that are not in fa.rules."""


def __getattr__(name: str) -> Any:
    """Import public names on first access, so that `fa --help` does not import torch."""
    if name in _PACKAGES:
        return importlib.import_module(f"fa.{name}")
    if name in __all__:
        return getattr(importlib.import_module(_MODULE_OF.get(name, "fa.rules")), name)
    raise AttributeError(f"module 'fa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_PACKAGES, "__version__"})
