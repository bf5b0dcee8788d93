"""How the training images are dealt out to workers, and the momentum that workers keep."""

import json
from dataclasses import replace
from typing import Any

import byzfl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fa.data import Dataset, load
from fa.data.batches import normalise
from fa.data.splits import by_class, dirichlet, gamma_similarity
from fa.training import TrainConfig, train
from fa.training.parameter_vector import flatten
from fa.training.setup import worker_partitions
from fa.training.transports.server_config import RpcConfig
from fa.training.transports.simulation import SimulatedTransport
from tests.processes import build_normed

SMALL = TrainConfig(
    rule="median", workers=5, byzantine=1, iterations=6, batch=4, lr=0.05, attack="sign_flip", seed=5, evaluate_every=0
)
UNEQUAL = {"split": "dirichlet", "alpha": 0.5}
MNIST = load("mnist-mini")


def drawn(classes: int, size: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, classes, size))


@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(1, 12),
    workers=st.integers(1, 9),
    size=st.integers(200, 500),
    alpha=st.floats(0.3, 1e4),
)
def test_every_image_is_one_workers_and_each_has_enough(
    seed: int, classes: int, workers: int, size: int, alpha: float
) -> None:
    labels = drawn(classes, size, seed)
    for split in (dirichlet(labels, workers, alpha, 2, seed), by_class(labels, workers)):
        assert len(split) == workers
        assert all((np.diff(own) > 0).all() for own in split)
        assert np.array_equal(np.sort(np.concatenate(split)), np.arange(size))
        assert min(own.size for own in split) >= 2


def test_a_split_depends_on_the_seed_alone() -> None:
    labels = drawn(10, 2000, 0)
    one, same, other = (dirichlet(labels, 7, 0.5, 10, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 20.0])
def test_shares_of_a_class_are_dirichlets(alpha: float) -> None:
    """Of mean 1/k and variance (1/k)(1 - 1/k)/(k alpha + 1), for k workers."""
    labels, k = drawn(10, 5000, 0), 4
    shares = [
        torch.bincount(labels[own], minlength=10) / torch.bincount(labels)
        for seed in range(200)
        for own in dirichlet(labels, k, alpha, 0, seed)
    ]
    every = torch.stack(shares)
    assert every.mean() == pytest.approx(1 / k, abs=1e-3)
    assert every.var() == pytest.approx((1 / k) * (1 - 1 / k) / (k * alpha + 1), rel=0.05)


@pytest.mark.parametrize("workers", [3, 10, 12])
def test_by_class_is_byzfls_extreme_split(workers: int) -> None:
    labels = MNIST.train_labels[:1000]
    images = torch.utils.data.TensorDataset(labels)
    told = {"data_distribution_name": "extreme_niid", "nb_honest": workers, "batch_size": 1}
    theirs = byzfl.DataDistributor(told | {"data_loader": torch.utils.data.DataLoader(images)})
    expected = theirs.extreme_niid_idx(labels.numpy(), np.arange(1000))
    for own, other in zip(by_class(labels, workers), expected, strict=True):
        assert np.array_equal(own, np.sort(other))
        assert len(labels[own].unique()) <= 10 // workers + 2


