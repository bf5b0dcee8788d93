"""The released code's own definitions, each against a plain version: what made the paper's curves."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fa import make_rule
from fa.attacks import ATTACKS
from fa.data import load
from fa.data.batches import minibatch
from fa.training import TrainConfig, train
from tests import reference
from tests.tensors import normal


def released_bulyan(G: np.ndarray, f: int) -> np.ndarray:
    """Score once by unsquared distances; average the best; take the values nearest the lower median."""
    p = len(G)
    best = p - f - 2
    distances = [sorted(float(np.linalg.norm(G[i] - G[j])) for j in range(p) if j != i) for i in range(p)]
    order = sorted(range(p), key=lambda i: sum(distances[i][:best]))
    averages = np.array([G[order[i:best]].mean(axis=0) for i in range(p - 2 * f - 2)])
    lower_median = np.sort(averages, axis=0)[(len(averages) - 1) // 2]
    return reference.around(averages, lower_median, len(averages) - 2 * f)


@pytest.mark.parametrize("seed", range(50))
def test_released_bulyan_is_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    f = int(rng.integers(0, 4))
    p = 4 * f + 3 + int(rng.integers(0, 5))
    G = rng.standard_normal((p, 40)) + rng.standard_normal(40)
    G[:f] = rng.uniform(0, 3, (f, 40))
    rule = make_rule("bulyan", f=f, formulation="released")
    np.testing.assert_allclose(rule(G), released_bulyan(G, f), rtol=0, atol=1e-12)


def test_the_two_bulyans_differ_and_share_their_condition() -> None:
    G = normal(15, 200)
    rules = [make_rule("bulyan", f=3, formulation=formulation) for formulation in ("paper", "released")]
    assert not torch.allclose(rules[0](G), rules[1](G))
    for rule in rules:
        with pytest.raises(ValueError, match=r"bulyan.*14"):
            rule(G[:14])


def test_released_bulyan_excludes_workers_of_worst_score() -> None:
    G = normal(11, 50)
    G[:2] += 100
    decision = make_rule("bulyan", f=2, formulation="released").aggregate(G).decision
    assert set(decision.excluded) >= {0, 1}
    assert len(decision.selected) == 11 - 2 - 2


def test_byzantine_workers_share_one_vector_that_changes_with_the_iteration() -> None:
    G = normal(6, 5_000, dtype=torch.float32)
    sent, later = G.clone(), G.clone()
    ATTACKS["random_shared"].apply(sent, (0, 2), 2021, 7)
    ATTACKS["random_shared"].apply(later, (0, 2), 2021, 8)
    assert torch.equal(sent[0], sent[2])
    assert not torch.equal(sent[0], later[0])
    assert sent[0].min() >= 0
    assert sent[0].max() < 1
    assert sent[0].mean() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(sent[[1, 3, 4, 5]], G[[1, 3, 4, 5]])


def test_sequential_minibatches_end_with_what_is_left_of_the_slice() -> None:
    """10,000 digits among 3 workers in minibatches of 1,000: slices of 3,333, the fourth minibatch has 333 images."""
    digits = load("mnist-mini")

    def labels(worker: int, iteration: int) -> torch.Tensor:
        return minibatch(
            digits, batch=1000, worker=worker, workers=3, iteration=iteration, seed=1, sampling="sequential"
        )[1]

    for worker in range(3):
        passes = [labels(worker, iteration) for iteration in range(8)]
        assert [len(drawn) for drawn in passes] == [1000, 1000, 1000, 333] * 2
        expected = digits.train_labels[3333 * worker : 3333 * (worker + 1)]
        assert torch.equal(torch.cat(passes[:4]), expected)
        assert torch.equal(torch.cat(passes[4:]), expected)


def test_each_released_setting_changes_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On 700 digits: a worker's slice of 100 is a minibatch of 60 and one of 40, or of 60 again if it is cycled."""
    digits = load("mnist-mini")
    parts = {"train_images": 700, "train_labels": 700, "test_images": 100, "test_labels": 100}
    few = replace(digits, **{name: getattr(digits, name)[:size] for name, size in parts.items()})
    monkeypatch.setattr("fa.training.setup.load", lambda name: few)
    config = TrainConfig(
        workers=7, byzantine=1, batch=60, iterations=2, lr=0.05, sampling="sequential", attack="random_shared",
        rule="bulyan", rule_options={"formulation": "released"},
    )  # fmt: skip
    losses = [point.train_loss for point in train(config, threads=1).curve]
    assert np.isfinite(losses).all()
    assert losses == [point.train_loss for point in train(config, threads=1).curve]
    for other in ({"sampling": "cycled"}, {"rule_options": {"formulation": "paper"}}):
        assert losses != [point.train_loss for point in train(replace(config, **other), threads=1).curve]
    two = replace(config, byzantine=2, rule="median", rule_options={})  # Bulyan excludes both kinds of vectors.
    shared, independent = (train(replace(two, attack=name), threads=1) for name in ("random_shared", "random"))
    assert [point.train_loss for point in shared.curve] != [point.train_loss for point in independent.curve]
