"""Tiny ImageNet, read from the folder of its distribution.

The folder holds `wnids.txt`, `train/WNID/images/*.JPEG` and `val/val_annotations.txt`. The validation images serve as
the test set, since the labels of the test images were never published.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fa.data.dataset import MissingDataError
from fa.utils.files import expand_user

VARIABLE = "FA_TINY_IMAGENET"
"""Environment variable with the folder."""

Labelled = list[tuple[Path, int]]
"""Files of images with their labels."""


def folder(root: str | Path | None = None) -> Path:
    """Return the folder of the data set.

    Args:
        root: The folder; default FA_TINY_IMAGENET.

    Returns:
        An absolute path.

    Raises:
        MissingDataError: The folder is not set, or a file is missing in it.
    """
    text = os.environ.get(VARIABLE) if root is None else root
    if not text:
        raise MissingDataError(f"tiny-imagenet must be given: set {VARIABLE} to the folder that holds its wnids.txt")
    path = expand_user(VARIABLE, text).absolute()
    for part in ("wnids.txt", "train", "val/val_annotations.txt"):
        if not (path / part).exists():
            raise MissingDataError(
                f"{path} is no Tiny ImageNet folder, {part} is missing: set {VARIABLE} to the folder that holds it"
            )
    return path


def read(path: Path) -> tuple[dict[str, np.ndarray], int]:
    """Read all images and labels of the folder.

    Args:
        path: The folder.

    Returns:
        The four arrays by name, and the number of classes. Class k is line k of wnids.txt.

    Raises:
        ValueError: An image is unreadable or differs in size from the first, or an annotation names an unknown class.
    """
    classes = {wnid: label for label, wnid in enumerate((path / "wnids.txt").read_text(encoding="utf-8").split())}
    arrays = {}
    for part, labelled in (("train", _training(path, classes)), ("test", _validation(path, classes))):
        if not labelled:
            raise ValueError(f"{path} holds no {part} images")
        arrays[f"{part}_images"] = _decode([file for file, _ in labelled])
        arrays[f"{part}_labels"] = np.array([label for _, label in labelled], dtype=np.int64)
    return arrays, len(classes)


def _training(path: Path, classes: dict[str, int]) -> Labelled:
    """List the training images with their labels."""
    return [
        (file, label)
        for wnid, label in classes.items()
        for file in sorted((path / "train" / wnid).glob("images/*.JPEG"))
    ]


def _validation(path: Path, classes: dict[str, int]) -> Labelled:
    """List the validation images with their labels."""
    labelled = []
    annotations = path / "val" / "val_annotations.txt"
    for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]  # The other columns are a bounding box.
        if wnid not in classes:
            raise ValueError(f"{annotations}, line {number}, names the class {wnid!r}, which is not in wnids.txt")
        labelled.append((path / "val" / "images" / name, classes[wnid]))
    return labelled


def _decode(files: Sequence[Path]) -> np.ndarray:
    """Decode the images as uint8 (N, 3, H, W); a few grey ones get three equal channels."""
    shape = _pixels(files[0]).shape
    images = np.empty((len(files), *shape), dtype=np.uint8)

    def place(index: int) -> None:
        """Decode one image into its place."""
        pixels = _pixels(files[index])
        if pixels.shape != shape:
            raise ValueError(f"{files[index]} has the shape {pixels.shape}; it must be {shape} as {files[0]} is")
        images[index] = pixels

    with ThreadPoolExecutor() as pool:  # Threads help, since decoding releases the interpreter's lock.
        for _ in pool.map(place, range(len(files))):
            pass
    return images


def _pixels(file: Path) -> np.ndarray:
    """Decode one image as uint8 (3, H, W)."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except OSError as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error
