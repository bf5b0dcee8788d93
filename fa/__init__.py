"""fa: the Flag Aggregator and the rules it is compared with, for distributed training with faulty workers."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fa import irls
    from fa.rules import RULES, Aggregate, Decision, Rule, aggregate, make_rule

__version__ = "0.2.0"

__all__ = ["RULES", "Aggregate", "Decision", "Rule", "aggregate", "irls", "make_rule"]

_ROOMS = (
    "attacks",
    "augment",
    "data",
    "experiments",
    "flags",
    "gradients",
    "interop",
    "irls",
    "layers",
    "models",
    "objective",
    "rules",
    "sdp",
    "sharded",
    "theory",
    "training",
)


def __getattr__(name: str) -> Any:
    """What is named, when it is first used, so that the command line need not wait for torch to print its help."""
    if name in _ROOMS:
        return importlib.import_module(f"fa.{name}")
    if name in __all__:
        return getattr(importlib.import_module("fa.rules"), name)
    raise AttributeError(f"module 'fa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS, "__version__"})
