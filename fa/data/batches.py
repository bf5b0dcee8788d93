"""Minibatches of any iteration, drawn from the data in memory; there is no state to carry between iterations."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from fa.data.dataset import Dataset
from fa.data.sampling import SAMPLINGS
from fa.utils import seeds
from fa.utils.validation import check_integer, check_one_of

PADDING = 4  # pixels on each side, from which the random crops are cut

Images = UInt8[Tensor, "batch channels height width"]
Normalised = Float32[Tensor, "batch channels height width"]
Labels = Int64[Tensor, " batch"]


def minibatch(
    dataset: Dataset,
    batch: int,
    worker: int,
    workers: int,
    iteration: int,
    seed: int,
    sampling: str = "random",
    device: torch.device | str = "cpu",
    own: Int64[np.ndarray, " k"] | None = None,
) -> tuple[Normalised, Labels]:
    """Worker `worker`'s images, normalised, and labels in an iteration; equal arguments give equal minibatches.

    The samplings:
        "random": Algorithm 1's "select a minibatch". Different images of the whole training set are drawn afresh, and
            so are crop and flip where the data set has them.
        "cycled": Each worker has a fixed slice, a 1/p part of the training set. It cycles through the slice in order,
            and a minibatch may wrap around its end. Crop and flip are drawn once for each image.
        "sequential": As "cycled", but the last minibatch of a pass holds what is left of the slice, and the next pass
            begins at its start, as in the released code. All slices have floor(N/p) images, so that all workers have
            the short minibatch in the same iteration.

    A worker with images of its `own`, by their indices, has those in place of the whole set or slice.

    Raises:
        ValueError: The batch is larger than the set or slice, or an argument is out of range.
    """
    check_one_of("sampling", sampling, SAMPLINGS)
    for name, value, least in (("batch", batch, 1), ("workers", workers, 1), ("worker", worker, 0)):
        check_integer(name, value, least)
    check_integer("iteration", iteration, 0)
    if worker >= workers:
        raise ValueError(f"worker must be less than workers = {workers}, got {worker}")
    size = len(dataset.train_labels)
    if sampling == "random":
        generator = seeds.generator("minibatch", seed, worker, iteration)
        indices = _among(own, _distinct(batch, size if own is None else len(own), generator))
        images = _rows(dataset.train_images, indices)
        if dataset.augment:
            images = random_crop_flip(images, generator)
    else:
        if own is not None:
            start, stop = 0, len(own)
        elif sampling == "sequential":
            start, stop = worker * (size // workers), (worker + 1) * (size // workers)
        else:
            start, stop = worker * size // workers, (worker + 1) * size // workers
        indices = _among(own, (_cycled if sampling == "cycled" else _sequential)(batch, start, stop, iteration))
        images = _rows(dataset.train_images, indices)
        if dataset.augment:
            top, left, mirrored = (_rows(drawn, indices) for drawn in _drawn_once(size, seed))
            images = crop_flip(images, top, left, mirrored)
    return normalise(images, dataset, device), _rows(dataset.train_labels, indices).to(device)


def check_batch(batch: int, size: int, workers: int, sampling: str) -> None:
    """Raise ValueError where a worker's share of `size` training images holds fewer than `batch`."""
    if sampling == "random":
        _check_batch(batch, size, "the training set")
    else:
        _check_batch(batch, size // workers, "the smallest of the workers' slices")


def _among(own: Int64[np.ndarray, " k"] | None, drawn: Int64[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
    """Which images those are that were drawn by their places among a worker's own."""
    return drawn if own is None else torch.from_numpy(own[drawn.numpy()])


def _rows(tensor: Tensor, indices: Tensor) -> Tensor:
    """tensor[indices], in a tenth of the time."""
    return tensor.index_select(0, indices)


def test_batches(
    dataset: Dataset, size: int = 500, device: torch.device | str = "cpu"
) -> Iterator[tuple[Normalised, Labels]]:
    """The test set in order: images, normalised, and labels, `size` at a time (the last may be smaller)."""
    for images, labels in zip(dataset.test_images.split(size), dataset.test_labels.split(size), strict=True):
        yield normalise(images, dataset, device), labels.to(device)


test_batches.__test__ = False  # type: ignore[attr-defined]  # pytest takes every test_* that a test imports


def normalise(images: Images, dataset: Dataset, device: torch.device | str = "cpu") -> Normalised:
    """(images/255 - mean) / std, channel by channel, on `device`; what crosses to the device is bytes."""
    scale, shift = _affine(dataset.mean, dataset.std, torch.device(device))
    return images.to(device).to(torch.float32).mul_(scale).sub_(shift)


@lru_cache(maxsize=16)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The factor of a byte and what is then taken off, each (channels, 1, 1), kept because copying to a GPU waits."""
    means, stds = (torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1) for numbers in (mean, std))
    return (1 / (255 * stds)).to(device, torch.float32), (means / stds).to(device, torch.float32)


def random_crop_flip(images: Images, generator: torch.Generator, padding: int = PADDING) -> Images:
    """Each image cut at a random place from itself in a black frame `padding` wide, and mirrored by chance (1/2)."""
    return crop_flip(images, *_draw(len(images), generator, padding), padding)


def crop_flip(
    images: Images,
    top: Int64[Tensor, " batch"],
    left: Int64[Tensor, " batch"],
    mirrored: Bool[Tensor, " batch"],
    padding: int = PADDING,
) -> Images:
    """Image i framed, cut at row top[i] and column left[i] of the frame, and then mirrored where mirrored[i]."""
    _, channels, height, width = images.shape
    framed = F.pad(images, (padding,) * 4)
    rows = top[:, None] + torch.arange(height)
    across = torch.arange(width)
    columns = left[:, None] + torch.where(mirrored[:, None], across.flip(0), across)
    pixels = rows[:, :, None] * framed.shape[3] + columns[:, None, :]
    indices = pixels.flatten(1)[:, None].expand(-1, channels, -1)
    return framed.flatten(2).gather(2, indices).view_as(images)


def _draw(count: int, generator: torch.Generator, padding: int) -> tuple[Tensor, Tensor, Tensor]:
    top, left = torch.randint(2 * padding + 1, (2, count), generator=generator)
    return top, left, torch.randint(2, (count,), generator=generator).bool()


@lru_cache(maxsize=4)
def _drawn_once(size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every training image's crop and flip: a function of the seed alone, kept because each iteration needs it."""
    return _draw(size, seeds.generator("augmentation", seed, 0, 0), PADDING)


def _distinct(count: int, size: int, generator: torch.Generator) -> Int64[Tensor, " count"]:
    """`count` different indices below `size`, uniform: of independent draws the first of each, in their order."""
    _check_batch(count, size, "the training set")
    if 2 * count > size:
        return torch.randperm(size, generator=generator)[:count]
    seen: dict[int, None] = {}
    while len(seen) < count:
        seen.update(dict.fromkeys(torch.randint(size, (count,), generator=generator).tolist()))
    return torch.from_numpy(np.array(list(seen)[:count]))  # torch takes its time over lists


def _cycled(count: int, start: int, stop: int, iteration: int) -> Int64[Tensor, " count"]:
    """The indices of an iteration in a slice gone through in order; a minibatch may run over its end."""
    _check_batch(count, stop - start, "a worker's slice")
    return start + (iteration * count + torch.arange(count)) % (stop - start)


def _sequential(count: int, start: int, stop: int, iteration: int) -> Int64[Tensor, " k"]:
    """The indices of an iteration in passes over a slice, of which the last minibatch is the rest."""
    _check_batch(count, stop - start, "a worker's slice")
    passes = -(-(stop - start) // count)
    first = start + iteration % passes * count
    return torch.arange(first, min(first + count, stop))


def _check_batch(batch: int, size: int, what: str) -> None:
    if batch > size:
        raise ValueError(f"batch must be at most {size}, the images of {what}, got {batch}")
