"""Workers with their own batch sizes, several local steps, and images that are partly sorted by class."""

import json
from dataclasses import replace
from typing import Any

import byzfl
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fa import irls
from fa.cli import main
from fa.data import load
from fa.data.batches import minibatch
from fa.data.splits import by_class, gamma_similarity
from fa.training import TrainConfig, train
from fa.training.parameter_vector import flatten
from fa.training.setup import worker_partitions
from fa.training.transports.server_config import RpcConfig, TcpConfig
from fa.training.transports.simulation import SimulatedTransport
from fa.utils import seeds
from tests.processes import build_normed

MNIST = load("mnist-mini")
SMALL = TrainConfig(
    rule="mean", workers=4, byzantine=1, iterations=4, batch=4, lr=0.05, attack="sign_flip", seed=5, evaluate_every=0
)
SIZES = (16, 4, 8, 2)
both = pytest.mark.parametrize("server", [RpcConfig(), TcpConfig()], ids=["rpc", "tcp"])


def losses(config: TrainConfig, server: RpcConfig | TcpConfig | None = None) -> list[float]:
    seen: list[float] = []
    train(config, threads=1, progress=lambda state: seen.append(float(state.loss)), server=server)
    return seen


def exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


# Batch sizes


def test_each_worker_has_its_batch_size() -> None:
    config = replace(SMALL, batch=SIZES, accumulate=2)
    model = build_normed(seed=0)
    transport = SimulatedTransport(model, MNIST, config, flatten(model))
    assert [len(worker.minibatch(0)[0]) for worker in transport.workers] == [2 * size for size in SIZES]
    assert config.max_images == 32
    assert config.epoch_length(600) == 600 // (2 * sum(SIZES))


def test_a_gradient_is_that_of_a_run_in_which_all_have_its_batch_size() -> None:
    model = build_normed(seed=0)
    parameters = flatten(model)
    config = replace(SMALL, attack="none")
    G = SimulatedTransport(model, MNIST, replace(config, batch=SIZES), parameters).gradients(3).G
    for rank, size in enumerate(SIZES):
        model = build_normed(seed=0)
        vector = flatten(model)
        same = SimulatedTransport(model, MNIST, replace(config, batch=size), vector).gradients(3).G
        assert torch.equal(G[rank], same[rank])


