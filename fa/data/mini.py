"""mnist-mini: 12,000 images of real MNIST inside the package, so that nothing has to be downloaded.

    python -m fa.data.mini

writes mnist_mini.npz again, from MNIST as `fa data fetch mnist` leaves it. Source and licence: mnist_mini.txt.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fa.data.dataset import Arrays

FILE = Path(__file__).with_name("mnist_mini.npz")

TRAIN_STEP, TEST_STEP = 6, 5
"""Every 6th training image (0, 6, ..., 59994) and every 5th test image (0, 5, ..., 9995), in their order: 10,000 and
2,000. The steps run over the whole of both sets because the second half of MNIST's test set is the harder one."""


def subset(mnist: Arrays) -> dict[str, np.ndarray]:
    """The images and labels of mnist-mini from those of MNIST."""
    steps = {"train": TRAIN_STEP, "test": TEST_STEP}
    return {name: np.ascontiguousarray(array[:: steps[name.split("_")[0]]]) for name, array in mnist.items()}


def read() -> dict[str, np.ndarray]:
    """The embedded arrays, as in `dataset.Arrays`."""
    with np.load(FILE, allow_pickle=False) as stored:
        return {name: stored[name].astype(np.int64 if name.endswith("labels") else np.uint8) for name in stored.files}


def write(mnist: Arrays, path: Path = FILE) -> None:
    """Write the subset compressed, labels as bytes."""
    np.savez_compressed(path, allow_pickle=False, **{name: a.astype(np.uint8) for name, a in subset(mnist).items()})


if __name__ == "__main__":
    from fa.data import registry, store

    write(store.read(registry.cache_root() / "mnist"))
