"""On a GPU every rule decides what it decides on the CPU, in memory that does not grow with n; skipped without one."""

import copy
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn

import fa
from fa import kernels
from fa.attacks import ATTACKS, make_attack
from fa.kernels import torch_fallback
from fa.layers import accelerate
from fa.rules.preaggregators import PREAGGREGATORS
from fa.training import train
from fa.training.config import TrainConfig
from fa.training.cuda_graph import GraphedWorkers
from fa.training.direction_norm import scale_to_unit_mean
from fa.training.records import Run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")

GPU = "cuda"
P, F, N = 15, 3, 20_011
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 1e-2}
RELATIVE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 1e-5}  # the CPU multiplies float32 first


def gradients(dtype: torch.dtype) -> torch.Tensor:
    """Fifteen rows that agree in part, of which three are far away."""
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(N, generator=generator, dtype=torch.float64) + torch.randn(P, N, generator=generator).double()
    G[:F] = 10 * torch.rand(F, N, generator=generator, dtype=torch.float64)
    return G.to(dtype)


def same(ours: fa.Rule, G: torch.Tensor) -> None:
    here, there = ours.aggregate(G), ours.aggregate(G.to(GPU))
    assert there.direction.device.type == GPU
    assert there.direction.dtype == G.dtype
    near = TOLERANCE[G.dtype] * float(here.direction.double().abs().max())
    torch.testing.assert_close(there.direction.cpu().double(), here.direction.double(), rtol=0, atol=near)
    assert there.decision.selected == here.decision.selected
    assert there.decision.excluded == here.decision.excluded
    for name in ("weights", "values"):
        mine, theirs = getattr(here.decision, name), getattr(there.decision, name)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            np.testing.assert_allclose(theirs, mine, rtol=RELATIVE[G.dtype], atol=1e-9)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", fa.RULES)
def test_a_rule_is_the_same(name: str, dtype: torch.dtype) -> None:
    same(fa.make_rule(name, f=F), gradients(dtype))


def test_layers_on_two_devices_keep_them() -> None:
    """As those of a model whose layers are on several devices."""
    workers = [[torch.full((2,), float(i)), torch.full((3,), float(i), device=GPU)] for i in range(5)]
    here, there = fa.aggregate(workers, "median")
    assert (here.device.type, there.device.type) == ("cpu", GPU)
    assert here.tolist() == [2.0] * 2
    assert there.tolist() == [2.0] * 3


@pytest.mark.parametrize("step", PREAGGREGATORS)
@pytest.mark.parametrize("name", ["fa", "median", "multi_krum"])
def test_a_step_is_the_same(name: str, step: str) -> None:
    same(fa.make_rule(name, f=1, preaggregators=(step,)), gradients(torch.float32))


def test_the_released_reading_is_the_same() -> None:
    same(fa.make_rule("fa", formulation="released"), gradients(torch.float32))


@pytest.mark.parametrize("name", fa.RULES)
def test_rows_that_are_not_finite_are_left_out_alike(name: str) -> None:
    G = gradients(torch.float32)
    G[4, 17], G[9, -1] = torch.nan, torch.inf
    same(fa.make_rule(name, f=F), G)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_writes_what_it_writes_on_the_cpu(attack: str) -> None:
    here = gradients(torch.float32)
    there = here.to(GPU)
    rule = fa.make_rule("multi_krum", f=F)
    make_attack(attack, rule).apply(here, range(F), 2021, 5)
    make_attack(attack, rule).apply(there, range(F), 2021, 5)
    torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", fa.RULES)
def test_memory_grows_by_the_direction_alone(name: str) -> None:
    rule = fa.make_rule(name, f=F)
    n = 1 << 23  # of 16 rows: two chunks of what is looked at at a time
    more = extra(rule, 2 * n) - extra(rule, n)
    assert more < 1.1 * 4 * n + (1 << 20)


