"""Make mnist_mini.npz from MNIST in the cache, after `fa data fetch mnist`.

python benchmarks/make_mnist_mini.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fa.data import cache_root, mnist_mini, store
from fa.data.dataset import Arrays


def write(mnist: Arrays, path: Path) -> None:
    """Write the subset of MNIST that `mnist_mini.subset_indices` selects.

    Args:
        mnist: The arrays of MNIST.
        path: The .npz file to write, compressed, with labels as bytes.
    """
    arrays = {name: array.astype(np.uint8) for name, array in mnist_mini.subset(mnist).items()}
    np.savez_compressed(path, allow_pickle=False, **arrays)


if __name__ == "__main__":
    write(store.read(cache_root() / "mnist"), mnist_mini.FILE)
