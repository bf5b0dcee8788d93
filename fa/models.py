"""Models by name: the CNN of the paper's released code, and torchvision's classifiers."""

from __future__ import annotations

import difflib

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fa.utils import seeds
from fa.utils.validation import check, check_integer


class ConvNet(nn.Module):
    """The CNN of the released code, with n = 21,840 coordinates for 28 x 28 images of one channel.

    Layers: convolution (10 maps, 5 x 5), pooling, convolution (20 maps, 5 x 5), dropout of whole maps, pooling,
    linear (50), dropout, linear. The outputs are logits.

    Args:
        channels: Number of channels of an image.
        classes: Number of classes.
        size: Side of an image, in pixels; at least 16.
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
        """Return the logits (b, classes) of normalised images (b, channels, size, size).

        Args:
            images: Normalised images (b, channels, size, size).

        Returns:
            The logits (b, classes).
        """
        logits: Tensor = self.classifier(self.features(images))
        return logits


_CONVNET_LEAST = 16  # Smallest side, in pixels; a smaller image vanishes in the second pooling.


def build(name: str, shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
    """Build a model with random parameters.

    Parameters are drawn from the seed, in a fork of the global random state.

    Args:
        name: "convnet", or the name of a torchvision classifier such as "resnet18".
        shape: Shape of an image: channels, height and width. torchvision's classifiers need 3 channels, and many have
            a smallest size. Images must be square.
        classes: Number of classes.
        seed: Seed of the parameters.

    Returns:
        The model, on the CPU and in training mode.

    Raises:
        ValueError: Unknown name, or images that the model does not accept.

    Example:
        >>> from fa import models
        >>> model = models.build("convnet", shape=(1, 28, 28), classes=10, seed=0)
        >>> sum(parameter.numel() for parameter in model.parameters())
        21840
    """
    check("shape", shape, isinstance(shape, tuple | list) and len(shape) == 3, "(channels, height, width)")
    channels, size, width = shape
    for argument, value in (("channels", channels), ("height", size), ("width", width), ("classes", classes)):
        check_integer(argument, value, 1)
    check("shape", shape, size == width, "that of square images")
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
    """Build a classifier of torchvision and check that it accepts the images."""
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
    except (RuntimeError, AssertionError, ValueError) as error:  # Each family raises its own error.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"model {name} does not take images of {size} x {size} pixels: {reason}") from error
    return model.train()


def _options(name: str, size: int) -> dict[str, object]:
    """Return the options of families that need the image size, or that have more outputs than the logits."""
    if name.startswith("vit_"):
        return {"image_size": size}
    if name.startswith("maxvit"):
        return {"input_size": (size, size)}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    return {}
