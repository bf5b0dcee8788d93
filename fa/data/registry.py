"""The data sets by name: content, location and loading."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fa.data import mnist_mini, store, tiny_imagenet
from fa.data.dataset import Dataset, MissingDataError, content_checksum, tensors
from fa.utils.files import expand_user
from fa.utils.validation import check_one_of

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Entry:
    """Properties of a data set that are known before it is loaded.

    Attributes:
        classes: Number of classes.
        train: Number of training images.
        test: Number of test images.
        shape: Shape of an image: channels, height, width.
        mean: Mean of each channel, of images scaled to [0, 1].
        std: Standard deviation of each channel, of images scaled to [0, 1].
        crop_and_flip: True if training images are cropped and flipped at random.
        checksum: `content_checksum` of the arrays; None for Tiny ImageNet, whose files the user provides.
    """

    classes: int
    train: int
    test: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_and_flip: bool
    checksum: str | None


# CIFAR-10 is normalised by ImageNet's statistics, as in the paper's released code.
REGISTRY = {
    "mnist-mini": Entry(
        10, 10_000, 2_000, (1, 28, 28), (0.1307,), (0.3081,), False,
        "f24e3a45e3b3eda889083cc7c0c016bd206c4cf15b661210288706b3c0225dbb",
    ),
    "mnist": Entry(
        10, 60_000, 10_000, (1, 28, 28), (0.1307,), (0.3081,), False,
        "f03f67b1b8911ec41cbced5619d373025b283872e9aca9f1a33b78c4e4a82345",
    ),
    "fashion-mnist": Entry(
        10, 60_000, 10_000, (1, 28, 28), (0.2860,), (0.3530,), False,
        "4534a8a413eff65ac48ea6d77aeb47bd49d44cf9cad2a951a3d8866c8831a711",
    ),
    "cifar10": Entry(
        10, 50_000, 10_000, (3, 32, 32), IMAGENET_MEAN, IMAGENET_STD, True,
        "5e5e71ed4630d506c7721247a52e06e4d8039bf51773ffa53a56d97866d045ee",
    ),
    "tiny-imagenet": Entry(200, 100_000, 10_000, (3, 64, 64), IMAGENET_MEAN, IMAGENET_STD, True, None),
}  # fmt: skip

NAMES = tuple(REGISTRY)
"""Names of the data sets."""


def cache_root(root: str | Path | None = None) -> Path:
    """Return the folder of the downloaded data sets.

    Args:
        root: The folder. Default: FA_DATA if set, else the folder `fa` in the user's XDG cache folder.

    Returns:
        An absolute path, which need not exist.
    """
    if root is not None:
        return expand_user("root", root).absolute()
    if given := os.environ.get("FA_DATA"):
        return expand_user("FA_DATA", given).absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification says that relative paths must be ignored.
    return (cache if cache.is_absolute() else expand_user("FA_DATA", "~/.cache")) / "fa"


def load(name: str, root: str | Path | None = None) -> Dataset:
    """Load a data set into memory and check its content.

    Args:
        name: A name in `NAMES`.
        root: The cache folder; default as in `cache_root`. For "tiny-imagenet" its own folder; default
            FA_TINY_IMAGENET.

    Returns:
        The data set, on the CPU.

    Raises:
        ValueError: Unknown name.
        MissingDataError: The data set is missing or damaged.

    Example:
        >>> from fa.data import load
        >>> digits = load("mnist-mini")
        >>> tuple(digits.train_images.shape), digits.train_images.dtype
        ((10000, 1, 28, 28), torch.uint8)
        >>> digits.shape
        (1, 28, 28)
    """
    check_one_of("dataset", name, NAMES)
    if name == "tiny-imagenet":
        place = tiny_imagenet.folder(root)
        try:
            arrays, classes = tiny_imagenet.read(place)
        except (OSError, ValueError) as error:
            raise MissingDataError(f"{name} in {place} is damaged ({error}): unpack it again") from error
        return _dataset(name, arrays, content_checksum(arrays), classes)
    place = mnist_mini.FILE if name == "mnist-mini" else cache_root(root) / name
    arrays = mnist_mini.read() if place == mnist_mini.FILE else _cached(name, place)
    checksum = content_checksum(arrays)
    if checksum != REGISTRY[name].checksum:
        raise _damaged(name, place, "its content is not the known one")
    return _dataset(name, arrays, checksum, REGISTRY[name].classes)


def check_present(name: str) -> None:
    """Check that a data set is present. Only the headers of its files are read.

    Args:
        name: A name in `NAMES`.

    Raises:
        ValueError: Unknown name.
        MissingDataError: The data set is missing or damaged; the message names the cure.
    """
    check_one_of("dataset", name, NAMES)
    status, _ = _state(name, None)
    if status not in ("embedded", "here"):
        load(name)


def _cached(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a folder in the cache, or raise MissingDataError."""
    if not folder.exists():
        raise MissingDataError(f"{name} is not in {folder.parent}: run `fa data fetch {name}`")
    try:
        return store.read(folder)
    except (OSError, ValueError) as error:
        raise _damaged(name, folder, " ".join(str(error).split())) from error


def _damaged(name: str, place: Path, why: str) -> MissingDataError:
    """Return the error for a damaged data set, with its cure."""
    cure = "install the package again" if name == "mnist-mini" else f"run `fa data fetch {name}`"
    return MissingDataError(f"{name} in {place} is damaged ({why}): {cure}")


def _dataset(name: str, arrays: dict[str, np.ndarray], checksum: str, classes: int) -> Dataset:
    """Build the data set from its arrays and its entry in the registry."""
    entry = REGISTRY[name]
    return Dataset(
        name=name,
        **tensors(arrays),
        classes=classes,
        mean=entry.mean,
        std=entry.std,
        crop_and_flip=entry.crop_and_flip,
        checksum=checksum,
    )


class Row(NamedTuple):
    """One line of `fa data list`.

    Attributes:
        name: Name of the data set.
        train: Number of training images.
        test: Number of test images.
        shape: Shape of an image: channels, height, width.
        classes: Number of classes.
        status: "embedded", "here", "not fetched", "not given" or "damaged".
        place: Location of the data set, or the command that provides it.
    """

    name: str
    train: int
    test: int
    shape: tuple[int, int, int]
    classes: int
    status: str
    place: str


def describe(root: str | Path | None = None) -> list[Row]:
    """List all data sets and whether they are present. Only the headers of their files are read.

    Args:
        root: The cache folder; default as in `cache_root`.

    Returns:
        One row for each name in `NAMES`.
    """
    rows = []
    for name, entry in REGISTRY.items():
        status, place = _state(name, root)
        rows.append(Row(name, entry.train, entry.test, entry.shape, entry.classes, status, place))
    return rows


def _state(name: str, root: str | Path | None) -> tuple[str, str]:
    """Return status and place of a data set, as in `Row`."""
    if name == "mnist-mini":
        return "embedded", str(mnist_mini.FILE)
    if name == "tiny-imagenet":
        try:
            return "here", str(tiny_imagenet.folder(None))
        except ValueError as error:
            return "not given", str(error)
    folder = cache_root(root) / name
    if not folder.exists():
        return "not fetched", f"fa data fetch {name}"
    entry = REGISTRY[name]
    expected = {
        "train_images": (entry.train, *entry.shape),
        "train_labels": (entry.train,),
        "test_images": (entry.test, *entry.shape),
        "test_labels": (entry.test,),
    }
    try:
        return ("here" if store.shapes(folder) == expected else "damaged"), str(folder)
    except (OSError, ValueError):
        return "damaged", str(folder)
