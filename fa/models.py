"""Models by name: the CNN of the paper's released code, and torchvision's classifiers."""

from __future__ import annotations

import difflib

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fa.utils import seeds
from fa.utils.validation import check_integer


class ConvNet(nn.Module):
    """The released code's CNN: two convolutions and two full layers; n = 21,840 for 28 x 28 images of one channel.

    Conv 10 (5 x 5), pool, conv 20 (5 x 5), dropout of whole maps, pool, full 50, dropout, full. The outputs are logits.
    """

    def __init__(self, channels: int, classes: int, size: int) -> None:
        super().__init__()
        side = ((size - 4) // 2 - 4) // 2
        self.features = nn.Sequential(
            nn.Conv2d(channels, 10, kernel_size=5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(10, 20, kernel_size=5),
            nn.Dropout2d(),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(20 * side * side, 50), nn.ReLU(), nn.Dropout(), nn.Linear(50, classes)
        )

    def forward(self, images: Float[Tensor, "b channels size size"]) -> Float[Tensor, "b classes"]:
        """Logits of normalised images."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


_CONVNET_LEAST = 16  # pixels, below which nothing is left after the second pooling


def build(name: str, channels: int, classes: int, size: int, seed: int) -> nn.Module:
    """The model "convnet", or torchvision's classifier of that name, for images (channels, size, size).

    Its parameters are drawn from the seed, in a fork of the global random state. Raises ValueError for an unknown name
    and for images that the model cannot take: torchvision's take 3 channels, and many have a least size.
    """
    for argument, value in (("channels", channels), ("classes", classes), ("size", size)):
        check_integer(argument, value, 1)
    with seeds.fork_global_rng(seeds.derive_seed("model", seed, 0, 0), torch.device("cpu")):
        if name != "convnet":
            return _torchvision(name, channels, classes, size)
        if size < _CONVNET_LEAST:
            raise ValueError(
                f"model convnet takes images of at least {_CONVNET_LEAST} x {_CONVNET_LEAST} pixels; "
                f"these have {size} x {size}"
            )
        return ConvNet(channels, classes, size)


def _torchvision(name: str, channels: int, classes: int, size: int) -> nn.Module:
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        close = difflib.get_close_matches(name, ["convnet", *names], n=3)
        hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
        raise ValueError(f"model must be convnet or a classifier of torchvision, such as resnet18, got {name!r}{hint}")
    if channels != 3:
        raise ValueError(f"model {name} takes images of 3 channels; these have {channels}: take convnet, for example")
    options = _options(name, size)
    try:
        model: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
        with torch.no_grad():
            model.eval()(torch.zeros(1, channels, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:  # each family has its own way to refuse a size
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"model {name} does not take images of {size} x {size} pixels: {reason}") from error
    return model.train()


def _options(name: str, size: int) -> dict[str, object]:
    """What some families must be told: the size of the images, or that logits are the only output."""
    if name.startswith("vit_"):
        return {"image_size": size}
    if name.startswith("maxvit"):
        return {"input_size": (size, size)}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    return {}
