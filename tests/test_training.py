"""The configuration, the workers, the server and the loop: against plain torch wherever plain torch can do the same."""

import csv
import errno
import gc
import hashlib
import inspect
import json
import math
import os
import re
import shutil
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fa import models
from fa.attacks import make_attack
from fa.augment import recipes
from fa.data import Dataset, load
from fa.data.batches import normalise
from fa.data.dataset import hold_out
from fa.rules import make_rule
from fa.rules.decision import NOT_FINITE
from fa.training import RECORD_VERSION, TrainConfig, loop, train
from fa.training.evaluation import Evaluation
from fa.training.optimizer import SGD
from fa.training.parameter_vector import Buffers, flatten, views
from fa.training.records import USED, Run
from fa.training.schedule import schedule
from fa.training.transports.base import GatheredGradients
from fa.training.transports.simulation import SimulatedTransport
from fa.training.worker import Worker
from fa.utils import seeds
from fa.utils.devices import find_device
from fa.utils.validation import TooFewWorkersError
from tests.processes import printed_beside

SMALL = TrainConfig(rule="mean", workers=3, byzantine=1, iterations=3, batch=4, lr=0.05, attack="random")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load("mnist-mini")


def convnet(data: Dataset, seed: int = 0) -> nn.Module:
    return models.build("convnet", data.shape, data.classes, seed=seed)


def simulation(config: TrainConfig, data: Dataset, model: nn.Module | None = None) -> tuple[SimulatedTransport, Tensor]:
    model = model or convnet(data, config.seed)
    parameters = flatten(model)
    return SimulatedTransport(model, data, config, parameters), parameters


# The configuration


def test_config_round_trip() -> None:
    config = TrainConfig(rule_options={"m": 8, "preaggregators": ["unit"], "lam": 0.5}, lr=1, f=2)
    again = TrainConfig.from_json(config.to_json())
    assert again == config
    assert hash(again) == hash(config)
    assert again.options == {"preaggregators": ("unit",), "lam": 0.5, "m": 8}


def test_config_text_depends_on_the_values_alone() -> None:
    one = TrainConfig(rule_options={"m": 8, "lam": 1.0}, lr=1)
    other = TrainConfig(lr=1.0, rule_options=(("lam", 1.0), ("m", 8)))
    assert one.to_json() == other.to_json()


OF_ANY_TYPE = """
import numpy as np
from fa.training.config import TrainConfig

plain = TrainConfig(workers=7, byzantine=1, f=2, lr=0.5, seed=3, rule_options={"m": 4, "lam": 0.5})
numbers = {"workers": np.int64(7), "byzantine": np.int32(1), "f": np.uint8(2), "seed": np.int16(3)}
odd = TrainConfig(**numbers, lr=np.float32(0.5), rule_options={"m": np.int64(4), "lam": np.float32(0.5)})
assert odd.to_json() == plain.to_json()
assert (odd, hash(odd)) == (plain, hash(plain))
assert type(odd.workers) is type(odd.options["m"]) is int

for settings in SETTINGS:
    try:
        TrainConfig(**settings)
    except ValueError as error:
        print(error)
"""


def test_config_takes_numpys_numbers_and_refuses_other_types(tmp_path: Path) -> None:
    """In a process of its own, where nothing checks the types before the configuration does."""
    wrong: list[tuple[str, str]] = [
        ('{"rule_options": 5}', "5"),
        ('{"rule_options": "lam"}', "'lam'"),
        ('{"rule_options": {1: 2}}', "1"),
        ('{"workers": np.float64(15)}', "np.float64(15.0)"),
        ('{"workers": "15"}', "'15'"),
        ('{"lr": "0.1"}', "'0.1'"),
        ('{"lr": None}', "None"),
        ('{"dataset": 5}', "5"),
    ]
    code = OF_ANY_TYPE.replace("SETTINGS", f"[{', '.join(settings for settings, _ in wrong)}]")
    for line, (settings, value) in zip(printed_beside(code, tmp_path).splitlines(), wrong, strict=True):
        name = settings.split('"')[1]
        assert re.match(rf"{name} must be .*{re.escape(value)}", line), line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, r"^workers must be .*\b1\b.*\b0\b"),
        ({"batch": -3}, r"^batch must be .*\b1\b.*-3\b"),
        ({"iterations": True}, r"^iterations must be .*\bTrue\b"),
        ({"byzantine": 15}, r"^byzantine must be .*\bworkers=15\b.*\b15\b"),
        ({"byzantine": -1}, r"^byzantine must be .*\b0\b.*-1\b"),
        ({"f": 15}, r"^f must be .*\bworkers=15\b.*\b15\b"),
        ({"lr": 0}, r"^lr must be .*\b0\.0\b"),
        ({"lr": math.nan}, r"^lr must be .*\bnan\b"),
        ({"momentum": 1.0}, r"^momentum must be .*\b1\.0\b"),
        ({"weight_decay": -1e-4}, r"^weight_decay must be .*-0\.0001\b"),
        ({"lr_decay": 0.0}, r"^lr_decay must be .*\b0\.0\b"),
        ({"lr_decay": 1.5}, r"^lr_decay must be .*\b1\.5\b"),
        ({"seed": -1}, r"^seed must be .*-1\b"),
        ({"sampling": "often"}, r"^sampling must be .*\brandom, cycled\b.*'often'"),
        ({"attack": ""}, r"^attack must be .*''"),
        ({"rule_options": {"lam": math.inf}}, r"^rule_options\['lam'\] must be .*\binf\b"),
        ({"rule_options": {"lam": {}}}, r"^rule_options\['lam'\] must be .*{}"),
        ({"rule_options": {"lam": np.float32("nan")}}, r"^rule_options\['lam'\] must be .*\bnan\b"),
        ({"rule_options": {"lam": np.complex64(1)}}, r"^rule_options\['lam'\] must be .*\(1"),
        ({"rule_options": {"f": 2}}, r"^rule_options must be .*{'f': 2}"),
        ({"rule_options": {"name": "fa"}}, r"^rule_options must be .*{'name': 'fa'}"),
    ],
)
def test_config_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_unknown_key_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\blearning_rate\b"):
        TrainConfig.from_json('{"learning_rate": 0.1}')


