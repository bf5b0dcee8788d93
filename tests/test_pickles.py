"""Public objects can be copied and pickled, and the copies give the same results."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fa
from fa import attacks, flags, irls, likelihood, models, sdp
from fa.attacks import Attack
from fa.augment import recipes
from fa.data import MissingDataError, load
from fa.experiments import figure_module
from fa.experiments.paths import recipe_path
from fa.experiments.runs.store import DamagedRecord, RunStore
from fa.experiments.runs.sweep import Outcome
from fa.gradients.measurement import measure
from fa.layers import accelerate
from fa.rules.preaggregators import PREAGGREGATORS, PreaggregatorContext, make_preaggregator
from fa.theory import algorithm1_line5, optimality, quantization
from fa.training import TrainConfig, train
from fa.training.records import UnwrittenRunError
from fa.training.transports.server_config import RpcConfig, TcpConfig
from fa.training.transports.tcp.link import Refused
from fa.training.transports.tcp.messages import Header, Kind
from fa.utils.validation import TooFewWorkersError
from tests.processes import beside

G = np.random.default_rng(0).standard_normal((9, 20))
COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),  # noqa: S301
    "oldest protocol": lambda value: pickle.loads(pickle.dumps(value, 2)),  # noqa: S301
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
RULE = """
from dataclasses import dataclass
import numpy as np
import fa
from fa.rules.decision import ColumnDecision

@dataclass(frozen=True, kw_only=True)
class Mine(fa.Rule):
    name = "mine"
    share: float = 1.0

    def decide(self, gram):
        return ColumnDecision(weights=np.full(gram.p, self.share / gram.p))


def made():
    class Made(Mine):
        pass

    return Made


MadeByAFunction = made()


def write(G, byzantine, streams, size=2.0):
    for worker in byzantine:
        G[worker] = size


worst = fa.attacks.Attack("worst", False, write, {"size": 2.0})
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text(RULE)
    return path


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", [*fa.RULES, "Mine", "MadeByAFunction", "byzfl:Median"])
@pytest.mark.filterwarnings("ignore:f must be set")
def test_a_copied_rule_gives_the_same_direction(name: str, how: str, file: Path) -> None:
    rule = fa.make_rule(f"{file}:{name}", share=0.5) if name in ("Mine", "MadeByAFunction") else fa.make_rule(name)
    copied = COPIES[how](rule)
    assert copied == rule
    np.testing.assert_array_equal(copied(G), rule(G))


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", [*attacks.ATTACKS, "FILE", "byzfl:SignFlipping", "byzfl:ALittleIsEnough(tau=3.0)"])
def test_a_copied_attack_writes_the_same_rows(name: str, how: str, file: Path) -> None:
    rule = fa.make_rule("median")
    attack = attacks.make_attack(f"{file}:worst" if name == "FILE" else name, rule)
    if name == "FILE":
        attack = attacks.make_attack(f"{file}:worst", size=3.0)
    rows = []
    for one in (attack, COPIES[how](attack)):
        rows.append(torch.from_numpy(G.copy()))
        one.apply(rows[-1], [0, 1], 3, 4)
    torch.testing.assert_close(rows[0], rows[1], rtol=0, atol=0, equal_nan=True)


def fast_model() -> torch.nn.Module:
    model = models.build("convnet", shape=(1, 28, 28), classes=10, seed=0)
    accelerate(model)
    return model


def finished() -> Any:
    return train(TrainConfig(workers=3, byzantine=1, iterations=1, batch=4), threads=1)


def state_dicts() -> Any:
    return [
        {"w": torch.full((3,), float(k)), "mask": torch.tensor([-torch.inf, 0.0]), "n": torch.tensor(k)}
        for k in range(3)
    ]


