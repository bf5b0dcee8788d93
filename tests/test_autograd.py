"""From the workers' losses, or from a direction, to `.grad`; then torch's optimizers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fa
from tests.processes import refusals
from tests.tensors import DEVICE, DTYPE, normal


@pytest.fixture
def model() -> nn.Module:
    """A model with a frozen layer, a layer that no loss uses, and parameters of two dtypes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.ModuleDict({"first": nn.Linear(4, 3), "last": nn.Linear(3, 1), "frozen": nn.Linear(1, 1)})
        layers["unused"] = nn.Linear(2, 2)
    layers.to(DEVICE, DTYPE)["first"].float()
    layers["frozen"].requires_grad_(False)
    return layers


def loss(model: nn.ModuleDict, images: Tensor) -> Tensor:
    hidden = torch.tanh(model["first"](images.float())).to(DTYPE)
    return model["frozen"](model["last"](hidden)).square().mean()


def trained(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradients(model: nn.ModuleDict, batches: list[Tensor]) -> list[list[Tensor]]:
    """Each worker's gradient by `Tensor.backward`, with zeros for parameters that the loss does not use."""
    found = []
    for images in batches:
        model.zero_grad()
        loss(model, images).backward()
        found.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trained(model)])
    model.zero_grad()
    return found


BATCHES = [normal(5, 4, seed=worker) for worker in range(5)]


@pytest.mark.parametrize("form", ["list", "generator", "tensor"])
def test_the_grads_are_the_rules_direction(model: nn.ModuleDict, form: str) -> None:
    rule = fa.make_rule("multi_krum", f=1)
    expected = rule.aggregate(gradients(model, BATCHES))
    losses = (loss(model, images) for images in BATCHES)
    result = fa.backward(
        {"list": list, "generator": iter, "tensor": lambda given: torch.stack(list(given))}[form](losses),
        model.parameters(),
        rule,
    )
    for parameter, piece in zip(trained(model), expected.direction, strict=True):
        torch.testing.assert_close(parameter.grad, piece)
    assert all(parameter.grad is None for parameter in model["frozen"].parameters())
    assert result.decision.selected == expected.decision.selected


def test_losses_of_one_forward_pass_may_share_a_graph(model: nn.ModuleDict) -> None:
    def losses() -> Tensor:
        return model["last"](torch.tanh(model["first"](BATCHES[0].float())).to(DTYPE)).square().mean(dim=1)

    fa.backward(losses(), model.parameters(), "mean")
    found = [parameter.grad for parameter in trained(model)]
    model.zero_grad()
    losses().mean().backward()
    for parameter, grad in zip(trained(model), found, strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)


def test_the_graph_of_the_losses_is_freed_as_torch_does(model: nn.ModuleDict) -> None:
    losses = torch.stack([loss(model, images) for images in BATCHES])
    fa.backward(losses, model.parameters(), "mean")
    with pytest.raises(RuntimeError, match="second time"):
        losses.sum().backward()
    generated = [loss(model, images) for images in BATCHES]
    fa.backward(iter(generated), model.parameters(), "mean")
    for one in generated:
        with pytest.raises(RuntimeError, match="second time"):
            one.backward()


def test_a_wrong_rule_is_named_before_the_backward_passes(model: nn.ModuleDict) -> None:
    losses = [loss(model, images) for images in BATCHES]
    with pytest.raises(ValueError, match=r"^rule must be .*'medean'"):
        fa.backward(losses, model.parameters(), "medean")
    fa.backward(losses, model.parameters(), "mean")


def test_backward_adds_to_grads_as_torch_does(model: nn.ModuleDict) -> None:
    fa.backward([loss(model, images) for images in BATCHES], model.parameters(), "median")
    once = [parameter.grad.clone() for parameter in trained(model)]
    fa.backward([loss(model, images) for images in BATCHES], model.parameters(), "median")
    for parameter, grad in zip(trained(model), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * grad)