def test_epoch_is_the_training_set_once_among_all_workers() -> None:
    assert TrainConfig(workers=15, batch=128).epoch_length(50_000) == 26
    assert TrainConfig(workers=15, batch=128).epoch_length(100) == 1


# The vector of parameters


def test_flatten_keeps_the_model(data: Dataset) -> None:
    model, flat = convnet(data).eval(), convnet(data).eval()
    vector = flatten(flat)
    assert vector.shape == (21_840,)
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(flat(images), model(images), atol=1e-6)
    for parameter, own in zip(flat.parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter, own)
    vector.zero_()
    assert not any(parameter.any() for parameter in flat.parameters())


# A worker


def reference_gradient(worker: Worker, model: nn.Module, config: TrainConfig, iteration: int) -> tuple[Tensor, float]:
    """The same worker's gradient by plain autograd on an untouched copy of the model, in the row's order."""
    images, labels = worker.minibatch(iteration)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive_seed("dropout", config.seed, worker.rank, iteration))
        loss = F.cross_entropy(model(images), labels)
    row = torch.empty(sum(parameter.numel() for parameter in model.parameters()))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for view, gradient in zip(views(row, model), gradients, strict=True):
        view.copy_(gradient)
    return row, loss.item()


@pytest.mark.parametrize("iteration", [0, 5])
def test_gradients_are_those_of_plain_autograd(data: Dataset, iteration: int) -> None:
    """Dropout included: equal to float32's rounding, although the convolutions run in another memory layout."""
    config = replace(SMALL, attack="none")
    transport, _ = simulation(config, data)
    gathered = transport.gradients(iteration)
    assert not gathered.missing
    G, loss = gathered.G, gathered.loss
    plain = [reference_gradient(w, convnet(data, config.seed), config, iteration) for w in transport.workers]
    for row, (expected, _) in zip(G, plain, strict=True):
        assert torch.allclose(row, expected, rtol=1e-4, atol=1e-6)
        assert expected.any()
    assert float(loss) == pytest.approx(sum(honest for _, honest in plain[1:]) / 2, rel=1e-5)


def test_gradients_are_those_at_the_vector_of_the_constructor(data: Dataset) -> None:
    """A caller cannot ask for those at another vector: `gradients` takes the iteration alone."""
    transport, parameters = simulation(SMALL, data)
    assert list(inspect.signature(transport.gradients).parameters) == ["iteration"]
    first = transport.gradients(0).G.clone()
    parameters.mul_(0.5)
    elsewhere, _ = simulation(SMALL, data, model=_halved(convnet(data, SMALL.seed)))
    assert torch.equal(transport.gradients(0).G, elsewhere.gradients(0).G)
    assert not torch.equal(transport.gradients(0).G, first)


