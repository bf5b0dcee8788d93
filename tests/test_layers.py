"""Fast layers against torch's in float64: outputs, gradients, statistics, and where they leave the work to torch."""

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fa import models
from fa.data import Dataset
from fa.layers import accelerate, batch_norm, convolution
from fa.layers.layout import in_rows
from fa.training import TrainConfig, train
from fa.training.parameter_vector import flatten, views

# Input channels, output channels, side of the map, kernel, stride, padding, bias, batch.
CONVOLUTIONS = [
    (512, 256, 1, 3, 1, 1, False, 128),
    (256, 128, 2, 3, 1, 1, False, 128),
    (128, 128, 4, 3, 1, 1, False, 128),
    (64, 64, 8, 3, 1, 1, False, 5),
    (32, 48, 4, 3, 2, 1, True, 5),
    (32, 48, 3, 3, 2, 1, False, 1),
    (32, 16, 4, 1, 2, 0, True, 5),
    (32, 16, 3, 1, 2, 0, False, 5),
    (16, 32, 4, 7, 2, 3, False, 5),
    (16, 16, 4, 7, 1, 3, True, 1),
    (16, 16, 4, 3, 1, 0, False, 5),
    (16, 16, 2, 3, 3, 2, False, 5),
    (3, 8, 4, 3, 1, 1, True, 5),
]

Shape = tuple[int, int, int, int, int, int, bool, int]


pytestmark = pytest.mark.draws_globally  # layers and images, from the state that conftest seeds


def error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm())


def results(layer: nn.Module, images: Tensor, weights: Tensor) -> list[Tensor]:
    """The output, the gradient of the images and those of the parameters."""
    images = images.clone().requires_grad_()
    layer.zero_grad()
    output = layer(images)
    (output * weights).sum().backward()
    return [output.detach(), images.grad, *(parameter.grad for parameter in layer.parameters())]


def assert_as_accurate(layer: nn.Module, images: Tensor) -> None:
    """The fast layer's errors against float64 are of the order of torch's."""
    fast, exact = accelerate(copy.deepcopy(layer)), copy.deepcopy(layer).double()
    weights = torch.randn_like(layer(images))
    truth = results(exact, images.double(), weights.double())
    for quick, plain, true in zip(results(fast, images, weights), results(layer, images, weights), truth, strict=True):
        assert quick.shape == true.shape
        assert error(quick, true) <= 4 * error(plain, true) + 1e-6


def convolution_of(shape: Shape) -> tuple[nn.Conv2d, Tensor]:
    channels, out, side, kernel, stride, padding, bias, batch = shape
    return nn.Conv2d(channels, out, kernel, stride, padding, bias=bias), torch.randn(batch, channels, side, side)


@pytest.mark.parametrize("shape", CONVOLUTIONS)
@pytest.mark.parametrize("order", ["contiguous", "channels last", "rows"])
def test_a_convolution_is_as_accurate_as_torchs(shape: Shape, order: str) -> None:
    layer, images = convolution_of(shape)
    if order == "channels last":
        images = images.contiguous(memory_format=torch.channels_last)
    elif order == "rows":
        images = images.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)
    assert_as_accurate(layer, images)


def test_maps_and_strides_need_not_be_square() -> None:
    layer = nn.Conv2d(16, 24, (3, 1), stride=(2, 1), padding=(1, 0))
    assert_as_accurate(layer, torch.randn(3, 16, 4, 2))


def test_small_maps_are_convolved_by_products_and_others_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    products = convolution._products
    monkeypatch.setattr(convolution, "_products", lambda *arguments: calls.append(arguments) or products(*arguments))

    def quick(layer: nn.Module, images: Tensor) -> bool:
        calls.clear()
        accelerate(layer)(images)
        return bool(calls)

    small = torch.randn(2, 16, 4, 4)
    assert quick(nn.Conv2d(16, 16, 3, padding=1), small)
    assert not quick(nn.Conv2d(16, 16, 3, padding=1), torch.randn(2, 16, 8, 8))
    assert not quick(nn.Conv2d(16, 16, 3, padding=1).double(), small.double())
    assert not quick(nn.Conv2d(16, 16, 3, padding=1, groups=4), small)
    assert not quick(nn.Conv2d(16, 16, 3, padding=2, dilation=2), small)
    assert not quick(nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"), small)
    assert not quick(nn.Conv2d(16, 16, 3, padding="same"), small)
    assert not quick(nn.Conv2d(16, 16, 3, padding=1), small[0])
    assert not quick(nn.Conv2d(16, 16, 3, padding=1), small[:0])
    assert not quick(nn.Conv2d(3, 16, 3, padding=1), small[:, :3])
    with torch.autocast("cpu", torch.bfloat16):
        assert not quick(nn.Conv2d(16, 16, 3, padding=1), small)


def test_transforms_of_torch_func_get_torchs_layers() -> None:
    layer, images = convolution_of((16, 16, 2, 3, 1, 1, False, 5))

    def loss(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(layer, weights, (image[None],)).square().sum()

    weights = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    per_image = torch.func.vmap(torch.func.grad(loss), (None, 0))
    expected = per_image(weights, images)["weight"]
    accelerate(layer)
    torch.testing.assert_close(per_image(weights, images)["weight"], expected)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch's own, by make_dual
def test_other_layers_parameters_under_a_transform_get_torchs_layers() -> None:
    """The transformed parameter is the last layer's, so no transform wraps the convolution's own tensors."""
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Flatten(), nn.Linear(64, 3))
    images, last = torch.randn(4, 16, 2, 2), model[2].weight.detach()
    model.requires_grad_(False)

    def loss(weight: Tensor) -> Tensor:
        return torch.func.functional_call(model, {"2.weight": weight}, (images,)).square().sum()

    def found() -> list[Tensor]:
        with torch.autograd.forward_ad.dual_level():
            output = model(torch.autograd.forward_ad.make_dual(images, torch.ones_like(images)))
            tangent = torch.autograd.forward_ad.unpack_dual(output).tangent
        slope = torch.func.jvp(loss, (last,), (torch.ones_like(last),))[1]
        return [torch.func.grad(loss)(last), slope, tangent]

    expected = found()
    accelerate(model)
    for value, torchs in zip(found(), expected, strict=True):
        torch.testing.assert_close(value, torchs)


def test_tensors_without_numbers_get_torchs_layers() -> None:
    """The type of a fake tensor is a subclass of Tensor, as that of other tensors that stand for a computation."""
    with FakeTensorMode():
        model = accelerate(nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32)))
        output = model(torch.empty(4, 16, 2, 2))
        output.sum().backward()
    assert output.shape == (4, 32, 2, 2)
    assert model[0].weight.grad.shape == (32, 16, 3, 3)


