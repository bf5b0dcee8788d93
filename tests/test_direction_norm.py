"""Steps of equal length: the direction's norm is that of the mean of unit gradients, whatever the rule."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fa.rules import make_rule
from fa.training import TrainConfig, train
from fa.training.direction_norm import scale_to_unit_mean
from fa.training.loop import Loop, Progress
from fa.training.transports.server_config import RpcConfig

CONFIG = TrainConfig(
    evaluate_every=0,
    rule="fa",
    rule_options={"formulation": "released"},
    workers=5,
    byzantine=1,
    iterations=3,
    batch=4,
    lr=0.05,
    direction_norm="unit_mean",
)


def unit_mean(G: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(G, axis=1, keepdims=True)
    mean: np.ndarray = np.divide(G, norms, out=np.zeros_like(G), where=norms > 0).mean(axis=0)
    return mean


def drawn(p: int = 7, n: int = 400) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(p, n)) + 0.3) * rng.uniform(0.01, 100, (p, 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_norm_is_that_of_the_mean_of_unit_gradients(dtype: torch.dtype) -> None:
    G = torch.from_numpy(drawn()).to(dtype)
    direction = 1e-3 * G[2] - G[0]
    before = direction.clone()
    scaled = scale_to_unit_mean(direction, G)
    assert scaled.dtype == dtype
    assert float(scaled.norm()) == pytest.approx(np.linalg.norm(unit_mean(G.double().numpy())), rel=1e-5)
    torch.testing.assert_close(scaled / scaled.norm(), before / before.norm())
    assert torch.equal(direction, before)


def test_rows_that_are_not_finite_do_not_count_and_zero_ones_do() -> None:
    G = drawn()
    G[3] = 0
    rows = torch.from_numpy(G).clone()
    rows[1, 5], rows[4, 0] = torch.nan, torch.inf
    expected = np.linalg.norm(unit_mean(np.delete(G, [1, 4], axis=0)))
    assert float(scale_to_unit_mean(rows[0], rows).norm()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("dtype", "tiny"), [(torch.float32, 1e-40), (torch.float16, 1e-6), (torch.float64, 1e-150)])
def test_a_tiny_direction_is_scaled_too(dtype: torch.dtype, tiny: float) -> None:
    G = torch.from_numpy(drawn()).to(dtype)
    direction = torch.zeros(400, dtype=dtype)
    direction[7] = tiny
    scaled = scale_to_unit_mean(direction, G)
    assert scaled.dtype == dtype
    assert float(scaled.double().norm()) == pytest.approx(np.linalg.norm(unit_mean(G.double().numpy())), rel=1e-2)
    assert scaled.count_nonzero() == 1


def test_zero_stays_zero() -> None:
    G = torch.from_numpy(drawn())
    assert not scale_to_unit_mean(torch.zeros(400), G).any()
    assert not scale_to_unit_mean(G[0], torch.zeros_like(G)).any()


def test_inner_products_that_are_at_hand_give_the_same_bits() -> None:
    from fa import kernels

    G = torch.from_numpy(drawn()).float()
    assert torch.equal(scale_to_unit_mean(G[0], G, kernels.gram(G)), scale_to_unit_mean(G[0], G))


def steps(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[tuple[float, float]]:
    """Norms of each iteration's direction and of its mean of unit gradients."""
    taken: list[torch.Tensor] = []
    norms: list[tuple[float, float]] = []
    original = Loop.__init__

    def spied(self: Loop, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        step = self._optimizer.step
        monkeypatch.setattr(
            self._optimizer, "step", lambda direction, at: (taken.append(direction.clone()), step(direction, at))
        )

    def watch(progress: Progress) -> None:
        norms.append((float(taken[-1].norm()), float(np.linalg.norm(unit_mean(progress.G.double().numpy())))))

    monkeypatch.setattr(Loop, "__init__", spied)
    train(config, progress=watch, threads=1, **settings)
    return norms


@pytest.mark.parametrize("rule", ["fa", "mean", "median"])
def test_every_step_of_a_run_has_the_length_of_the_mean_of_unit_gradients(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, rule=rule, rule_options={})
    for direction, expected in steps(config, monkeypatch):
        assert direction == pytest.approx(expected, rel=1e-5)
    for direction, expected in steps(replace(config, direction_norm="rule"), monkeypatch):
        assert direction != pytest.approx(expected, rel=1e-3)


def test_the_mean_of_unit_gradients_takes_its_own_steps() -> None:
    config = replace(CONFIG, rule="mean", rule_options={"preaggregators": ("unit",)}, iterations=5)
    scaled, plain = train(config, threads=1), train(replace(config, direction_norm="rule"), threads=1)
    assert scaled.curve[-1].train_loss == pytest.approx(plain.curve[-1].train_loss, rel=1e-4)


def test_worker_processes_take_the_simulations_steps() -> None:
    here, there = (train(CONFIG, threads=1, server=server) for server in (None, RpcConfig()))
    assert [point.train_loss for point in here.curve] == [point.train_loss for point in there.curve]
    assert here.workers == there.workers
    assert here.final_accuracy == there.final_accuracy


def test_the_default_is_absent_from_a_configuration_whose_hash_stays() -> None:
    assert "direction_norm" not in json.loads(TrainConfig().to_json())
    assert TrainConfig.from_json(CONFIG.to_json()) == CONFIG
    with pytest.raises(ValueError, match=r"^direction_norm\b.*'longest'"):
        TrainConfig(direction_norm="longest")


def test_the_rules_directions_differ_in_length_before() -> None:
    """FA as released sums over m instead of p: what the setting removes."""
    G = torch.from_numpy(drawn())
    released = make_rule("fa", formulation="released")(G)
    ratio = float(released.norm()) / float(np.linalg.norm(unit_mean(G.numpy())))
    assert ratio > 1.3