def _halved(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    return model


@pytest.mark.draws_globally  # dropout
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_stays_on_the_models_device(accumulate: int, data: Dataset) -> None:
    """A conversion would move it to the default device, which is the CPU in a run on a GPU."""
    transport, _ = simulation(replace(SMALL, accumulate=accumulate), data)
    worker = transport.workers[-1]
    pair = worker.minibatch(0)
    with torch.device("meta"):
        assert worker.compute(*pair).device == torch.device("cpu")


def test_rows_do_not_depend_on_what_was_there(data: Dataset) -> None:
    """The backward pass adds to p.grad: a row that is not zeroed first would add up the iterations."""
    transport, _ = simulation(SMALL, data)
    first = transport.gradients(0).G.clone()
    assert not torch.equal(transport.gradients(1).G, first)
    assert torch.equal(transport.gradients(0).G, first)


@pytest.mark.parametrize(("attack", "computed"), [("random", [1, 2]), ("sign_flip", [0, 1, 2])])
def test_faulty_workers_compute_only_what_their_attack_needs(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, attack: str, computed: list[int]
) -> None:
    ranks = []
    gradient = Worker.write_gradient

    def counted(self: Worker, iteration: int) -> Tensor:
        ranks.append(self.rank)
        return gradient(self, iteration)

    monkeypatch.setattr(Worker, "write_gradient", counted)
    transport, parameters = simulation(replace(SMALL, attack=attack), data)
    transport.gradients(0)
    assert ranks == computed


# The server


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 5e-4), (0.0, 0.0), (0.9, 0.0), (0.0, 1e-2)])
def test_the_step_is_that_of_torch(momentum: float, weight_decay: float) -> None:
    """3 epochs of 2 iterations, the rate times 0.2 after each; to the bit until torch's schedule rounds it its way."""
    config = TrainConfig(lr=0.1, momentum=momentum, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(103, generator=generator)
    own, expected = start.clone(), nn.Parameter(start.clone())
    server = SGD(own, config, decay_every=2)
    optimizer = torch.optim.SGD([expected], lr=0.1, momentum=momentum, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.2)
    for iteration in range(6):
        direction = torch.randn(103, generator=generator)
        expected.grad = direction.clone()
        server.step(direction, iteration)
        assert server.rate(iteration) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        schedule.step()
        assert torch.allclose(own, expected.detach(), rtol=0 if iteration < 2 else 1e-6, atol=0)
    assert not torch.equal(own, start)


SERVER_BY_NAME = """
from fa.training import TrainConfig, train

try:
    train(TrainConfig(), server="tcp")
except ValueError as error:
    print(error)
"""


def test_a_server_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    assert re.match(r"server\b.*'tcp'", printed_beside(SERVER_BY_NAME, tmp_path))


def test_the_mean_of_one_worker_is_ordinary_training(data: Dataset) -> None:
    """The loop, the mean rule and the server against twenty lines of plain torch."""
    config = TrainConfig(
        rule="mean", workers=1, byzantine=0, attack="none", iterations=8, batch=16, lr=0.05, momentum=0.9
    )
    transport, parameters = simulation(config, data)
    loop.Loop(config, make_rule("mean"), transport, parameters, 10_000).run(lambda: 0.0, None)

    model = convnet(data, config.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for iteration in range(8):
        images, labels = transport.workers[0].minibatch(iteration)
        optimizer.zero_grad()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.derive_seed("dropout", config.seed, 0, iteration))
            F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    expected = torch.empty_like(parameters)
    for view, parameter in zip(views(expected, model), model.parameters(), strict=True):
        view.copy_(parameter.detach())
    assert torch.allclose(parameters, expected, rtol=1e-3, atol=1e-5)


class Normed(nn.Sequential):
    """The smallest model with batch norm, and without anything random."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 10))


def test_batch_norm_statistics_are_each_workers_own(data: Dataset) -> None:
    """After one minibatch 0.9 times the initial 0 plus 0.1 times its own mean; evaluation takes the honest average."""
    with torch.random.fork_rng(devices=[]):
        model = Normed()
    transport, parameters = simulation(SMALL, data, model)
    transport.gradients(0)
    means = [worker.minibatch(0)[0].flatten(1).mean(dim=0) for worker in transport.workers]
    for worker, buffers in zip((1, 2), transport.statistics()[1:], strict=True):
        assert torch.allclose(buffers.tensors[0], 0.1 * means[worker], atol=1e-6)
    assert not torch.allclose(means[1], means[2], atol=1e-2)

    Evaluation(model, data, torch.device("cpu")).accuracy(transport.statistics()[1:])
    assert torch.allclose(model[1].running_mean, 0.1 * (means[1] + means[2]) / 2, atol=1e-6)
    assert int(model[1].num_batches_tracked) == 1
    assert torch.allclose(transport.statistics()[1].tensors[0], 0.1 * means[1], atol=1e-6), "evaluating changed it"


def test_statistics_that_are_not_finite_or_were_never_sent_are_not_averaged(data: Dataset) -> None:
    """Worker 0 never delivers, worker 1 overflows, worker 2 alone counts; if both overflow, the model has diverged."""
    with torch.random.fork_rng(devices=[]):
        model = Normed()
    transport, _ = simulation(SMALL, data, model)
    absent, overflown, valid = transport.statistics()
    evaluation = Evaluation(model, data, torch.device("cpu"))
    transport.gradients(0)
    assert not absent.changed
    before = [tensor.clone() for tensor in valid.tensors]
    overflown.tensors[1][3] = math.inf
    evaluation.accuracy([absent, overflown, valid])
    assert all(map(torch.equal, model[1].buffers(), before))

    overflown.tensors[1][3] = 1.0  # Finite statistics count again.
    evaluation.accuracy([absent, overflown, valid])
    mean = torch.stack([overflown.tensors[1], valid.tensors[1]]).mean(dim=0)
    assert torch.equal(model[1].running_var, mean)

    for buffers in (overflown, valid):
        buffers.tensors[1].fill_(math.nan)
    evaluation.accuracy([absent, overflown, valid])
    assert model[1].running_var.isnan().all()


def test_a_worker_whose_minibatch_overflows_does_not_spoil_the_accuracy(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss excludes it, and its statistics of NaN leave the mean at the other honest worker's."""
    with torch.random.fork_rng(devices=[]):
        model = Normed()
    transport, _ = simulation(SMALL, data, model)
    plain = Worker.write_gradient

    def write(worker: Worker, iteration: int) -> Tensor:
        loss = plain(worker, iteration)
        if worker.rank == 1:
            for tensor in worker.buffers.tensors[:2]:
                tensor.fill_(math.nan)
            return loss * math.nan
        return loss

    monkeypatch.setattr(Worker, "write_gradient", write)
    assert 1 in transport.gradients(0).missing
    Evaluation(model, data, torch.device("cpu")).accuracy(transport.statistics()[1:])
    assert torch.equal(model[1].running_mean, transport.statistics()[2].tensors[0])


def test_accuracy_is_the_share_of_right_answers(data: Dataset) -> None:
    """Against a loop over single images; and with NaN everywhere it is the share of class 0, argmax's first NaN."""
    model, cpu = convnet(data), torch.device("cpu")
    evaluation = Evaluation(model, data, cpu)
    few = replace(data, test_images=data.test_images[:600], test_labels=data.test_labels[:600])
    model.eval()
    with torch.no_grad():
        answers = [int(model(normalise(image[None], few, cpu)).argmax()) for image in few.test_images]
    right = sum(answer == int(label) for answer, label in zip(answers, few.test_labels, strict=True))
    assert Evaluation(model, few, torch.device("cpu")).accuracy([Buffers(model)]) == pytest.approx(
        right / 600, abs=2 / 600
    )
    flatten(model).fill_(math.nan)
    zeros = float((data.test_labels == 0).float().mean())
    assert evaluation.accuracy([Buffers(model)]) == pytest.approx(zeros)


# Whole runs


def fingerprint(run: Run) -> str:
    """Everything in a run but the clock."""
    rows = [(point.iteration, point.train_loss.hex(), point.test_accuracy) for point in run.curve]
    return hashlib.sha256(repr((rows, run.workers)).encode()).hexdigest()


DETERMINISTIC = TrainConfig(
    rule="fa", workers=5, byzantine=1, attack="drop", iterations=4, batch=8, lr=0.05, dataset="mnist-mini"
)

AGAIN = """
from fa.training import TrainConfig, train
run = train(TrainConfig.from_json(SETTINGS), threads=1)
print(repr(([(p.iteration, p.train_loss.hex(), p.test_accuracy) for p in run.curve], run.workers)))
"""


def test_runs_are_equal_to_the_bit_here_and_in_another_process(tmp_path: Path) -> None:
    first, second = (train(DETERMINISTIC, threads=1) for _ in range(2))
    assert fingerprint(first) == fingerprint(second)
    there = printed_beside(AGAIN.replace("SETTINGS", repr(DETERMINISTIC.to_json())), tmp_path)
    assert hashlib.sha256(there.strip().encode()).hexdigest() == fingerprint(first)
    other = train(replace(DETERMINISTIC, seed=2022), threads=1)
    assert fingerprint(other) != fingerprint(first)


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    return model


def test_accumulated_gradients_are_those_of_one_larger_minibatch(data: Dataset) -> None:
    found = []
    for config in (replace(SMALL, accumulate=3, batch=4), replace(SMALL, batch=12)):
        transport, parameters = simulation(config, data, without_dropout(convnet(data)))
        gathered = transport.gradients(5)
        found.append((gathered.G.clone(), float(gathered.loss)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-7)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)
    assert replace(SMALL, accumulate=3, batch=4).epoch_length(1000) == replace(SMALL, batch=12).epoch_length(1000)
    with pytest.raises(ValueError, match=r"^batch must be .*\b10000\b.*\b12000\b"):
        train(replace(SMALL, batch=4000, accumulate=3))


@pytest.mark.parametrize("batch", [7, 8])
def test_the_short_last_minibatch_of_a_pass_is_accumulated_as_a_whole(data: Dataset, batch: int) -> None:
    """It has 8 or 4 images of 2,500: parts of 7 and 1, or one part."""
    whole = replace(SMALL, workers=4, sampling="sequential", batch=2 * batch)
    assert len(data.train_labels) // whole.workers == 2500
    found = []
    for config in (replace(whole, accumulate=2, batch=batch), whole):
        transport, _ = simulation(config, data, without_dropout(convnet(data)))
        gathered = transport.gradients(2500 // (2 * batch))
        found.append((gathered.G.clone(), float(gathered.loss)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-7)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)


class Normalised(nn.Module):
    """A model with batch normalisation over single numbers, as ResNet-18 has on images of 32 x 32."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


@pytest.mark.parametrize(
    ("settings", "valid"),
    [
        ({"batch": 7}, False),  # 2,500 = 357 * 7 + 1
        ({"batch": 8}, True),
        ({"batch": 3, "accumulate": 17}, False),  # 2,500 = 49 * 51 + 1
        ({"batch": (8, 8, 8, 7)}, False),
        ({"batch": 7, "iterations": 357}, True),  # the run ends before that minibatch
        ({"batch": 7, "iterations": 358}, False),
        ({"batch": (7, 8, 8, 8)}, True),  # a Byzantine worker's gradient is not computed
        ({"batch": 7, "sampling": "random"}, True),
        ({"batch": 1, "sampling": "random"}, False),
    ],
)
def test_a_single_image_that_batch_norm_cannot_take_is_refused_at_the_start(
    data: Dataset, settings: dict[str, Any], valid: bool
) -> None:
    config = replace(SMALL, workers=4, **({"sampling": "sequential", "iterations": 1000} | settings))
    with torch.random.fork_rng():
        model = Normalised()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    simulation(config, data, convnet(data))  # a model without batch normalisation takes it
    if valid:
        simulation(config, data, model)
    else:
        with pytest.raises(ValueError, match=r"^batch must "):
            simulation(config, data, model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_one_overflow_does_not_remain_in_a_workers_momentum(data: Dataset) -> None:
    config = replace(SMALL, byzantine=0, attack="none", worker_momentum=0.9, iterations=4)
    transport, parameters = simulation(config, data, without_dropout(convnet(data)))
    before = parameters.clone()
    finite = []
    for iteration in range(4):
        parameters.fill_(3e38) if iteration == 1 else parameters.copy_(before)
        finite.append(bool(transport.gradients(iteration).G.isfinite().all()))
    assert finite == [True, False, True, True]


def test_bfloat16_is_near_float32_and_its_gradients_and_server_are_float32(data: Dataset) -> None:
    found = {}
    for precision in ("float32", "bfloat16"):
        config = replace(SMALL, precision=precision, attack="none", batch=32)
        transport, parameters = simulation(config, data, without_dropout(convnet(data)))
        found[precision] = transport.gradients(0).G.clone()
        assert found[precision].dtype == parameters.dtype == torch.float32
    apart = (found["bfloat16"] - found["float32"]).norm() / found["float32"].norm()
    assert 1e-5 < apart < 0.05
    trained = train(replace(SMALL, precision="bfloat16", iterations=30, attack="none", batch=32), threads=1)
    plain = train(replace(SMALL, iterations=30, attack="none", batch=32), threads=1)
    assert trained.curve[-1].train_loss == pytest.approx(plain.curve[-1].train_loss, rel=0.1)


def test_one_pass_in_float32_is_said_of_no_configuration() -> None:
    assert {"precision", "accumulate", "layers"}.isdisjoint(json.loads(SMALL.to_json()))  # whose hash is what it was
    changed = replace(SMALL, precision="bfloat16", accumulate=2)
    assert TrainConfig.from_json(changed.to_json()) == changed


@pytest.mark.parametrize("augmentation", [{}, {"noise": (0.1,)}], ids=["plain", "augmented"])
def test_a_run_keeps_no_data_and_makes_its_attack_and_its_images_once(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, augmentation: dict[str, Any]
) -> None:
    loaded: list[weakref.ref[Dataset]] = []
    calls: Counter[str] = Counter()

    def fresh(config: TrainConfig) -> Dataset:
        own = replace(data)
        loaded.append(weakref.ref(own))
        return own

    def augmented(*arguments: Any) -> Dataset:
        calls["images"] += 1
        own = recipes.augmented_dataset(*arguments)
        loaded.append(weakref.ref(own))
        return own

    def attack(*arguments: Any, **options: Any) -> Any:
        calls["attack"] += 1
        return make_attack(*arguments, **options)

    monkeypatch.setattr(loop, "load_dataset", fresh)
    monkeypatch.setattr("fa.training.setup.augmented_dataset", augmented)
    monkeypatch.setattr("fa.training.setup.make_attack", attack)
    train(replace(SMALL, attack="none", byzantine=1, iterations=1, augmentation=augmentation), threads=1)
    gc.collect()
    assert [kept() for kept in loaded] == [None] * (1 + bool(augmentation))
    assert calls == {"attack": 1, **({"images": 1} if augmentation else {})}


def test_the_schedule_depends_on_the_size_of_the_loaded_data_set(tmp_path: Path) -> None:
    """The default is one and the same in Python, and for a folder of images: an epoch has five iterations here."""
    folder = recipes.write_augmented(recipes.Recipe(noise=(0.0,)), load("mnist-mini"), tmp_path / "folder", seed=0)
    settings = {"rule": "mean", "iterations": 3}
    named = train(TrainConfig(**settings), threads=1)
    assert named.schedule == (5, 52, 1)
    assert [point.iteration for point in named.curve] == [1, 2, 3]
    built = train(TrainConfig(dataset=str(folder), **settings), threads=1)
    assert (built.schedule, built.workers) == (named.schedule, named.workers)
    assert built.description()["schedule"] == {"epoch": 5, "decay_epochs": 52, "evaluate_every": 1}
    assert named.config == TrainConfig(**settings)  # with which a store finds it


@pytest.mark.parametrize(
    ("settings", "size", "expected"),
    [
        ({}, 50_000, (26, 10, 26)),  # the paper's: ten epochs
        ({"iterations": 2000}, 10_000, (5, 52, 5)),
        ({"iterations": 20}, 10_000, (5, 52, 2)),
        ({"lr_decay_epochs": 10, "evaluate_every": 0, "iterations": 20}, 10_000, (5, 10, 5)),  # the figures'
        ({"lr_decay_epochs": 3, "evaluate_every": 7}, 10_000, (5, 3, 7)),
    ],
)
def test_settings_that_are_none_follow_the_size(settings: dict[str, Any], size: int, expected: tuple) -> None:
    assert schedule(TrainConfig(**settings), size) == expected


def test_older_configurations_without_an_interval_evaluate_once_an_epoch() -> None:
    older = {name: value for name, value in json.loads(SMALL.to_json()).items() if name != "evaluate_every"}
    config = TrainConfig.from_json(json.dumps(older))
    assert config.evaluate_every == 0
    assert json.loads(config.to_json()) == older


def test_the_curve_has_as_many_points_as_asked_for() -> None:
    """The points alone change, not the run: an evaluation leaves no trace in it."""
    often = train(replace(SMALL, iterations=5, evaluate_every=2), threads=1)
    seldom = train(replace(SMALL, iterations=5, evaluate_every=0), threads=1)
    assert [(point.iteration, point.epoch) for point in often.curve] == [(2, 1), (4, 1), (5, 1)]
    assert (often.curve[-1].test_accuracy, often.workers) == (seldom.final_accuracy, seldom.workers)


def test_a_run_with_a_validation_share_is_evaluated_on_that_and_never_sees_the_test_images(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, validation=0.2, attack="none")
    expected = train(config, threads=1)
    held = hold_out(data, 0.2)
    assert "validation" not in json.loads(SMALL.to_json())  # whose hash is what it was
    without = replace(data, test_images=data.test_images[:0], test_labels=data.test_labels[:0])
    monkeypatch.setattr("fa.training.setup.load", lambda name: without)
    assert train(config, threads=1).curve[-1].test_accuracy == expected.final_accuracy
    monkeypatch.setattr("fa.training.setup.load", lambda name: held)
    assert fingerprint(train(replace(config, validation=0.0), threads=1)) == fingerprint(expected)


def test_the_curve_has_each_epoch_and_the_end() -> None:
    """10,000 images among 3 workers of 1,600 make epochs of 2 iterations."""
    run = train(replace(SMALL, batch=1600, iterations=3, evaluate_every=0), threads=1)
    assert [(point.iteration, point.epoch) for point in run.curve] == [(2, 1), (3, 2)]
    assert run.final_accuracy == run.curve[-1].test_accuracy
    assert [point.seconds for point in run.curve] == sorted(point.seconds for point in run.curve)
    assert run.seconds > run.curve[-1].seconds > run.curve[0].seconds  # a clock that runs, and the last evaluation


def test_training_learns_and_the_mean_with_one_faulty_worker_does_not() -> None:
    config = TrainConfig(rule="mean", workers=5, byzantine=1, attack="none", iterations=50, batch=32, lr=0.1)
    assert train(config, threads=1).final_accuracy > 0.7
    assert train(replace(config, attack="random"), threads=1).final_accuracy < 0.3
    assert train(replace(config, attack="random", rule="multi_krum"), threads=1).final_accuracy > 0.5


NUMBERS = {1: {"fa": (2.2891765, 0.8490588), "bulyan": (2.3063362, None)}}
"""By RECORD_VERSION: the last loss of two short runs, and the explained variance of worker 0."""


@pytest.mark.parametrize(
    ("rule", "options"), [("fa", {"lam": 1.0, "preaggregators": ("krum", "median_norm")}), ("bulyan", {})]
)
def test_numbers_change_only_with_the_record_version(rule: str, options: dict[str, Any]) -> None:
    """Else a run store would hand out records that today's code no longer gives."""
    config = TrainConfig(
        rule=rule,
        rule_options=options,
        workers=7,
        byzantine=1,
        attack="sign_flip",
        iterations=6,
        batch=8,
        lr=0.05,
        momentum=0.9,
    )
    run = train(config, threads=1)
    loss, value = NUMBERS[RECORD_VERSION][rule]
    assert run.curve[-1].train_loss == pytest.approx(loss, rel=1e-4)
    assert run.workers[-7].value == (None if value is None else pytest.approx(value, rel=1e-3))


def test_progress_is_told_after_each_iteration() -> None:
    told: list[Any] = []
    train(replace(SMALL, evaluate_every=0), progress=told.append, threads=1)
    assert [state.iteration for state in told] == [1, 2, 3]
    assert [state.accuracy is None for state in told] == [True, True, False]
    assert all(torch.isfinite(state.loss) for state in told)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    run = train(SMALL, threads=1)
    assert run.threads == 1
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match=r"^threads must be .*\b1\b.*\b0\b"):
        train(SMALL, threads=0)
    with pytest.raises(ValueError, match=r"^threads must be .*\b1024\b.*\b1025\b"):
        train(SMALL, threads=1025)  # OpenMP would end the process


# What goes wrong


@pytest.mark.parametrize(("rule", "attack"), [("mean", "random"), ("mean", "none"), ("median", "none"), ("fa", "nan")])
def test_a_run_that_diverges_goes_on_and_says_so(tmp_path: Path, rule: str, attack: str) -> None:
    run = train(replace(SMALL, rule=rule, attack=attack, lr=1e38, iterations=8), out=tmp_path / "run", threads=1)
    assert not math.isfinite(run.curve[-1].train_loss)
    assert 0 <= run.final_accuracy <= 0.3
    assert len(run.workers) == 8 * 3
    assert all(row.status != USED for row in run.workers if row.iteration == 8 and row.worker)
    rows = read(tmp_path / "run" / "curve.csv")
    assert rows[-1]["train_loss"] in ("nan", "inf")
    assert all(cell for row in rows for cell in row.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "krum"}, r"\bkrum\b.*\b2f \+ 3\b.*\b3\b.*\b1\b"),
        (
            {"workers": 7, "rule": "bulyan", "rule_options": {"preaggregators": ("bucketing",)}},
            r"\bbulyan\b.*\b4f \+ 3\b",
        ),
        ({"rule": "fa", "rule_options": {"m": 4}}, r"^m must be .*\b3\b.*\b4\b"),
        ({"workers": 7, "rule": "multi_krum", "rule_options": {"keep": 8}}, r"^keep must be .*\b7\b.*\b8\b"),
        ({"rule": "median", "rule_options": {"m": 3}}, r"'median'.*'m'"),
        ({"attack": "lie"}, r"^attack must be .*'lie'"),
        ({"device": "abacus"}, r"^device must be .*'abacus'"),
        ({"device": "cpu:3"}, r"^device must be .*'cpu:3'"),
    ],
)
def test_what_can_be_checked_is_checked_before_the_data_are_read(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(loop, "load_dataset", lambda config: pytest.fail("began"))
    with pytest.raises(ValueError, match=message):
        train(replace(SMALL, **settings), threads=1)


@pytest.mark.parametrize(
    ("settings", "most"),
    [({}, 10_000), ({"sampling": "cycled"}, 3333)],
)
def test_a_batch_that_is_too_large_is_refused_before_the_model_is_built(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], most: int
) -> None:
    monkeypatch.setattr(models, "build", lambda *_, **__: pytest.fail("began"))
    with pytest.raises(ValueError, match=rf"^batch must be .*\b{most}\b.*\b10001\b"):
        train(replace(SMALL, batch=10_001, **settings), threads=1)


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [find_device(name).index for name in ("cuda", "cuda:1")] == [None, 1]
    with pytest.raises(ValueError, match=r"^device must be .*\bcuda:1\b.*'cuda:2'"):
        find_device("cuda:2")


