"""Minibatches of any iteration, drawn from a data set in memory.

A minibatch is a function of its arguments. No state is carried between iterations.
"""

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
from fa.utils.devices import with_index
from fa.utils.validation import check, check_integer, check_one_of

PADDING = 4  # Width of the black frame around an image before a random crop, in pixels.

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
    """Return a worker's minibatch in an iteration.

    Equal arguments give equal minibatches. The samplings:

    - "random": Draw different images of the whole training set in every iteration, as in Algorithm 1.
      Crop and flip, if the data set has them, are drawn in every iteration too.
    - "cycled": Each worker has a fixed slice, 1/p of the training set, and cycles through it in order.
      A minibatch may wrap around the end of the slice. Crop and flip are drawn once for each image.
    - "sequential": As "cycled", but the last minibatch of a pass is the rest of the slice, as in the released code.
      All slices have floor(N/p) images, so all workers have the short minibatch in the same iteration.

    Args:
        dataset: The data set. On a GPU, crop and flip are done there; what is drawn is the same.
        batch: Number of images.
        worker: Index of the worker, from 0.
        workers: Number of workers p.
        iteration: Index of the iteration, from 0.
        seed: Seed of the run.
        sampling: A name in `fa.data.sampling.SAMPLINGS`; default "random".
        device: Device of the minibatch; default the CPU.
        own: Indices (k,) of the worker's images, int64. They replace the whole set or the slice. Default: None.

    Returns:
        Normalised images, float32 (batch, C, H, W), and labels, int64 (batch,). With "sequential", the last
        minibatch of a pass may be smaller.

    Raises:
        ValueError: The batch is larger than the set or slice, or an argument is out of range.
    """
    check_one_of("sampling", sampling, SAMPLINGS)
    for name, value, least in (("batch", batch, 1), ("workers", workers, 1), ("worker", worker, 0)):
        check_integer(name, value, least)
    check_integer("iteration", iteration, 0)
    check("worker", worker, worker < workers, f"less than workers = {workers}")
    size = len(dataset.train_labels)
    if sampling == "random":
        generator = seeds.generator("minibatch", seed, worker, iteration)
        count, owner = (size, "the training set") if own is None else (len(own), "the worker")
        indices = _among(own, _distinct(batch, count, generator, owner))
        images = _rows(dataset.train_images, indices)
        if dataset.crop_and_flip:
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
        if dataset.crop_and_flip:
            top, left, mirrored = (_rows(drawn, indices) for drawn in _drawn_once(size, seed))
            images = crop_flip(images, top, left, mirrored)
    return normalise(images, dataset, device), _rows(dataset.train_labels, indices).to(device)


