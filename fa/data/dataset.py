"""A data set in memory, and the checksum of what it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from fa.utils import seeds
from fa.utils.validation import check

Arrays = Mapping[str, np.ndarray]
"""The four arrays of a data set by the names in ARRAYS: images uint8 (N, C, H, W), labels int64 (N,)."""

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


class MissingDataError(ValueError):
    """A data set is not there, or damaged; the message is one line that says what to run."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images as bytes, and what a model needs to know of them."""

    name: str
    train_images: UInt8[Tensor, "n channels height width"]
    train_labels: Int64[Tensor, " n"]
    test_images: UInt8[Tensor, "k channels height width"]
    test_labels: Int64[Tensor, " k"]
    classes: int
    mean: tuple[float, ...]  # of each channel, of images scaled to [0, 1]
    std: tuple[float, ...]
    augment: bool  # whether training images are cropped and flipped at random, as is this data set's custom
    checksum: str  # content_checksum of the four arrays

    @property
    def shape(self) -> tuple[int, int, int]:
        """What a model is built for: an image's channels, the classes, and an image's side."""
        _, channels, _, side = self.train_images.shape
        return channels, self.classes, side


def content_checksum(arrays: Arrays) -> str:
    """SHA-256 of names, dtypes, shapes and bytes: the same wherever the data came from, and however it is stored."""
    digest = hashlib.sha256()
    for name in ARRAYS:
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def tensors(arrays: Arrays) -> dict[str, Tensor]:
    """The arrays as tensors that share their memory."""
    return {name: torch.from_numpy(arrays[name]) for name in ARRAYS}


def hold_out(dataset: Dataset, share: float) -> Dataset:
    """The data set with that share of its training images in place of its test images, and the rest to train on.

    Which images is the same in every run. Raises ValueError where that would leave one of the two parts empty.
    """
    size = len(dataset.train_labels)
    count = round(share * size)
    check("validation", share, 0 < count < size, f"a share that keeps some of {size} training images, not all")
    order = torch.randperm(size, generator=seeds.generator("validation", 0, 0, 0))
    held, kept = order[:count].sort().values, order[count:].sort().values
    return replace(
        dataset,
        train_images=dataset.train_images[kept],
        train_labels=dataset.train_labels[kept],
        test_images=dataset.train_images[held],
        test_labels=dataset.train_labels[held],
    )