def test_an_optimizer_and_a_schedule_follow_a_direction(model: nn.ModuleDict) -> None:
    """Momentum over two steps, by hand."""
    parameters = trained(model)
    optimizer = torch.optim.SGD(parameters, lr=0.5, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    before = torch.cat([parameter.detach().flatten().double() for parameter in parameters])
    directions = [normal(before.numel(), seed=i, dtype=torch.float64).float() for i in range(2)]
    for d in directions:
        fa.set_grad(model.parameters(), d)
        optimizer.step()
        schedule.step()
    after = torch.cat([parameter.detach().flatten().double() for parameter in parameters])
    first, second = (d.double() for d in directions)
    torch.testing.assert_close(after, before - 0.5 * first - 0.05 * (0.9 * first + second), rtol=1e-5, atol=1e-6)


def test_set_grad_takes_a_direction_from_where_it_is() -> None:
    weight = torch.zeros(2, requires_grad=True)
    for direction in (torch.ones(2), np.ones(2), [1.0, 1.0]):
        with torch.device("meta"):
            fa.set_grad([weight], direction)
        assert weight.grad.tolist() == [1, 1]


def test_set_grad_replaces_and_copies(model: nn.ModuleDict) -> None:
    n = sum(parameter.numel() for parameter in trained(model))
    d = np.arange(n, dtype=np.float32)
    for _ in range(2):
        fa.set_grad(model.parameters(), d)
    d[:] = np.nan
    grads = torch.cat([parameter.grad.flatten().cpu().double() for parameter in trained(model)])
    assert torch.equal(grads, torch.arange(n).double())
    assert [p.grad.dtype for p in trained(model)] == [p.dtype for p in trained(model)]


def test_set_grad_takes_what_a_rule_returns_for_lists_of_layers(model: nn.ModuleDict) -> None:
    found = gradients(model, BATCHES)
    direction = fa.aggregate(found, "median")
    fa.set_grad(model["last"].parameters(), np.arange(4.0)[::-1])
    assert model["last"].bias.grad.item() == 0
    fa.set_grad(model.parameters(), direction)
    for parameter, piece in zip(trained(model), direction, strict=True):
        torch.testing.assert_close(parameter.grad, piece)
    with pytest.raises(ValueError, match=r"^direction must be .*\(3, 4\)"):
        fa.set_grad(model.parameters(), direction[1:])
    with pytest.raises(ValueError, match=r"^direction must be .*\(3, 4\)"):
        fa.set_grad(model.parameters(), [piece.flatten() for piece in direction])


def test_clipping_the_grads_leaves_the_direction_as_it_was(model: nn.ModuleDict) -> None:
    direction = fa.backward([loss(model, images) for images in BATCHES], model.parameters(), "median").direction
    before = [piece.clone() for piece in direction]
    nn.utils.clip_grad_value_(model.parameters(), 1e-6)
    for piece, same in zip(direction, before, strict=True):
        assert torch.equal(piece, same)


def test_a_loss_that_cannot_be_differentiated_is_named(model: nn.ModuleDict) -> None:
    losses = [loss(model, images) for images in BATCHES]
    with pytest.raises(ValueError, match=r"^the loss of worker 5 must be a scalar.*\(2,\)"):
        fa.backward([*losses, torch.zeros(2, requires_grad=True)], model.parameters())
    with pytest.raises(ValueError, match=r"^the loss of worker 1 must be .*parameters"):
        fa.backward([losses[0], losses[1].detach()], model.parameters())
    with pytest.raises(ValueError, match=r"^losses must be "):
        fa.backward([], model.parameters())


@pytest.mark.parametrize("direction", ["text", {"weight": 1.0}, [None], None], ids=str)
def test_a_direction_that_is_no_numbers_is_named(direction: object) -> None:
    with pytest.raises(ValueError, match=r"^direction must be "):
        fa.set_grad([torch.zeros(1, requires_grad=True)], direction)


def test_wrong_arguments_are_named(model: nn.ModuleDict) -> None:
    with pytest.raises(ValueError, match=r"^direction must be .*\b7\b"):
        fa.set_grad(model.parameters(), torch.zeros(7))
    with pytest.raises(ValueError, match=r"^parameters must be "):
        fa.set_grad(model["frozen"].parameters(), torch.zeros(2))
    with pytest.raises(ValueError, match=r"^parameters must be .*'Parameter'"):
        fa.set_grad(next(model.parameters()), torch.zeros(12))
    with pytest.raises(ValueError, match=r"^losses must be "):
        fa.backward(loss(model, BATCHES[0]), model.parameters())
    with pytest.raises(ValueError, match=r"\bkrum\b.*\bp = 5\b"):
        fa.backward([loss(model, images) for images in BATCHES], model.parameters(), fa.make_rule("krum", f=2))


def test_arguments_of_a_wrong_type_are_value_errors(tmp_path: Path) -> None:
    calls = {
        "fa.set_grad(model, torch.ones(2))": "parameters",
        "fa.set_grad(model.named_parameters(), torch.ones(2))": "each of parameters",
        "fa.backward([loss, loss], model)": "parameters",
        "fa.backward([loss, 1.0], model.parameters())": "the loss of worker 1",
        "fa.backward(1.0, model.parameters())": "losses",
    }
    setup = "import fa, torch; model = torch.nn.Linear(1, 1); loss = model(torch.ones(1))"
    for start, line in zip(calls.values(), refusals(calls, setup, tmp_path), strict=True):
        assert line.startswith(f"{start} must be ")