def test_equal_batch_sizes_are_one_number_and_hash_as_before() -> None:
    assert replace(SMALL, batch=(4, 4, 4, 4)) == SMALL
    assert json.loads(SMALL.to_json())["batch"] == 4
    assert {"gamma", "local_steps"}.isdisjoint(json.loads(SMALL.to_json()))
    config = replace(SMALL, batch=SIZES, local_steps=3, split="gamma", gamma=0.5)
    assert TrainConfig.from_json(config.to_json()) == config
    assert hash(TrainConfig.from_json(config.to_json())) == hash(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": (4, 4, 8)}, r"^batch must be .*workers=4.*\(4, 4, 8\)"),
        ({"batch": (4, 0, 8, 8)}, r"^each of batch must be .*\b1\b.*\b0\b"),
        ({"local_steps": 0}, r"^local_steps must be .*\b0\b"),
        ({"gamma": 0.5}, r"^gamma must be .*'iid'.*0\.5"),
        ({"split": "gamma"}, r"^gamma must be .*'gamma'.*\bNone\b"),
        ({"split": "gamma", "gamma": 1.5}, r"^gamma must be .*\b1\.5\b"),
        ({"split": "gamma", "gamma": 0.5, "alpha": 1.0}, r"^alpha must be .*'gamma'.*\b1\.0\b"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **settings)


def test_the_command_line_takes_one_size_or_one_for_each_rank(tmp_path: Any) -> None:
    run = ["train", "--workers", "4", "--byzantine", "1", "--iterations", "2", "--threads", "1", "--rule", "fa"]
    options = ["--batch", "16,4,8,2", "--worker-weights", "2,0.5,1,0.25", "--out", str(tmp_path / "run")]
    assert exit_code([*run, *options]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["batch"] == list(SIZES)
    assert config["rule_options"] == {"worker_weights": [2, 0.5, 1, 0.25]}
    assert exit_code([*run, "--batch", "16,x"]) == 2


# Local steps


def plain_local_steps(config: TrainConfig, iteration: int, rank: int, start: torch.Tensor) -> torch.Tensor:
    """The change of the parameters over K steps of SGD, over -lr, in a plain loop with torch's optimizer."""
    model = build_normed(seed=0)
    parameters = flatten(model)
    parameters.copy_(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
    for step in range(iteration * config.local_steps, (iteration + 1) * config.local_steps):
        images, labels = minibatch(MNIST, config.batches[rank], rank, config.workers, step, config.seed)
        with seeds.fork_global_rng(seeds.derive_seed("dropout", config.seed, rank, step), torch.device("cpu")):
            optimizer.zero_grad()
            F.cross_entropy(model.train()(images), labels).backward()
            optimizer.step()
    return (start - parameters.detach()) / config.lr


def test_local_steps_are_a_plain_loop_and_leave_the_parameters() -> None:
    config = replace(SMALL, attack="none", local_steps=3, batch=SIZES)
    model = build_normed(seed=0)
    parameters = flatten(model)
    start = parameters.clone()
    transport = SimulatedTransport(model, MNIST, config, parameters)
    gathered = transport.gradients(0)
    assert torch.equal(parameters, start)
    for rank in range(4):
        torch.testing.assert_close(gathered.G[rank], plain_local_steps(config, 0, rank, start), rtol=2e-3, atol=2e-5)


def test_the_mean_of_local_steps_is_federated_averaging() -> None:
    """The server's step by the mean, at the workers' rate, gives the mean of the workers' parameters."""
    config = replace(SMALL, attack="none", local_steps=2, iterations=1, weight_decay=0.0, byzantine=0)
    model = build_normed(seed=0)
    parameters = flatten(model)
    G = SimulatedTransport(model, MNIST, config, parameters).gradients(0).G
    ends = [parameters - config.lr * plain_local_steps(config, 0, rank, parameters) for rank in range(4)]
    torch.testing.assert_close(parameters - config.lr * G.mean(dim=0), torch.stack(ends).mean(dim=0))


def test_one_local_step_is_the_gradient_and_an_epoch_counts_all_steps() -> None:
    assert losses(replace(SMALL, local_steps=1)) == losses(SMALL)
    assert replace(SMALL, local_steps=3).epoch_length(4800) == SMALL.epoch_length(1600)


def test_worker_momentum_is_of_the_sum_of_local_steps() -> None:
    found = []
    for momentum in (0.0, 0.9):
        model = build_normed(seed=0)
        parameters = flatten(model)
        config = replace(SMALL, attack="none", local_steps=2, worker_momentum=momentum)
        found.append(SimulatedTransport(model, MNIST, config, parameters).gradients(0).G)
    torch.testing.assert_close(found[1], 0.1 * found[0])


@both
def test_over_processes_the_numbers_are_the_simulations(server: RpcConfig | TcpConfig) -> None:
    options = {"worker_weights": irls.weights_from_batches(SIZES)}
    settings = {"rule": "fa", "rule_options": options, "split": "gamma", "gamma": 0.3}
    config = replace(SMALL, batch=SIZES, local_steps=2, **settings)
    assert losses(config, server) == losses(config)


# Gamma similarity


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.77, 1.0])
def test_the_sorted_part_is_byzfls(gamma: float) -> None:
    labels, workers, seed = MNIST.train_labels[:1003], 7, 3
    order = np.random.default_rng(seeds.derive_seed("split", seed, 0, 0)).permutation(1003)
    similar = int(gamma * 1003)
    order[similar:].sort()  # ByzFL takes the others in their order.
    theirs = byzfl.DataDistributor(
        {
            "data_distribution_name": "gamma_similarity_niid",
            "distribution_parameter": gamma,
            "nb_honest": workers,
            "batch_size": 1,
            "data_loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(labels)),
        }
    )
    theirs.iid_idx = lambda idx: np.array_split(idx, workers)  # without its shuffle by Python's generator
    expected = theirs.gamma_niid_idx(labels.numpy(), order)
    for part, other in zip(gamma_similarity(labels, workers, gamma, seed), expected, strict=True):
        assert np.array_equal(part, np.sort(other))


def test_every_image_is_one_workers_and_gamma_moves_from_classes_to_equal_shares() -> None:
    labels = MNIST.train_labels[:2000]
    shares = {}
    for gamma in (0.0, 0.5, 1.0):
        split = gamma_similarity(labels, 5, gamma, 1)
        assert np.array_equal(np.sort(np.concatenate(split)), np.arange(2000))
        shares[gamma] = np.mean([torch.bincount(labels[part], minlength=10).max().item() / part.size for part in split])
    assert shares[0.0] > shares[0.5] > shares[1.0]
    assert all(map(np.array_equal, gamma_similarity(labels, 5, 0.0, 1), by_class(labels, 5)))


def test_honest_workers_draw_from_their_parts_and_small_parts_are_refused() -> None:
    config = replace(SMALL, split="gamma", gamma=0.4)
    parts = worker_partitions(config, MNIST)
    assert sorted(parts) == [1, 2, 3]
    with pytest.raises(ValueError, match=r"^batch must be .*"):
        worker_partitions(replace(config, batch=len(MNIST.train_labels) // 3 + 1), MNIST)
