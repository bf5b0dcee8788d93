"""A Flower strategy that aggregates with a rule of this package: federated averaging, but for the average.

What goes through the rule are the clients' updates, their models less the one they were sent, since FA minds where 0
is; the new model is the old one plus the rule's direction. Clients count alike, whatever numbers of examples they name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fa.rules import Rule, make_rule

try:
    from flwr.app import Array, ArrayRecord
    from flwr.serverapp.strategy import FedAvg
except ImportError as error:  # told when a strategy is made
    FedAvg, _MISSING = object, str(error)
else:
    _MISSING = ""

_MALFORMED = "sent other records, or arrays of other names, shapes or dtypes, than it was asked for"

Update = Mapping[str, Tensor]
"""By array: of real numbers how they changed, of whole numbers (batch norm's counts) what they are."""


class Strategy(FedAvg):  # type: ignore[misc]  # a class of no type where Flower is not installed
    """Flower's FedAvg with `rule` in place of its mean: a rule, or the name of one with its defaults.

    `options` are FedAvg's. A reply that is none, or of NaN or Inf, counts as a faulty client's, and is left out.
    `left_out` says for each round which nodes were, and why. Raises ValueError where Flower is not installed, and in a
    round in which too few clients replied for the rule's f.
    """

    def __init__(self, rule: str | Rule = "fa", **options: Any) -> None:
        if _MISSING:
            raise ValueError(
                f"a Flower strategy needs flwr ({_MISSING}): pip install 'flag-aggregator[flower]' in a new environment"
            )
        super().__init__(**options)
        self.rule = make_rule(rule) if isinstance(rule, str) else rule
        self.left_out: dict[int, dict[int, str]] = {}
        self._sent: dict[str, Tensor] = {}

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        """As FedAvg does; the arrays are kept, from which the updates are counted."""
        self._sent = _tensors(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
        """The model of the next round, and the clients' metrics averaged as FedAvg does; None where nobody replied."""
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        valid.sort(key=lambda reply: reply.metadata.src_node_id)  # not as they happen to come
        nodes = [reply.metadata.src_node_id for reply in valid]
        updates = [self._update(reply.content) for reply in valid]
        whole = [reply.content for reply, update in zip(valid, updates, strict=True) if update is not None]
        if not whole:
            return None, None
        G = [self._nothing() if update is None else update for update in updates]
        result = self.rule.aggregate(G, iteration=server_round)
        left_out = {nodes[row]: reason for row, reason in result.decision.left_out.items()}
        left_out |= {node: _MALFORMED for node, update in zip(nodes, updates, strict=True) if update is None}
        self.left_out[server_round] = left_out
        for node, reason in left_out.items():
            logging.getLogger("flwr").info("\t> Left out node %d: %s", node, reason)
        return self._moved(result.direction), self.train_metrics_aggr_fn(whole, self.weighted_by_key)

    def _update(self, content: Any) -> Update | None:
        """A reply's update; None where it is not what was asked for."""
        arrays, metrics = list(content.array_records.values()), list(content.metric_records.values())
        if len(arrays) != 1 or len(metrics) != 1 or not _weighs(metrics[0].get(self.weighted_by_key)):
            return None
        theirs = _tensors(arrays[0])
        if theirs.keys() != self._sent.keys() or any(not _alike(theirs[name], self._sent[name]) for name in theirs):
            return None
        return {
            name: theirs[name] - own if own.is_floating_point() else theirs[name] for name, own in self._sent.items()
        }

    def _nothing(self) -> Update:
        """In the place of an update that is none: one that rules leave out."""
        return {
            name: torch.full_like(own, torch.nan) if own.is_floating_point() else own
            for name, own in self._sent.items()
        }

    def _moved(self, direction: Update) -> Any:
        moved = {
            name: own + direction[name] if own.is_floating_point() else direction[name]
            for name, own in self._sent.items()
        }
        return ArrayRecord({name: Array(np.asarray(tensor)) for name, tensor in moved.items()})


def _tensors(arrays: Any) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(array.numpy())) for name, array in arrays.items()}


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _weighs(weight: Any) -> bool:
    return isinstance(weight, int | float) and weight > 0