class Scripted:
    """A transport of three workers that sends what it was given, iteration by iteration."""

    def __init__(self, *sent: GatheredGradients) -> None:
        self.sent = sent

    def gradients(self, iteration: int) -> GatheredGradients:
        return self.sent[iteration]

    def statistics(self) -> list[Buffers]:
        return []

    def momenta(self) -> list[Tensor]:
        return []


def test_the_server_steps_while_enough_gradients_are_finite_whatever_the_loss_is() -> None:
    """The first iteration is all finite; then one honest worker overflows, and its loss with it; then all do."""
    inf = torch.tensor(math.inf)
    one, none = torch.ones(3, 4), torch.full((3, 4), math.nan)
    one[2] = math.nan
    transport = Scripted(
        GatheredGradients(torch.ones(3, 4), torch.tensor(1.0)),
        GatheredGradients(one, inf),
        GatheredGradients(none, inf),
    )
    config = replace(SMALL, byzantine=0, momentum=0, weight_decay=0, lr=1)
    parameters, seen = torch.zeros(4), []
    told = loop.Loop(config, make_rule("mean"), transport, parameters, 12)
    workers = told.run(lambda: 0.0, lambda _: seen.append(float(parameters[0]))).workers
    assert seen == [-1, -2, -2]
    assert [row.status == USED for row in workers[3:6]] == [True, True, False]
    assert NOT_FINITE in workers[5].status
    (reason,) = {row.status for row in workers[6:]}  # the loss, whatever the gradients are
    assert reason not in (USED, workers[5].status)


