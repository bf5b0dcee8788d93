"""mnist-mini: 12,000 images of MNIST inside the package, which need no download.

mnist_mini.txt holds source and licence. benchmarks/make_mnist_mini.py makes the file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fa.data.dataset import Arrays

FILE = Path(__file__).with_name("mnist_mini.npz")
"""The embedded arrays."""


def subset_indices(part: str, size: int) -> np.ndarray:
    """Return the indices of the MNIST images in the subset, in ascending order.

    - "train": Two neighbours of every twelve (0, 1, 12, 13, ...), 10,000 of 60,000. MNIST's training images
      alternate between two groups of writers: the mean pixel is 0.123 at even places, 0.139 at odd ones.
      Every sixth image would come from one group only.
    - "test": Every fifth (0, 5, 10, ...), 2,000 of 10,000. Each half of the test set comes from one group.

    Args:
        part: "train" or "test".
        size: Number of images in that part of MNIST.

    Returns:
        Indices, int64 (k,).
    """
    places = np.arange(size)
    return places[places % 12 < 2] if part == "train" else places[::5]


def subset(mnist: Arrays) -> dict[str, np.ndarray]:
    """Return the arrays of mnist-mini, selected from those of MNIST.

    Args:
        mnist: Arrays of MNIST.

    Returns:
        The selected images and labels.
    """
    return {name: array[subset_indices(name.split("_")[0], len(array))] for name, array in mnist.items()}


def read() -> dict[str, np.ndarray]:
    """Return the embedded arrays, as in `fa.data.dataset.Arrays`."""
    with np.load(FILE, allow_pickle=False) as stored:
        return {name: stored[name].astype(np.int64 if name.endswith("labels") else np.uint8) for name in stored.files}