def test_a_computed_weight_warns_no_more_than_torchs() -> None:
    model = accelerate(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1)))
    weights = {"0.weight": model[0].weight * 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.func.functional_call(model, weights, (torch.randn(4, 16, 2, 2),)).square().sum().backward()
    assert model[0].weight.grad.any()


def test_wrong_channels_and_too_small_maps_are_torchs_errors() -> None:
    layer = accelerate(nn.Conv2d(16, 16, 3))
    for images in (torch.randn(2, 17, 4, 4), torch.randn(2, 16, 2, 2)):
        with pytest.raises(RuntimeError):
            layer(images)


def accumulated(layer: nn.Module, images: Tensor, rounds: int) -> list[Tensor]:
    row = flatten(layer).new_ones(sum(parameter.numel() for parameter in layer.parameters()))
    for parameter, view in zip(layer.parameters(), views(row, layer), strict=True):
        parameter.grad = view
    for _ in range(rounds):
        layer(images).square().sum().backward()
    assert all(parameter.grad.data_ptr() >= row.data_ptr() for parameter in layer.parameters())
    return [row]


def test_gradients_are_added_to_the_row_that_they_are_views_of() -> None:
    layer, images = convolution_of((32, 32, 2, 3, 1, 1, True, 5))
    row, expected = (
        accumulated(model, images, 3)[0] for model in (accelerate(copy.deepcopy(layer)), copy.deepcopy(layer))
    )
    torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-3)


def test_hooks_on_weights_are_called_with_the_gradient() -> None:
    layer, images = convolution_of((32, 32, 2, 3, 1, 1, False, 5))
    accelerate(layer)
    layer(images).sum().backward()
    once = layer.weight.grad.clone()
    seen: list[Tensor] = []
    layer.weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    layer(images).sum().backward()
    torch.testing.assert_close(seen[0], once)
    torch.testing.assert_close(layer.weight.grad, 2 * once)


def test_autograd_grad_returns_the_gradient_and_leaves_p_grad() -> None:
    layer, images = convolution_of((32, 32, 2, 3, 1, 1, False, 5))
    accelerate(layer)
    layer(images).sum().backward()
    once = layer.weight.grad.clone()
    (gradient,) = torch.autograd.grad(layer(images).sum(), [layer.weight])
    torch.testing.assert_close(gradient, once)
    assert torch.equal(layer.weight.grad, once)