def check_batch(batch: int, size: int, workers: int, sampling: str) -> None:
    """Check that each worker has enough images for a minibatch.

    Args:
        batch: Number of images in a minibatch.
        size: Number of training images.
        workers: Number of workers.
        sampling: A name in `fa.data.sampling.SAMPLINGS`.

    Raises:
        ValueError: A worker's share of the training images holds fewer than `batch`.
    """
    if sampling == "random":
        _check_batch(batch, size, "the training set")
    else:
        _check_batch(batch, size // workers, "the smallest of the workers' slices")


def _among(own: Int64[np.ndarray, " k"] | None, drawn: Int64[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
    """Map positions among a worker's images to indices into the training set."""
    return drawn if own is None else torch.from_numpy(own[drawn.numpy()])


def _rows(tensor: Tensor, indices: Tensor) -> Tensor:
    """Return tensor[indices] with index_select, which takes a tenth of the time."""
    return tensor.index_select(0, indices.to(tensor.device))


def evaluation_batches(
    dataset: Dataset, size: int = 500, device: torch.device | str = "cpu"
) -> Iterator[tuple[Normalised, Labels]]:
    """Yield the test set in order, in minibatches.

    Args:
        dataset: The data set.
        size: Number of images in a minibatch; default 500. The last one may be smaller.
        device: Device of the minibatches; default the CPU.

    Yields:
        Normalised images, float32 (size, C, H, W), and labels, int64 (size,).
    """
    check_integer("size", size, 1)
    for images, labels in zip(dataset.test_images.split(size), dataset.test_labels.split(size), strict=True):
        yield normalise(images, dataset, device), labels.to(device)


def normalise(images: Images, dataset: Dataset, device: torch.device | str = "cpu") -> Normalised:
    """Return (images/255 - mean) / std for each channel.

    Args:
        images: Images as bytes, uint8 (batch, C, H, W). They move to the device as bytes, a quarter of float32's size.
        dataset: The data set, for its mean and standard deviation.
        device: Device of the result; default the CPU.

    Returns:
        Normalised images, float32 (batch, C, H, W).
    """
    scale, shift = _affine(dataset.mean, dataset.std, with_index(torch.device(device)))
    return images.to(device).to(torch.float32).mul_(scale).sub_(shift)


@lru_cache(maxsize=16)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return factor and offset of the normalisation, each (C, 1, 1), cached because a copy to a GPU blocks."""
    means, stds = (torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1) for numbers in (mean, std))
    return (1 / (255 * stds)).to(device, torch.float32), (means / stds).to(device, torch.float32)


def random_crop_flip(images: Images, generator: torch.Generator, padding: int = PADDING) -> Images:
    """Crop each image at random from a black frame around it, and mirror it with probability 1/2.

    Args:
        images: Images, uint8 (batch, C, H, W).
        generator: Generator for crop and flip.
        padding: Width of the frame, in pixels; default `PADDING`.

    Returns:
        Images of the same shape and dtype.
    """
    return crop_flip(images, *_draw(len(images), generator, padding), padding)


def crop_flip(
    images: Images,
    top: Int64[Tensor, " batch"],
    left: Int64[Tensor, " batch"],
    mirrored: Bool[Tensor, " batch"],
    padding: int = PADDING,
) -> Images:
    """Crop each image from a black frame around it, and mirror it, at given places.

    Args:
        images: Images, uint8 (batch, C, H, W).
        top: First row of each crop in the frame, int64 (batch,).
        left: First column of each crop in the frame, int64 (batch,).
        mirrored: True where an image is mirrored after the crop, bool (batch,).
        padding: Width of the frame, in pixels; default `PADDING`.

    Returns:
        Images of the same shape and dtype.
    """
    _, channels, height, width = images.shape
    framed = F.pad(images, (padding,) * 4)
    device = images.device
    top, left, mirrored = top.to(device), left.to(device), mirrored.to(device)
    rows = top[:, None] + torch.arange(height, device=device)
    across = torch.arange(width, device=device)
    columns = left[:, None] + torch.where(mirrored[:, None], across.flip(0), across)
    pixels = rows[:, :, None] * framed.shape[3] + columns[:, None, :]
    indices = pixels.flatten(1)[:, None].expand(-1, channels, -1)
    return framed.flatten(2).gather(2, indices).view_as(images)


def _draw(count: int, generator: torch.Generator, padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw rows, columns and flips of `count` crops."""
    top, left = torch.randint(2 * padding + 1, (2, count), generator=generator)
    return top, left, torch.randint(2, (count,), generator=generator).bool()


@lru_cache(maxsize=4)
def _drawn_once(size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw every training image's crop and flip from the seed, cached because each iteration needs them."""
    return _draw(size, seeds.generator("augmentation", seed, 0, 0), PADDING)


def _distinct(count: int, size: int, generator: torch.Generator, owner: str) -> Int64[Tensor, " count"]:
    """Draw `count` different indices below `size`, uniformly and in random order."""
    _check_batch(count, size, owner)
    if 2 * count > size:
        return torch.randperm(size, generator=generator)[:count]
    seen: dict[int, None] = {}
    while len(seen) < count:
        seen.update(dict.fromkeys(torch.randint(size, (count,), generator=generator).tolist()))
    return torch.from_numpy(np.array(list(seen)[:count]))  # torch converts lists slowly.


def _cycled(count: int, start: int, stop: int, iteration: int) -> Int64[Tensor, " count"]:
    """Return an iteration's indices in a slice that is cycled; a minibatch may wrap around the end."""
    _check_batch(count, stop - start, "a worker's slice")
    return start + (iteration * count + torch.arange(count)) % (stop - start)


def _sequential(count: int, start: int, stop: int, iteration: int) -> Int64[Tensor, " k"]:
    """Return an iteration's indices in passes over a slice; the last minibatch of a pass is the rest."""
    _check_batch(count, stop - start, "a worker's slice")
    passes = -(-(stop - start) // count)
    first = start + iteration % passes * count
    return torch.arange(first, min(first + count, stop))


def _check_batch(batch: int, size: int, owner: str) -> None:
    """Raise ValueError if `batch` is larger than `size`, the number of the owner's images."""
    check("batch", batch, batch <= size, f"at most {size}, the images of {owner}")
