"""fa: the Flag Aggregator and other aggregation rules, for distributed training with Byzantine workers.

Example:
    >>> import numpy as np, fa
    >>> G = np.array([[1.0, 2.0], [1.0, 4.0], [1.0, 3.0], [1.0, 3.0], [9.0, -9.0]])
    >>> fa.aggregate(G, "multi_krum", f=1)
    array([1., 3.])
"""

from typing import TYPE_CHECKING

from fa.utils.lazy import lazy_names

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

_FUNCTIONS = {"attack": "fa.attacks", "backward": "fa.autograd", "set_grad": "fa.autograd"}

# Imported on first access, so that `fa --help` does not import torch.
__getattr__, __dir__ = lazy_names(
    __name__, dict.fromkeys(__all__, "fa.rules") | _FUNCTIONS | {name: f"fa.{name}" for name in _PACKAGES}
)
