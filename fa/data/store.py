"""Folders of the cache: four plain .npy files for each data set. A folder appears whole or not at all."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import numpy as np

from fa.data.dataset import ARRAYS, Arrays
from fa.utils.files import PREFIX, create_folder, publish, sync_folder, temporary_folder


def read(folder: Path, mmap_mode: Literal["r"] | None = None) -> dict[str, np.ndarray]:
    """Read the arrays of a folder.

    Args:
        folder: The folder with the four .npy files.
        mmap_mode: "r" to map the files into memory; default None, which reads them.

    Returns:
        The arrays by name.

    Raises:
        OSError: A file is missing.
        ValueError: A file is truncated or is not an .npy file.
    """
    try:
        return {name: np.load(folder / f"{name}.npy", mmap_mode, allow_pickle=False) for name in ARRAYS}
    except EOFError as error:  # numpy raises it for an empty file.
        raise ValueError(str(error)) from error


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read the arrays' shapes from the headers.

    Args:
        folder: The folder with the four .npy files.

    Returns:
        The shapes by name.

    Raises:
        OSError: A file is missing.
        ValueError: A file is shorter than its array or is not an .npy file.
    """
    return {name: array.shape for name, array in read(folder, mmap_mode="r").items()}


def write(folder: Path, arrays: Arrays) -> None:
    """Write the arrays into a folder and flush them to the disk.

    Args:
        folder: The folder, which may exist.
        arrays: The four arrays.
    """
    folder.mkdir(exist_ok=True)
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", arrays[name], allow_pickle=False)
    sync_folder(folder)


def replace(folder: Path, new: Path) -> None:
    """Rename a new folder to its final name.

    Args:
        folder: The final name. An existing folder is first moved into the directory of `new`.
        new: The new folder.
    """
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        folder.rename(new.with_name("old"))
    publish(new, folder)


def workspace_size(root: Path) -> int:
    """Return the size of all workspaces in `root`, in bytes. Files that vanish meanwhile count as 0.

    Args:
        root: The cache folder.

    Returns:
        The size in bytes.
    """
    size = 0
    for space in root.glob(f"{PREFIX}*"):
        for place, _, names in os.walk(space):
            for name in names:
                with suppress(FileNotFoundError):
                    size += os.stat(os.path.join(place, name)).st_size
    return size


@contextmanager
def workspace(root: Path) -> Iterator[Path]:
    """Create a temporary folder beside the folders of `root`, and remove it at the end of the context.

    Only one process at a time has a workspace in a root; others wait, and then find what it has brought.

    Args:
        root: The cache folder, created if missing.

    Yields:
        The temporary folder.
    """
    create_folder(root)
    with (root / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with temporary_folder(root) as space:
            yield space