OBJECTS: dict[str, Callable[[], Any]] = {
    "aggregate": lambda: fa.make_rule("fa").aggregate(G),
    "solution": lambda: irls.solve(G),
    "solution with l1": lambda: irls.solve(G, lam=0.1, regularizer="l1", m=2),
    "flag": lambda: flags.solve(G, dims=(1, 2)),
    "certificate": lambda: sdp.certify(G, irls.solve(G)),
    "Gram matrix": lambda: measure(torch.from_numpy(G))[0],
    "configuration": lambda: TrainConfig(rule_options={"m": 2}, attack="gaussian", attack_options={"std": 2.0}),
    "run": finished,
    "rpc": RpcConfig,
    "tcp": TcpConfig,
    "data set": lambda: load("mnist-mini"),
    "recipe": lambda: recipes.read(recipe_path("lv")),
    "model": lambda: models.build("convnet", shape=(1, 28, 28), classes=10, seed=0),
    "fast model": fast_model,
    "format": lambda: quantization.Format("block_float", 8, block=4),
    "quantized": lambda: quantization.quantize(G, quantization.Format(bits=8)),
    "fit": lambda: likelihood.fit(G, likelihood.Beta(1.0, 0.5), m=1, max_iter=3, restarts=1),
    "path": lambda: algorithm1_line5.path(G, "l1", 0.1, m=1, steps=2),
    "second order": lambda: optimality.second_order(irls.solve(G)),
    "study": lambda: figure_module("fig02").study("smoke"),
    "outcome": lambda: Outcome(TrainConfig(), None, "no room"),
    "header": lambda: Header(Kind.WORK, bytes(16)),
    "too few": lambda: TooFewWorkersError("p"),
    "unwritten": lambda: UnwrittenRunError("out", finished()),
    "missing": lambda: MissingDataError("mnist"),
    "damaged": lambda: DamagedRecord("curve.csv"),
    "refused": lambda: Refused("release"),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", OBJECTS)
def test_a_copied_object_has_the_same_class_and_fields(name: str, how: str) -> None:
    value = OBJECTS[name]()
    copied = COPIES[how](value)
    assert type(copied) is type(value)
    assert str(copied) == str(value) or " at 0x" in str(value)
    assert vars(copied).keys() == vars(value).keys() if hasattr(value, "__dict__") else copied == value


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("read", [lambda: G, lambda: torch.from_numpy(G), lambda: list(G), state_dicts])
def test_copied_gradients_restore_the_callers_format(how: str, read: Callable[[], Any]) -> None:
    gradients = fa.gradients.read(read())
    copied = COPIES[how](gradients)
    one, other = (g.restore(gradients.G[0].clone()) for g in (gradients, copied))
    assert str(one) == str(other)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", [*PREAGGREGATORS, "clip:2.0", "bucketing:3"])
def test_a_copied_preaggregator_gives_the_same_columns(name: str, how: str) -> None:
    gram, _ = measure(torch.from_numpy(G))
    step = make_preaggregator(name)
    (one, _), (other, _) = (s.apply(gram, PreaggregatorContext(1, 2, 3)) for s in (step, COPIES[how](step)))
    np.testing.assert_array_equal(one, other)


def read_types(values: Path) -> None:
    """In a process of its own, which has not read the user's file."""
    loaded = pickle.loads(values.read_bytes())  # noqa: S301
    values.with_suffix(".txt").write_text(" ".join(type(value).__name__ for value in loaded))


def test_other_processes_read_rules_and_attacks_of_a_users_file(file: Path, tmp_path: Path) -> None:
    values = [fa.make_rule(f"{file}:Mine"), attacks.make_attack(f"{file}:worst"), fa.make_rule("byzfl:Median")]
    (tmp_path / "values").write_bytes(pickle.dumps(values))
    process = beside(read_types, tmp_path / "values")
    process.join(60)
    assert process.exitcode == 0
    assert (tmp_path / "values.txt").read_text().split() == ["Mine", "Attack", "Median"]
    assert isinstance(values[1], Attack)


def test_a_store_is_copied(tmp_path: Path) -> None:
    store = RunStore(tmp_path, tmp_path / "other")
    assert copy.deepcopy(store).checkpoint(TrainConfig()) == store.checkpoint(TrainConfig())
