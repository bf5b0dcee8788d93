"""The Flower strategy on Flower's own messages, and in its simulation."""

import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

INSTALL = "pip install -e '.[flower]', in an environment of its own"
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # nobody is told of these tests
pytest.importorskip("flwr", reason=INSTALL)

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

import fa  # noqa: E402
from fa.interop.flower import Strategy  # noqa: E402
from fa.rules.decision import NOT_FINITE  # noqa: E402
from fa.utils.validation import TooFewWorkersError  # noqa: E402
from tests.texts import numbers  # noqa: E402

ROOT = Path(__file__).parents[1]
NODES = [17, 3, 99, 54, 8, 2**63 + 5, 21, 40, 1]
Model = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, Flower makes no messages."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Nodes:
    """What a strategy asks of a grid when it picks clients."""

    def get_node_ids(self) -> list[int]:
        return NODES


def models(seed: int = 0) -> tuple[Model, dict[int, Model]]:
    """A model as it is sent, and those that the nodes reply with; batch norm counts among the arrays."""
    generator = torch.Generator().manual_seed(seed)
    sent = {"w": torch.randn(4, 5, generator=generator), "b": torch.randn(3, generator=generator).double()}
    sent["count"] = torch.tensor(7)
    replied = {}
    for place, node in enumerate(NODES):
        replied[node] = {n: t + 0.1 * (torch.randn(t.shape, generator=generator) + 1) for n, t in sent.items()}
        replied[node]["count"] = torch.tensor(7 + place)
    return sent, replied


def reply(message: Message, model: Model, examples: float = 10) -> Message:
    records = {"arrays": ArrayRecord(model), "metrics": MetricRecord({"num-examples": examples, "loss": 0.5})}
    return Message(RecordDict(records), reply_to=message)


def a_round(
    strategy: Any, change: Callable[[int, Message, Model], Message] | None = None, backwards: bool = False
) -> tuple[Model | None, MetricRecord | None]:
    """What a strategy makes of a round, in which a node's reply may be changed."""
    sent, replied = models()
    arrays, config = ArrayRecord(sent), ConfigRecord()
    strategy.min_train_nodes = len(NODES)
    messages = strategy.configure_train(1, arrays, config, Nodes())
    assert sorted(message.metadata.dst_node_id for message in messages) == sorted(NODES)
    answers = []
    for message in sorted(messages, key=lambda message: message.metadata.dst_node_id, reverse=backwards):
        node = message.metadata.dst_node_id
        answers.append((change or (lambda _, *asked: reply(*asked)))(node, message, replied[node]))
    made, metrics = strategy.aggregate_train(1, answers)
    return None if made is None else dict(made.to_torch_state_dict()), metrics


def expected(rule: Any, without: tuple[int, ...] = ()) -> Model:
    sent, replied = models()
    updates = [
        {name: replied[node][name] - sent[name] for name in ("w", "b")} for node in sorted(NODES) if node not in without
    ]
    d = rule(updates, iteration=1)
    return {name: sent[name] + d[name] for name in ("w", "b")}


def same(one: Model | None, other: Model) -> None:
    assert one is not None
    for name, tensor in other.items():
        assert one[name].dtype == tensor.dtype
        torch.testing.assert_close(one[name], tensor)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", fa.RULES)
@pytest.mark.filterwarnings("ignore:preaggregators must bound norms")
def test_the_new_model_is_the_old_one_plus_the_rules_direction(name: str, backwards: bool) -> None:
    rule = fa.make_rule(name, f=1, preaggregators=("bucketing",) if name in ("fa", "median") else None)
    strategy = Strategy(rule)
    model, metrics = a_round(strategy, backwards=backwards)
    same(model, expected(rule))
    assert model is not None
    assert list(model) == ["w", "b", "count"]
    assert model["count"] == 11  # the median of 7 .. 15
    assert metrics == pytest.approx({"loss": 0.5})


def test_the_mean_is_fedavgs() -> None:
    ours, theirs = a_round(Strategy("mean"))[0], a_round(FedAvg())[0]
    assert theirs is not None
    same(ours, {name: theirs[name].to(dtype) for name, dtype in (("w", torch.float32), ("b", torch.float64))})


