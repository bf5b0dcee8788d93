"""The training images dealt out, so that each worker has its own: by unequal shares of each class, or by class."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from fa.utils import seeds
from fa.utils.validation import check, check_real

_DRAWS = 1000  # of all workers' shares, until each worker has enough

Split = list[Int64[np.ndarray, " k"]]
"""Each worker's images, as indices that rise; every image is one worker's."""


def dirichlet(labels: Int64[Tensor, " n"], workers: int, alpha: float, least: int, seed: int) -> Split:
    """Of each class the workers' shares are drawn from a Dirichlet distribution with parameters `alpha`.

    Nearly equal where alpha is large, nearly all one worker's where it is small; ByzFL's "dirichlet_niid". All are
    drawn again while a worker has fewer than `least` images, as is usual (Li et al., Federated Learning on Non-IID Data
    Silos: An Experimental Study, ICDE 2022). Raises ValueError where that does not end.
    """
    check_real("alpha", alpha, 0)
    check("alpha", alpha, alpha > 0, "greater than 0")
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
    """Sorted by class, and cut into parts of one size, give or take an image; ByzFL's "extreme_niid"."""
    return [np.sort(part) for part in np.array_split(np.argsort(labels.numpy(), kind="stable"), workers)]
