"""mnist-mini: 12,000 images of real MNIST inside the package, so that nothing has to be downloaded.

Source and licence are in mnist_mini.txt; fa.data.make_mini made the file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fa.data.dataset import Arrays

FILE = Path(__file__).with_name("mnist_mini.npz")


def kept(part: str, size: int) -> np.ndarray:
    """Which of MNIST's images are taken, in their order; 10,000 and 2,000 of its 60,000 and 10,000.

    "train": two neighbours of every twelve (0, 1, 12, 13, ...). MNIST's training images come by turns from two groups
    of writers, with a mean pixel of 0.123 at even and 0.139 at odd places: every sixth would be one group's only.
    "test": every fifth (0, 5, 10, ...), because one half of the test set comes from one group, and one from the other.
    """
    places = np.arange(size)
    return places[places % 12 < 2] if part == "train" else places[::5]


def subset(mnist: Arrays) -> dict[str, np.ndarray]:
    """The images and labels of mnist-mini from those of MNIST."""
    return {name: array[kept(name.split("_")[0], len(array))] for name, array in mnist.items()}


def read() -> dict[str, np.ndarray]:
    """The embedded arrays, as in `dataset.Arrays`."""
    with np.load(FILE, allow_pickle=False) as stored:
        return {name: stored[name].astype(np.int64 if name.endswith("labels") else np.uint8) for name in stored.files}