def test_an_error_that_is_no_condition_is_not_taken_for_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    rule = make_rule("mean")
    monkeypatch.setattr(type(rule), "aggregate", wrong)
    transport = Scripted(GatheredGradients(torch.full((3, 4), math.nan), torch.tensor(math.nan)))
    with pytest.raises(ValueError, match=r"^a bug$"):
        loop.Loop(SMALL, rule, transport, torch.zeros(4), 12).run(lambda: 0.0, None)


def test_a_condition_that_no_longer_holds_stops_the_run() -> None:
    """Multi-Krum told of nobody faulty needs 3 gradients; NaN from 1 of 3 workers leaves 2."""
    config = replace(SMALL, rule="multi_krum", f=0)
    train(replace(config, attack="zero"), threads=1)
    with pytest.raises(ValueError, match=r"\b1: .*\bmulti_krum\b.*\b1 of 3\b"):
        train(replace(config, attack="nan"), threads=1)


def lose(monkeypatch: pytest.MonkeyPatch, *ranks: int, iteration: int = 1) -> None:
    """From an iteration on, the losses of these ranks are NaN, and their gradients finite."""
    plain = Worker.write_gradient

    def write(worker: Worker, now: int) -> Tensor:
        loss = plain(worker, now)
        return loss * torch.nan if worker.rank in ranks and now >= iteration else loss

    monkeypatch.setattr(Worker, "write_gradient", write)


