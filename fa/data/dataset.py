"""A data set in memory, and the checksum of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from fa.utils import seeds
from fa.utils.validation import check, check_real

Arrays = Mapping[str, np.ndarray]
"""The four arrays of a data set by their names in ARRAYS: images uint8 (N, C, H, W), labels int64 (N,)."""

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
"""Names of a data set's arrays, in the order of the checksum."""


class MissingDataError(ValueError):
    """A data set is missing or damaged. The message is one line that ends with the command to run."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: images as bytes, labels, and the properties that a model needs.

    Attributes:
        name: Name of the data set.
        train_images: Training images, uint8 (n, C, H, W).
        train_labels: Training labels, int64 (n,).
        test_images: Test images, uint8 (k, C, H, W).
        test_labels: Test labels, int64 (k,).
        classes: Number of classes.
        mean: Mean of each channel, of images scaled to [0, 1].
        std: Standard deviation of each channel, of images scaled to [0, 1].
        crop_and_flip: True if training images are cropped and flipped at random, as is usual for the data set.
        checksum: `content_checksum` of the four arrays.
    """

    name: str
    train_images: UInt8[Tensor, "n channels height width"]
    train_labels: Int64[Tensor, " n"]
    test_images: UInt8[Tensor, "k channels height width"]
    test_labels: Int64[Tensor, " k"]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_and_flip: bool
    checksum: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image: channels, height, width."""
        _, channels, height, width = self.train_images.shape
        return channels, height, width

    def to(self, device: torch.device) -> Dataset:
        """Return the data set with its arrays on this device; itself if they are there.

        Args:
            device: The device.
        """
        if self.train_images.device == device:
            return self
        return replace(self, **{name: getattr(self, name).to(device) for name in ARRAYS})


def content_checksum(arrays: Arrays) -> str:
    """Return the SHA-256 of the arrays' names, dtypes, shapes and bytes.

    It does not depend on the source of the data or on the format of the files.

    Args:
        arrays: The four arrays.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in ARRAYS:
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def tensors(arrays: Arrays) -> dict[str, Tensor]:
    """Return the arrays as tensors that share their memory.

    Args:
        arrays: The four arrays.

    Returns:
        The tensors by name.
    """
    return {name: torch.from_numpy(arrays[name]) for name in ARRAYS}


def hold_out(dataset: Dataset, share: float) -> Dataset:
    """Split the training images into a new training set and a validation set.

    Args:
        dataset: The data set. Its test images are not used.
        share: Share of the training images to hold out, between 0 and 1.

    Returns:
        A data set whose test images are the held-out training images. The split is the same in every run.

    Raises:
        ValueError: One of the two parts would be empty.
    """
    size = len(dataset.train_labels)
    check_real("validation", share, 0)
    count = round(share * size)
    check("validation", share, 0 < count < size, f"a share that keeps some of {size} training images, not all")
    order = torch.randperm(size, generator=seeds.generator("validation", 0, 0, 0))
    validation, training = order[:count].sort().values, order[count:].sort().values
    return replace(
        dataset,
        train_images=dataset.train_images[training],
        train_labels=dataset.train_labels[training],
        test_images=dataset.train_images[validation],
        test_labels=dataset.train_labels[validation],
    )