def extra(rule: fa.Rule, n: int) -> int:
    """Bytes at the most in use during an aggregation, besides G."""
    G = torch.randn(16, n, device=GPU, generator=torch.Generator(GPU).manual_seed(0))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    rule.aggregate(G)
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_tritons_kernels_have_the_results_of_torch(dtype: torch.dtype) -> None:
    triton_passes = pytest.importorskip("fa.kernels.triton_passes", reason="torch brings Triton on Linux only")
    assert kernels._passes(torch.ones(2, 3, device=GPU)) is triton_passes
    G, near = gradients(dtype).to(GPU), {"rtol": RELATIVE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(triton_passes.gram(G), torch_fallback.gram(G), rtol=1e-12, atol=1e-9)
    weights, R = torch.linspace(-1, 1, P, dtype=torch.float64), torch.eye(P, dtype=torch.float64)
    mixed = torch.rand(P, P, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for arguments in ((weights,), (R, 7, 8, 0), (R, 7, 8, 12), (mixed, 7, 8, 12)):
        name = "combine" if len(arguments) == 1 else "order_statistic"
        actual, expected = (getattr(module, name)(G, *arguments) for module in (triton_passes, torch_fallback))
        torch.testing.assert_close(actual[0], expected[0], **near)
        assert torch.equal(actual[1], expected[1])


@pytest.mark.draws_globally
@pytest.mark.parametrize("shape", [(512, 256, 1, 1, 128), (128, 96, 4, 2, 128), (64, 64, 8, 1, 16)], ids=str)
def test_fast_convolutions_have_torchs_gradients(shape: tuple[int, ...]) -> None:
    inputs, outputs, side, stride, batch = shape
    layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1, device=GPU)
    exact, fast = (copy.deepcopy(layer) for _ in range(2))
    exact.double(), accelerate(fast)
    images = torch.randn(batch, inputs, side, side, device=GPU, requires_grad=True)
    wide = images.detach().double().requires_grad_()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        assert fast._applies(images) == (side <= 4)
        here, there = fast(images), exact(wide)
        here.square().sum().backward()
        there.square().sum().backward()
    pairs = [(here, there), (images.grad, wide.grad), (fast.weight.grad, exact.weight.grad)]
    pairs.append((fast.bias.grad, exact.bias.grad))
    for actual, expected in pairs:
        assert float((actual.double() - expected).norm() / expected.norm()) < 1e-5


def test_a_direction_is_scaled_to_the_same_norm() -> None:
    G = gradients(torch.float32)
    G[4, 17] = torch.nan
    there = scale_to_unit_mean(G[0].to(GPU), G.to(GPU))
    assert there.device.type == GPU
    torch.testing.assert_close(there.cpu(), scale_to_unit_mean(G[0], G))


def without_dropout(device: str, **settings: object) -> Run:
    """Train a model that draws nothing, so that a seed gives the same run up to rounding."""
    with (
        patch.object(nn.Dropout, "forward", lambda self, x: x),
        patch.object(nn.Dropout2d, "forward", lambda self, x: x),
    ):
        return train(TrainConfig(device=device, workers=7, batch=16, iterations=10, lr=0.05, **settings))


def test_training_goes_the_same_way() -> None:
    here, there = (without_dropout(device, byzantine=2) for device in ("cpu", GPU))
    losses = [[point.train_loss for point in run.curve] for run in (here, there)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    assert there.curve[-1].test_accuracy == pytest.approx(here.curve[-1].test_accuracy, abs=0.02)


@pytest.mark.parametrize("settings", [{"attack": "sign_flip"}, {"worker_momentum": 0.9}, {"accumulate": 2}], ids=str)
def test_a_graph_has_the_bits_of_the_passes(settings: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    graphed = without_dropout(GPU, **settings)
    monkeypatch.setattr(GraphedWorkers, "write_gradients", one_by_one)
    plain = without_dropout(GPU, **settings)
    assert [point.train_loss for point in graphed.curve] == [point.train_loss for point in plain.curve]
    assert graphed.workers == plain.workers


def one_by_one(graphs: GraphedWorkers, iteration: int) -> list[torch.Tensor]:
    return [worker.write_gradient(iteration) for worker in graphs._workers]


def test_a_seed_gives_the_same_run_where_a_model_draws() -> None:
    first, second = (train(TrainConfig(device=GPU, iterations=8, batch=8)) for _ in range(2))
    assert [point.train_loss for point in first.curve] == [point.train_loss for point in second.curve]