def test_a_loss_of_nan_excludes_its_worker_in_the_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    lose(monkeypatch, 2)
    config = replace(SMALL, workers=5, byzantine=1, rule="multi_krum", attack="collude", f=1, iterations=3)
    seen: list[float] = []
    rows = train(config, threads=1, progress=lambda state: seen.append(float(state.loss))).workers
    statuses = [row.status for row in rows if row.worker == 2]
    assert "nan" not in statuses[0]
    assert all("loss of nan" in status for status in statuses[1:])
    assert all(map(math.isfinite, seen))


@pytest.mark.parametrize("ranks", [(1, 2), (0, 2, 3)])
def test_losses_of_nan_end_a_run_whose_rule_needs_more_workers(
    monkeypatch: pytest.MonkeyPatch, ranks: tuple[int, ...]
) -> None:
    lose(monkeypatch, *ranks)
    config = replace(SMALL, workers=4, byzantine=0, rule="multi_krum", f=0)
    with pytest.raises(
        TooFewWorkersError, match=r"\b2: .*\bmulti_krum\b.*" + "".join(rf".*worker {r}: " for r in ranks)
    ):
        train(config, threads=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "best"}, r"^rule must be .*'best'"),
        ({"dataset": "mnits"}, r"^dataset must be .*'mnits'"),
        ({"model": "resnet-18000"}, r"^model must be .*'resnet-18000'"),
        ({"device": "meta"}, r"^device must be .*'meta'"),
    ],
)
def test_bad_names_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(replace(SMALL, **settings), threads=1)


