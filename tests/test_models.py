"""Models by name: their sizes, their seeds, and what they refuse."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fa import models


def numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "expected"), [("convnet", (1, 28, 28), 21_840), ("resnet18", (3, 32, 32), 11_181_642)]
)
def test_the_papers_models_have_the_papers_sizes(name: str, shape: tuple[int, int, int], expected: int) -> None:
    model = models.build(name, shape, 10, seed=0)
    assert numbers(model) == expected
    assert model.training


def test_models_of_two_threads_are_those_of_one() -> None:
    """The global generators, from which layers draw, belong to the process."""

    def build(seed: int) -> dict[str, Tensor]:
        return models.build("resnet18", (3, 32, 32), 10, seed=seed).state_dict()

    expected = [build(seed) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        for one, other in zip(pool.map(build, (1, 2) * 3), expected * 3, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in other)


def reference(model: nn.Module, images: Tensor) -> Tensor:
    """The released code's CNN without its dropout, from the parameters in their order."""
    w1, b1, w2, b2, w3, b3, w4, b4 = model.parameters()
    x = F.relu(F.max_pool2d(F.conv2d(images, w1, b1), 2))
    x = F.relu(F.max_pool2d(F.conv2d(x, w2, b2), 2))
    return F.linear(F.relu(F.linear(x.reshape(-1, 320), w3, b3)), w4, b4)


def test_the_convnet_is_the_released_codes() -> None:
    model = models.build("convnet", (1, 28, 28), 10, seed=3).eval()
    images = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(model(images), reference(model, images), atol=1e-6)


def test_the_convnet_drops_whole_maps_and_hidden_units() -> None:
    """Over many passes of one image in training mode: each map and each unit is sometimes zero, sometimes doubled."""
    model = models.build("convnet", (1, 28, 28), 10, seed=3).train()
    images = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(1)).expand(200, -1, -1, -1)
    seen: dict[type, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.register_forward_hook(lambda m, given, out: seen.__setitem__(type(m), (given[0], out)))
    with torch.random.fork_rng(devices=[]):
        model(images)
    assert set(seen) == {nn.Dropout, nn.Dropout2d}
    for given, out in seen.values():
        whole = out.flatten(2).abs().sum(2) if out.dim() == 4 else out
        dropped = (whole == 0) & ((given.flatten(2).abs().sum(2) if given.dim() == 4 else given) != 0)
        assert 0.4 < float(dropped.double().mean()) / max(0.01, float((given != 0).double().mean())) < 0.6
        kept = out != 0
        assert torch.allclose(out[kept], 2 * given[kept])


@pytest.mark.parametrize(("channels", "size", "classes"), [(3, 32, 10), (1, 16, 7), (3, 64, 200)])
def test_the_convnet_takes_other_images(channels: int, size: int, classes: int) -> None:
    model = models.build("convnet", (channels, size, size), classes, seed=0).eval()
    assert model(torch.zeros(2, channels, size, size)).shape == (2, classes)


@pytest.mark.parametrize(("name", "shape"), [("convnet", (1, 28, 28)), ("squeezenet1_1", (3, 32, 32))])
def test_parameters_come_from_the_seed_alone(name: str, shape: tuple[int, int, int]) -> None:
    """The random_state fixture also fails this test if the global state has moved."""
    first, again, other = (models.build(name, shape, 10, seed=seed) for seed in (1, 1, 2))
    for one, same in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, same)
    weights, others = (next(iter(model.parameters())) for model in (first, other))
    assert not torch.equal(weights, others)


# One of each family, small ones; those that must be told something are all here.
FAMILIES = ["alexnet", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v3_small"]
FAMILIES += ["regnet_y_400mf", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t", "vit_b_32"]


@pytest.mark.parametrize("name", FAMILIES)
def test_torchvisions_classifiers_give_logits(name: str) -> None:
    """In training mode, in which some families would have a second output."""
    model = models.build(name, (3, 64, 64), 7, seed=0)
    assert model.training
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("convnot", (1, 28, 28), 10), r"^model must be .*\bconvnet\b.*'convnot'.*'convnet'"),
        (("resnet-18", (3, 32, 32), 10), r"^model must be .*'resnet-18'.*'resnet18'"),
        (("xyzzy", (3, 32, 32), 10), r"^model must be .*'xyzzy'[^']*$"),
        (("fasterrcnn_resnet50_fpn", (3, 32, 32), 10), r"^model must be .*'fasterrcnn_resnet50_fpn'"),
        (("resnet18", (1, 28, 28), 10), r"\bresnet18\b.*\b3\b.*\b1\b"),
        (("convnet", (1, 15, 15), 10), r"\bconvnet\b.*\b16 x 16\b.*\b15 x 15\b"),
        (("alexnet", (3, 32, 32), 10), r"\balexnet\b.*\b32 x 32\b"),
        (("vit_b_32", (3, 33, 33), 10), r"\bvit_b_32\b.*\b33 x 33\b"),
        (("convnet", (0, 28, 28), 10), r"^channels must be .*\b1\b.*\b0\b"),
        (("convnet", (1, 28, 0), 10), r"^width must be .*\b1\b.*\b0\b"),
        (("convnet", (1, 28, 32), 10), r"^shape must be .*\bsquare\b.*\(1, 28, 32\)"),
        (("convnet", (1, 28, 28), 0), r"^classes must be .*\b1\b.*\b0\b"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        models.build(*arguments, seed=0)
    assert "\n" not in str(caught.value)