@pytest.mark.parametrize("sampling", ["random", "cycled"])
@pytest.mark.parametrize("split", [UNEQUAL, {"split": "classes"}], ids=["dirichlet", "classes"])
def test_honest_workers_draw_from_their_own_and_faulty_ones_from_all(split: dict[str, Any], sampling: str) -> None:
    """The first pixel of an image is its number."""
    size = 240
    images = torch.zeros(size, 1, 28, 28, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(size)
    data = replace(MNIST, train_images=images, train_labels=drawn(10, size, 1))
    config = replace(SMALL, sampling=sampling, **split)
    seen = [numbers(worker.minibatch(t)[0] for t in range(600)) for worker in simulation(config, data).workers]
    owned = worker_partitions(config, data)
    assert sorted(owned) == list(range(1, len(seen)))
    assert len(seen[0]) == (size if sampling == "random" else size // 5)
    assert [set(own) for own in owned.values()] == seen[1:]
    assert sum(map(len, seen[1:])) == size


def numbers(batches: Any) -> set[int]:
    """Which images of that test these are."""
    all_of_them = normalise(torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1), MNIST).flatten()
    pixels = torch.cat([batch[:, 0, 0, 0] for batch in batches])
    return set(torch.searchsorted(all_of_them, pixels - 1e-4).tolist())


def simulation(config: TrainConfig, data: Dataset = MNIST) -> SimulatedTransport:
    model = build_normed(seed=0)
    return SimulatedTransport(model, data, config, flatten(model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "class"}, r"^split must be .*\biid, dirichlet, classes\b.*'class'.*'classes'"),
        ({"split": "dirichlet"}, r"^alpha must be .*'dirichlet'.*\bNone\b"),
        ({"split": "dirichlet", "alpha": 0}, r"^alpha must be .*\b0\.0\b"),
        ({"alpha": 1.0}, r"^alpha must be .*'iid'.*\b1\.0\b"),
        ({"worker_momentum": 1.0}, r"^worker_momentum must be .*\b1\.0\b"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda labels: by_class(labels, 0), r"^workers must be .*\b0\b"),
        (lambda labels: gamma_similarity(labels, 0, 0.5, 0), r"^workers must be .*\b0\b"),
        (lambda labels: dirichlet(labels, 0, 0.5, 1, 0), r"^workers must be .*\b0\b"),
        (lambda labels: dirichlet(labels, 4, 1e308, 1, 0), r"^alpha must be .*1e\+100.*1e\+308"),
        (lambda labels: dirichlet(labels, 4, 0.5, 1, -1), r"^seed must be .*-1\b"),
    ],
)
def test_arguments_of_a_split_are_checked(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(MNIST.train_labels)


def test_too_few_images_for_a_worker_are_told_before_the_run() -> None:
    with pytest.raises(ValueError, match=r"^alpha must be .*\b4\b.*\b2400\b.*\b0\.01\b"):
        train(replace(SMALL, batch=2400, split="dirichlet", alpha=0.01), threads=1)
    with pytest.raises(ValueError, match=r"^batch must be .*\b2500\b.*\b2501\b"):
        train(replace(SMALL, batch=2501, split="classes"), threads=1)


def test_a_run_without_them_has_the_text_that_it_had() -> None:
    assert not {"split", "alpha", "worker_momentum"} & json.loads(SMALL.to_json()).keys()
    config = replace(SMALL, **UNEQUAL, worker_momentum=0.9)
    assert TrainConfig.from_json(config.to_json()) == config
    assert {"split": "dirichlet", "alpha": 0.5, "worker_momentum": 0.9}.items() <= json.loads(config.to_json()).items()


def test_worker_momentum_is_byzfls() -> None:
    """m_t = beta m_(t-1) + (1 - beta) g_t, also of a faulty worker that turns its own around."""
    config = replace(SMALL, worker_momentum=0.9)
    ours, bare = simulation(config), simulation(replace(config, worker_momentum=0.0))
    parameters = flatten(build_normed(seed=0))
    client = byzfl.Client.__new__(byzfl.Client)
    client.momentum, client.momentum_gradient = 0.9, torch.zeros(5, len(parameters))
    plain = torch.zeros(5, len(parameters))
    for iteration in range(4):
        sent = ours.gradients(iteration)
        gradients = bare.gradients(iteration)
        plain = 0.9 * plain + 0.1 * gradients.G
        client.get_flat_gradients = lambda G=gradients.G: G
        torch.testing.assert_close(sent.G, plain, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(sent.G, client.get_flat_gradients_with_momentum(), rtol=1e-4, atol=1e-7)
        assert sent.loss == gradients.loss


@pytest.mark.parametrize("gradients", ["rpc", "udp"])
def test_over_processes_the_numbers_are_the_simulations(gradients: str) -> None:
    config = replace(SMALL, **UNEQUAL, worker_momentum=0.9 if gradients == "rpc" else 0.0)
    seen: list[list[float]] = [[], []]
    for losses, rpc in zip(seen, (None, RpcConfig(gradients=gradients)), strict=True):
        train(config, threads=1, server=rpc, progress=lambda state, own=losses: own.append(float(state.loss)))
    assert seen[0] == seen[1]


def test_momenta_do_not_come_as_datagrams() -> None:
    """What is lost on the way would be lost from the momentum that a new process of that rank goes on from."""
    with pytest.raises(ValueError, match=r"^worker_momentum must be .*\b0\.9\b"):
        train(replace(SMALL, worker_momentum=0.9), server=RpcConfig(gradients="udp"))