# The records


@pytest.fixture(scope="module")
def run() -> Run:
    return train(replace(DETERMINISTIC, attack="nan", evaluate_every=0), threads=1)


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_phase_has_the_seconds_of_its_work_and_the_run_has_all(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def lasting(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def longer(*arguments: Any) -> Any:
            now[0] += seconds
            return function(*arguments)

        return longer

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(SimulatedTransport, "gradients", lasting(10, SimulatedTransport.gradients))
    monkeypatch.setattr(Evaluation, "accuracy", lasting(1000, Evaluation.accuracy))
    run = train(replace(SMALL, evaluate_every=0), threads=1)
    assert run.seconds_of == {"gather": 10 * SMALL.iterations, "aggregate": 0, "update": 0, "evaluate": 1000}
    assert run.seconds == 10 * SMALL.iterations + 2 * 1000  # the initial parameters' accuracy too
    assert run.curve[-1].seconds == 10 * SMALL.iterations


def test_records(run: Run, tmp_path: Path) -> None:
    target = run.write(tmp_path / "deep" / "run")
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "curve.csv", "workers.csv"]
    assert [path.name for path in target.parent.iterdir()] == ["run"]

    curve = read(target / "curve.csv")
    assert list(curve[0]) == ["iteration", "epoch", "seconds", "train_loss", "test_accuracy"]
    assert [int(row["iteration"]) for row in curve] == [4]
    assert float(curve[-1]["test_accuracy"]) == pytest.approx(run.final_accuracy, rel=1e-5)

    workers = read(target / "workers.csv")
    assert list(workers[0]) == ["iteration", "worker", "value", "weight", "status"]
    assert [(int(row["iteration"]), int(row["worker"])) for row in workers] == [
        (iteration, worker) for iteration in range(1, 5) for worker in range(5)
    ]
    assert all(cell for row in (*curve, *workers) for cell in row.values())
    faulty, *honest = workers[:5]
    assert faulty["value"] == "none"
    assert NOT_FINITE in faulty["status"]
    assert all(row["status"] == USED and 0 <= float(row["value"]) <= 1 for row in honest)

    description = json.loads((target / "config.json").read_text())
    assert TrainConfig.from_json(json.dumps(description["config"])) == run.config
    assert description["data_checksum"] == load("mnist-mini").checksum
    assert set(description["seconds_of"]) == {"gather", "aggregate", "update", "evaluate"}
    assert 0 < min(description["seconds_of"].values())
    assert sum(description["seconds_of"].values()) <= description["seconds"]
    assert set(description["versions"]) == {"fa", "torch", "numpy", "python"}
    assert description["versions"]["torch"] == torch.__version__
    assert description["threads"] == 1
    assert description["hardware"]["device"] == "cpu"


def test_rules_without_weights_or_values_say_none(tmp_path: Path) -> None:
    run = train(replace(SMALL, rule="median", iterations=1), out=tmp_path / "run", threads=1)
    assert [(row.value, row.weight) for row in run.workers] == [(None, None)] * 3
    assert {(row["value"], row["weight"]) for row in read(tmp_path / "run" / "workers.csv")} == {("none", "none")}


def records(error: ValueError) -> Path:
    """The folder that a message names besides `out`, which holds the records of a finished run."""
    (folder,) = (path for path in map(Path, re.findall(r"/[^\s'\",;:]+", str(error))) if (path / "curve.csv").is_file())
    return folder


def occupied(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")


@pytest.mark.parametrize("occupy", [occupied, lambda path: path.write_text("mine"), lambda path: path.symlink_to(".")])
def test_what_is_there_is_not_overwritten(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, occupy: Callable[[Path], Any]
) -> None:
    occupy(tmp_path / "run")
    with pytest.raises(ValueError, match=rf"\bout must be .*{tmp_path / 'run'}") as refused:
        run.write(tmp_path / "run")
    rescued = records(refused.value)
    assert sorted(path.name for path in rescued.iterdir()) == ["config.json", "curve.csv", "workers.csv"]
    shutil.rmtree(rescued)
    monkeypatch.setattr(loop, "load_dataset", lambda config: pytest.fail("began"))
    with pytest.raises(ValueError, match=rf"^out must be .*{tmp_path / 'run'}"):
        train(SMALL, out=tmp_path / "run")


def test_a_failing_write_leaves_nothing(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ValueError, match=rf"{os.strerror(errno.ENOSPC)}.*{tmp_path / 'run'}\b"):
        run.write(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def locked(path: Path) -> None:
    path.mkdir()
    path.chmod(0o555)


@pytest.mark.parametrize("close", [locked, lambda path: path.write_text("mine")], ids=["locked", "a file"])
@pytest.mark.parametrize("out", ["parent", "parent/run", "parent/deep/run"])
def test_where_nothing_can_be_written_nothing_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, close: Callable[[Path], Any], out: str
) -> None:
    close(tmp_path / "parent")
    if os.access(tmp_path / "parent", os.W_OK) and (tmp_path / "parent").is_dir():
        pytest.skip("superuser")
    monkeypatch.setattr(loop, "load_dataset", lambda config: pytest.fail("began"))
    with pytest.raises(ValueError, match=r"^out must be .*/parent\b"):
        train(SMALL, out=tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]


@pytest.mark.parametrize("out", [".", "../here", "../new", "run"])
def test_a_relative_path_is_of_the_folder_in_which_the_run_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """Also the working directory itself, which stays the same directory: a shell in it sees the files."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    inode = here.stat().st_ino
    train(SMALL, out=out, progress=lambda _: os.chdir("/"), threads=1)
    assert sorted(path.name for path in (here / out).iterdir()) == ["config.json", "curve.csv", "workers.csv"]
    assert here.stat().st_ino == inode
    found = sorted(path.name for path in tmp_path.rglob("*") if path.is_dir())
    assert found == sorted({"here", Path(os.path.normpath(here / out)).name})


def test_a_run_whose_directory_was_taken_meanwhile_is_kept_beside_it(tmp_path: Path) -> None:
    def take(_: object) -> None:
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "notes.txt").write_text("mine")

    with pytest.raises(ValueError, match=rf"\bout must be .*{tmp_path / 'run'}") as refused:
        train(SMALL, out=tmp_path / "run", progress=take, threads=1)
    assert read(records(refused.value) / "curve.csv")[-1]["iteration"] == "3"


@pytest.mark.parametrize("wrong", [{"rule": "nosuch"}, {"device": "cuda:7"}])
def test_a_wrong_setting_leaves_no_folder(wrong: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(wrong))} must be"):
        train(replace(SMALL, **wrong), out=tmp_path / "a" / "b" / "c")
    assert list(tmp_path.iterdir()) == []
