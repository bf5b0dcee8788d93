"""Splits of the training images among workers: unequal shares of each class, sorted by class, or partly sorted."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from fa.utils import seeds
from fa.utils.validation import check, check_integer, check_positive, check_real

_LARGEST_ALPHA = 1e100
_DRAWS = 1000  # Largest number of attempts until each worker has enough images.

Split = list[Int64[np.ndarray, " k"]]
"""Ascending indices of each worker's images. Every image belongs to one worker."""


def dirichlet(labels: Int64[Tensor, " n"], workers: int, alpha: float, least: int, seed: int) -> Split:
    """Split each class among the workers by shares from a Dirichlet distribution.

    The shares are nearly equal for a large `alpha`. For a small one, a single worker has nearly all of a class.
    This is ByzFL's "dirichlet_niid". All shares are drawn again while a worker has fewer than `least` images.

    Source: Li et al., Federated Learning on Non-IID Data Silos: An Experimental Study, ICDE 2022.

    Args:
        labels: Training labels, int64 (n,).
        workers: Number of workers.
        alpha: Parameter of the distribution, greater than 0.
        least: Smallest number of images for a worker.
        seed: Seed of the split.

    Returns:
        Indices of each worker's images, int64, ascending.

    Raises:
        ValueError: An argument is out of range, or a worker has too few images in 1000 attempts.
    """
    check_positive("alpha", alpha)
    check("alpha", alpha, alpha <= _LARGEST_ALPHA, f"at most {_LARGEST_ALPHA:g}, at which all shares are equal")
    check_integer("workers", workers, 1)
    rng = np.random.default_rng(seeds.derive_seed("split", seed, 0, 0))
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in torch.unique(labels)]
    for _ in range(_DRAWS):
        shares = rng.dirichlet(np.full(workers, alpha), len(members))
        cuts = [(np.cumsum(share)[:-1] * own.size).astype(int) for share, own in zip(shares, members, strict=True)]
        dealt = [np.split(own, cut) for own, cut in zip(members, cuts, strict=True)]
        split = [np.sort(np.concatenate(own)) for own in zip(*dealt, strict=True)]
        if min(own.size for own in split) >= least:
            return split
    raise ValueError(
        f"alpha must be larger, or the batch smaller, for each of {workers} workers to have {least} of {len(labels)} "
        f"images, got {alpha!r}"
    )


def by_class(labels: Int64[Tensor, " n"], workers: int) -> Split:
    """Sort the images by class and cut them into parts of equal size, up to one image.

    This is ByzFL's "extreme_niid".

    Args:
        labels: Training labels, int64 (n,).
        workers: Number of workers.

    Returns:
        Indices of each worker's images, int64, ascending.

    Raises:
        ValueError: `workers` is not an integer of at least 1.
    """
    check_integer("workers", workers, 1)
    return [np.sort(part) for part in np.array_split(np.argsort(labels.numpy(), kind="stable"), workers)]


def gamma_similarity(labels: Int64[Tensor, " n"], workers: int, gamma: float, seed: int) -> Split:
    """Deal a share of the images at random in equal parts, and the rest by class.

    This is ByzFL's "gamma_similarity_niid": floor(gamma n) images are dealt at random, and the others as in `by_class`.
    With gamma = 1 all workers have nearly equal shares of each class, and with gamma = 0 the split is `by_class`.
    ByzFL takes the first images of the data set for the random share; here the share is drawn.

    Source: Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020.

    Args:
        labels: Training labels, int64 (n,).
        workers: Number of workers.
        gamma: Share of the images that is dealt at random, in [0, 1].
        seed: Seed of the split.

    Returns:
        Indices of each worker's images, int64, ascending.

    Raises:
        ValueError: An argument is out of range.
    """
    check_integer("workers", workers, 1)
    check_real("gamma", gamma, 0)
    check("gamma", gamma, gamma <= 1, "in [0, 1]")
    order = np.random.default_rng(seeds.derive_seed("split", seed, 0, 0)).permutation(len(labels))
    similar = int(gamma * len(labels))
    rest = np.sort(order[similar:])
    dealt = np.array_split(order[:similar], workers)
    by_label = [rest[part] for part in by_class(labels[torch.from_numpy(rest)], workers)]
    return [np.sort(np.concatenate(parts)) for parts in zip(dealt, by_label, strict=True)]
