"""A Flower strategy that aggregates with a rule of this package instead of federated averaging's mean.

The rule aggregates the clients' updates, which are their models minus the model that the server distributed. The
models themselves are unsuitable, since FA depends on the position of 0. The new model is the old one plus the
rule's direction. All clients have equal weight, whatever their numbers of examples.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fa.gradients.inputs import lower_median
from fa.rules import Rule, as_rule, per_worker

try:
    from flwr.app import Array, ArrayRecord
    from flwr.serverapp.strategy import FedAvg
except ImportError as error:  # The constructor of Strategy reports it.
    FedAvg, _MISSING = object, str(error)
else:
    _MISSING = ""

_MALFORMED = (
    "sent damaged arrays, other records, or arrays of other names, shapes or dtypes, than it was asked for, or metrics"
    " of NaN or Inf"
)

Update = Mapping[str, Tensor]
"""A client's update by array: the change of a floating-point one, the value of an integer one (batch norm's counts)."""


class Strategy(FedAvg):  # type: ignore[misc]  # Untyped if Flower is missing.
    """Flower's FedAvg with a robust rule instead of its mean.

    A malformed reply, or one with NaN or Inf, counts as that of a Byzantine client and is excluded.

    Args:
        rule: A rule, or the name of one with its default options; default "fa".
        **options: Options of FedAvg.

    Attributes:
        rule: The rule.
        excluded: Reasons for the exclusion of nodes, by round and node.
        weights: Weights of the nodes' updates in the direction, by round and node. None for a rule without weights.

    Raises:
        ValueError: Flower is not installed. A round raises it, too, if too few clients reply for the rule's f.
    """

    def __init__(self, rule: str | Rule = "fa", **options: Any) -> None:
        if _MISSING:
            raise ValueError(
                f"a Flower strategy needs flwr ({_MISSING}): pip install 'flag-aggregator[flower]' in a new environment"
            )
        super().__init__(**options)
        self.rule = as_rule(rule)
        self.excluded: dict[int, dict[int, str]] = {}
        self.weights: dict[int, dict[int, float | None]] = {}
        self._sent: dict[str, Tensor] = {}

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        """Configure a round as FedAvg does, and store the model as the reference of the updates.

        Args:
            server_round: Number of the round, from 1.
            arrays: The model.
            config: Configuration of the clients.
            grid: Flower's connection to the nodes.

        Returns:
            The messages to the clients.
        """
        self._sent = _tensors(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
        """Aggregate the replies of a round.

        Args:
            server_round: Number of the round, from 1.
            replies: The clients' replies.

        Returns:
            The next model, and the clients' metrics averaged as FedAvg does. Both are None without a valid reply.

        Raises:
            ValueError: Too few clients replied for the rule's f.
        """
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        valid.sort(key=lambda reply: reply.metadata.src_node_id)  # The result must not depend on the order of arrival.
        nodes = [reply.metadata.src_node_id for reply in valid]
        contents = [reply.content for reply in valid]
        if not self._sent:  # No round was configured here: the models' medians are the reference.
            self._sent = _median_model(contents)
        usual = Counter(map(_metric_sizes, contents)).most_common(1)
        updates = [self._update(content) if _metric_sizes(content) == usual[0][0] else None for content in contents]
        whole = [reply.content for reply, update in zip(valid, updates, strict=True) if update is not None]
        if not whole:
            return None, None
        G = [self._nothing() if update is None else update for update in updates]
        result = self.rule.aggregate(G, iteration=server_round)
        excluded = {nodes[row]: reason for row, reason in result.decision.excluded.items()}
        excluded |= {node: _MALFORMED for node, update in zip(nodes, updates, strict=True) if update is None}
        self.excluded[server_round] = excluded
        weights = dict(zip(nodes, per_worker(result.decision.weights, len(nodes)), strict=True))
        self.weights[server_round] = weights
        for node, weight in weights.items():
            share = "" if weight is None else f", weight {weight:.4f}"
            status = f"excluded: {excluded[node]}" if node in excluded else f"used{share}"
            logging.getLogger("flwr").info("\t> Node %d %s", node, status)
        return self._moved(result.direction), self.train_metrics_aggr_fn(whole, self.weighted_by_key)

    def _update(self, content: Any) -> Update | None:
        """Return a reply's update, or None for a malformed reply."""
        arrays, metrics = list(content.array_records.values()), list(content.metric_records.values())
        if len(arrays) != 1 or len(metrics) != 1 or not _weighs(metrics[0].get(self.weighted_by_key)):
            return None
        if not all(np.isfinite(value).all() for value in metrics[0].values()):
            return None  # FedAvg's mean of the metrics would not be finite either
        reply = _readable(arrays[0])
        if (
            reply is None
            or reply.keys() != self._sent.keys()
            or any(not _alike(reply[name], self._sent[name]) for name in reply)
        ):
            return None
        return {
            name: reply[name] - sent if sent.is_floating_point() else reply[name] for name, sent in self._sent.items()
        }

    def _nothing(self) -> Update:
        """Return an update of NaN for a malformed reply, which rules exclude."""
        return {
            name: torch.full_like(sent, torch.nan) if sent.is_floating_point() else sent
            for name, sent in self._sent.items()
        }

    def _moved(self, direction: Update) -> Any:
        """Return the model plus the direction."""
        moved = {
            name: sent + direction[name] if sent.is_floating_point() else direction[name]
            for name, sent in self._sent.items()
        }
        return ArrayRecord({name: Array(np.asarray(tensor)) for name, tensor in moved.items()})


def _metric_sizes(content: Any) -> tuple[tuple[str, int], ...]:
    """Return the names of a reply's metrics, with the lengths of lists and -1 for numbers: FedAvg averages equal ones.

    One client's list of another length would otherwise end the round.
    """
    sizes = [
        (f"{record}/{name}", len(value) if isinstance(value, Sequence) else -1)
        for record, metrics in content.metric_records.items()
        for name, value in metrics.items()
    ]
    return tuple(sorted(sizes))


def _median_model(contents: Sequence[Any]) -> dict[str, Tensor]:
    """Return the coordinate-wise median of the models that have the most frequent names, shapes and dtypes."""
    found = [_readable(next(iter(content.array_records.values()), {})) for content in contents]
    models = [model for model in found if model is not None]
    kinds = [tuple((name, tensor.shape, tensor.dtype) for name, tensor in model.items()) for model in models]
    if not kinds:
        return {}
    ((usual, _),) = Counter(kinds).most_common(1)
    alike = [model for model, kind in zip(models, kinds, strict=True) if kind == usual]
    return {name: lower_median([model[name] for model in alike]) for name in alike[0]}


def _tensors(arrays: Any) -> dict[str, Tensor]:
    """Copy Flower's arrays into tensors."""
    return {name: torch.from_numpy(np.array(array.numpy())) for name, array in arrays.items()}


def _readable(arrays: Any) -> dict[str, Tensor] | None:
    """Copy a client's arrays into tensors; None if they are damaged, or of types that tensors do not have."""
    try:
        return _tensors(arrays)
    except Exception:  # noqa: BLE001 (whatever a decoder raises, the client's bytes are the reason)
        return None


def _alike(one: Tensor, other: Tensor) -> bool:
    """Return True for equal shapes and dtypes."""
    return one.shape == other.shape and one.dtype == other.dtype


def _weighs(weight: Any) -> bool:
    """Return True for a positive, finite number."""
    return isinstance(weight, int | float) and 0 < weight < math.inf