def npy_header(shape: tuple[int, ...]) -> bytes:
    """Return a file of numpy that claims a shape, and has no numbers."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


KINDS = ["nan", "shape", "dtype", "names", "metrics", "examples", "bytes", "empty", "stype", "strings"]
KINDS += ["big endian", "zip", "huge", "beyond integers", "unclosed"]


def faulty(kind: str) -> Callable[[int, Message, Model], Message]:
    """Node 99 replies with something that is no model."""

    def change(node: int, message: Message, model: Model) -> Message:
        if node != 99:
            return reply(message, model)
        if kind == "metrics":
            return Message(RecordDict({"arrays": ArrayRecord(model)}), reply_to=message)
        if kind == "examples":
            return reply(message, model, examples=-80)
        damaged = {
            "bytes": {"data": b"no array"},
            "empty": {"data": b""},
            "zip": {"data": b"PK\x03\x04junk"},
            "huge": {"data": npy_header((10**12,))},
            "beyond integers": {"data": npy_header((10**25,))},
            "unclosed": {"data": npy_header((3,)).replace(b"}", b" ")},
            "stype": {"stype": "another"},
            "strings": vars(Array(np.array(["a", "b"]))),
            "big endian": vars(Array(np.zeros((3,), dtype=">f8"))),
        }
        if kind in damaged:
            arrays = ArrayRecord(model)
            for field, value in damaged[kind].items():
                setattr(arrays["b"], field, value)
            metrics = reply(message, model).content["metrics"]
            return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
        changed = {
            "nan": model | {"b": torch.full((3,), torch.nan, dtype=torch.float64)},
            "shape": model | {"w": torch.zeros(5, 4)},
            "dtype": model | {"b": model["b"].float()},
            "names": {"w": model["w"]},
        }
        return reply(message, changed[kind])

    return change


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_model_is_left_out_and_counts_as_faulty(kind: str) -> None:
    strategy = Strategy(fa.make_rule("trimmed_mean", f=2))
    model, metrics = a_round(strategy, faulty(kind))
    same(model, expected(fa.make_rule("trimmed_mean", f=1), without=(99,)))
    assert metrics == pytest.approx({"loss": 0.5})
    assert list(strategy.excluded[1]) == [99]
    assert (strategy.excluded[1][99] == NOT_FINITE) == (kind == "nan")


METRICS: dict[str, dict[str, Any]] = {
    "a list of another length": {"classes": [1.0, 2.0, 3.0]},
    "a list for a number": {"loss": [0.5, 0.5], "classes": [1.0, 2.0]},
    "a number for a list": {"loss": 0.5, "classes": 1.0},
    "another name": {"loss": 0.5, "classes": [1.0, 2.0], "x": 1.0},
    "NaN examples": {"num-examples": math.nan, "classes": [1.0, 2.0]},
    "endless examples": {"num-examples": math.inf, "classes": [1.0, 2.0]},
    "NaN": {"loss": math.nan, "classes": [1.0, 2.0]},
    "endless numbers of a list": {"loss": 0.5, "classes": [1.0, -math.inf]},
}


@pytest.mark.parametrize("kind", METRICS)
def test_metrics_of_one_client_neither_end_a_round_nor_ruin_the_others(kind: str) -> None:
    """FedAvg averages lists of equal length; node 99's metrics are of another form, or not finite."""

    def change(node: int, message: Message, model: Model) -> Message:
        metrics = {"num-examples": 10, "loss": 0.5, "classes": [1.0, 2.0]}
        metrics |= METRICS[kind] if node == 99 else {}
        records = {"arrays": ArrayRecord(model), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(records), reply_to=message)

    strategy = Strategy(fa.make_rule("median", f=1))
    model, metrics = a_round(strategy, change)
    same(model, expected(fa.make_rule("median"), without=(99,)))
    assert metrics is not None
    assert dict(metrics) == {"loss": pytest.approx(0.5), "classes": pytest.approx([1.0, 2.0])}
    assert list(strategy.excluded[1]) == [99]


def test_a_round_that_was_not_configured_is_aggregated_as_fedavg_aggregates_it() -> None:
    def replies() -> list[Message]:
        strategy = FedAvg(min_train_nodes=len(NODES))
        sent, replied = models()
        messages = strategy.configure_train(1, ArrayRecord(sent), ConfigRecord(), Nodes())
        return [reply(message, replied[message.metadata.dst_node_id]) for message in messages]

    (ours, metrics), (theirs, expected_metrics) = (
        s.aggregate_train(1, replies()) for s in (Strategy("mean"), FedAvg())
    )
    assert metrics == expected_metrics
    model = theirs.to_torch_state_dict()
    same(dict(ours.to_torch_state_dict()), {"w": model["w"], "b": model["b"].double()})


def test_clients_that_fail_are_not_there() -> None:
    def failing(node: int, message: Message, model: Model) -> Message:
        return Message(Error(0, "no memory"), reply_to=message) if node in (99, 8) else reply(message, model)

    rule = fa.make_rule("krum", f=2)
    same(a_round(Strategy(rule), failing)[0], expected(rule, without=(99, 8)))
    with pytest.raises(TooFewWorkersError, match=r"^krum\b.*\b2f \+ 3\b.*\b7\b.*\b3\b"):
        a_round(Strategy(fa.make_rule("krum", f=3)), failing)
    everybody = lambda node, message, model: Message(Error(0, "no memory"), reply_to=message)  # noqa: E731
    assert a_round(Strategy("median"), everybody) == (None, None)


def test_each_nodes_weight_or_reason_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    caplog.set_level(logging.INFO, "flwr")
    strategy = Strategy(fa.make_rule("multi_krum", f=2, keep=4))
    a_round(strategy)
    assert len(strategy.excluded[1]) == 5
    (reason,) = set(strategy.excluded[1].values())
    assert numbers(reason) == [4]
    assert set(strategy.excluded[1]) < set(NODES)
    used = set(NODES) - set(strategy.excluded[1])
    assert strategy.weights[1] == pytest.approx({node: 0.25 if node in used else 0.0 for node in NODES})
    lines = [record.getMessage() for record in caplog.records if "excluded" in record.getMessage()]
    assert sorted(int(numbers(line)[0]) for line in lines) == sorted(strategy.excluded[1])
    assert all(any(str(node) in record.getMessage() for record in caplog.records) for node in used)


@pytest.mark.slow
def test_the_example_resists_a_faulty_client_in_flowers_simulation() -> None:
    pytest.importorskip("ray", reason=INSTALL)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    accuracies = {}
    for rule in ("fa", "fedavg"):
        command = [sys.executable, str(ROOT / "examples" / "flower_app.py"), "--rule", rule, "--rounds", "3"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"{rule}:"))
        accuracies[rule], *counts = numbers(line)
        assert counts == [3, 8]  # rounds and clients
    assert accuracies["fa"] > 0.4
    assert accuracies["fedavg"] < 0.3