@pytest.mark.parametrize("build", [lambda: nn.Conv2d(16, 16, 3, padding=1), lambda: nn.BatchNorm2d(16)])
def test_a_second_derivative_is_refused(build: Callable[[], nn.Module]) -> None:
    images = torch.randn(2, 16, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    with pytest.raises(ValueError, match=r"^create_graph\b"):
        torch.autograd.grad(accelerate(build())(images).square().sum(), images, create_graph=True)


@pytest.mark.parametrize(("channels", "side", "batch"), [(64, 16, 32), (40, 4, 5), (128, 1, 128), (16, 2, 1)])
@pytest.mark.parametrize("order", ["channels last", "rows"])
def test_batch_normalisation_and_its_statistics_are_as_accurate_as_torchs(
    channels: int, side: int, batch: int, order: str
) -> None:
    layer = nn.BatchNorm2d(channels)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    images = 3 * torch.randn(batch, channels, side, side) + torch.randn(channels, 1, 1) * 10
    memory = (0, 2, 3, 1) if order == "channels last" else (2, 0, 3, 1)
    back = (0, 3, 1, 2) if order == "channels last" else (1, 3, 0, 2)
    images = images.permute(memory).contiguous().permute(back)
    assert_as_accurate(layer, images)
    fast, exact = accelerate(copy.deepcopy(layer)), copy.deepcopy(layer).double()
    fast(images), exact(images.double())
    for buffer, true in zip(fast.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(buffer, true.to(buffer.dtype), rtol=1e-5, atol=1e-6)


def test_batch_normalisation_leaves_evaluation_and_other_settings_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_norm, "_BatchNorm", None)
    images = torch.randn(4, 16, 2, 2).contiguous(memory_format=torch.channels_last)
    for layer, batch in (
        (nn.BatchNorm2d(16).eval(), images),
        (nn.BatchNorm2d(16, affine=False), images),
        (nn.BatchNorm2d(16, track_running_stats=False), images),
        (nn.BatchNorm2d(16, momentum=None), images),
        (nn.BatchNorm2d(16).double(), images.double()),
        (nn.BatchNorm2d(16), images.contiguous()),
    ):
        expected = copy.deepcopy(layer)(batch)
        assert torch.equal(accelerate(layer)(batch), expected)
    with pytest.raises(ValueError, match="channel"):  # torch's, for one number per channel
        accelerate(nn.BatchNorm2d(16))(torch.randn(1, 16, 1, 1))


def resnet() -> nn.Module:
    return models.build("resnet18", (3, 32, 32), 10, seed=0)


def gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    model.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    return torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])


def test_a_resnets_gradient_is_as_accurate_as_torchs() -> None:
    """A ReLU whose input is within rounding of zero changes the gradient by more than rounding, for torch too."""
    plain = resnet()
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.__class__ = nn.Softplus
            module.beta, module.threshold = 1.0, 20.0
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))
    fast, exact = accelerate(copy.deepcopy(plain)), copy.deepcopy(plain).double()
    true = gradients(exact, images.double(), labels)
    assert error(gradients(fast, images, labels), true) <= 4 * error(gradients(plain, images, labels), true) + 1e-6
    for (name, buffer), (other, true) in zip(fast.named_buffers(), exact.named_buffers(), strict=True):
        assert name == other
        torch.testing.assert_close(buffer, true.to(buffer.dtype), rtol=1e-4, atol=1e-5)


def test_small_maps_keep_their_order_through_a_block() -> None:
    block = accelerate(resnet()).layer4[1]
    images = torch.randn(3, 512, 2, 2).permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)
    assert in_rows(block(images))


def test_the_same_numbers_each_time() -> None:
    model = accelerate(resnet())
    images, labels = torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))
    assert torch.equal(gradients(model, images, labels), gradients(model, images, labels))


def test_two_threads_give_one_threads_gradient_up_to_rounding() -> None:
    model = accelerate(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32)))
    images = torch.randn(128, 32, 4, 4)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(results(model, images, torch.ones_like(images) + images))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-2)


def test_state_dicts_and_copies_go_both_ways() -> None:
    plain, fast = resnet(), accelerate(models.build("resnet18", (3, 32, 32), 10, seed=1))
    assert list(plain.state_dict()) == list(fast.state_dict())
    fast.load_state_dict(plain.state_dict())
    plain.load_state_dict(copy.deepcopy(fast).state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(fast.eval()(images), plain.eval()(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["convnet", "squeezenet1_1", "mobilenet_v3_small"])
def test_other_models_train_as_well(name: str) -> None:
    shape = (1, 28, 28) if name == "convnet" else (3, 64, 64)
    plain = models.build(name, shape, 10, seed=0)
    for module in plain.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    fast = accelerate(copy.deepcopy(plain))
    images, labels = torch.randn(8, *shape), torch.randint(0, 10, (8,))
    expected = gradients(plain, images, labels)
    assert error(gradients(fast, images, labels), expected.double()) < 0.02


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (64,), generator=generator)
    dataset = Dataset("noise", images, labels, images, labels, 10, (0.5,) * 3, (0.3,) * 3, False, "0" * 64)
    monkeypatch.setattr("fa.training.loop.load_dataset", lambda config: dataset)
    return dataset


def test_a_run_with_fast_layers_has_the_losses_of_one_with_torchs(data: Dataset) -> None:
    config = TrainConfig(
        model="resnet18", rule="mean", workers=2, byzantine=0, attack="none", iterations=2, batch=8, lr=0.01,
        accumulate=2, evaluate_every=1,
    )  # fmt: skip
    plain, fast = (train(replace(config, layers=layers), threads=1) for layers in ("torch", "fast"))
    assert fast.curve[0].train_loss == pytest.approx(plain.curve[0].train_loss, rel=1e-5)
    for one, other in zip(plain.curve, fast.curve, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=0.02)


def test_the_default_layers_are_absent_from_a_configuration_whose_hash_stays() -> None:
    assert "layers" not in json.loads(TrainConfig().to_json())
    changed = TrainConfig(layers="fast")
    assert TrainConfig.from_json(changed.to_json()) == changed
    with pytest.raises(ValueError, match=r"^layers\b.*'slow'"):
        TrainConfig(layers="slow")
