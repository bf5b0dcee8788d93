"""The cache's folders: four plain .npy files a data set, which appear all at once or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import numpy as np

from fa.data.dataset import ARRAYS, Arrays
from fa.utils.files import PREFIX, sync_folder


def read(folder: Path, mmap_mode: Literal["r"] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a folder; OSError where a file is missing, ValueError where one is truncated or no array."""
    try:
        return {name: np.load(folder / f"{name}.npy", mmap_mode, allow_pickle=False) for name in ARRAYS}
    except EOFError as error:  # an empty file
        raise ValueError(str(error)) from error


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The arrays' shapes, read from the headers; raises as `read` does, also for a file shorter than its array."""
    return {name: array.shape for name, array in read(folder, mmap_mode="r").items()}


def write(folder: Path, arrays: Arrays) -> None:
    """Write the arrays into a folder, flushed to the disk."""
    folder.mkdir(exist_ok=True)
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", arrays[name], allow_pickle=False)
    sync_folder(folder)


def replace(folder: Path, new: Path) -> None:
    """Rename `new` to `folder`; a folder that is there goes first, into the directory of `new`."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        folder.rename(new.with_name("old"))
    new.rename(folder)


def workspace_size(root: Path) -> int:
    """The bytes in the workspaces of `root`; files that vanish meanwhile do not count."""
    size = 0
    for space in root.glob(f"{PREFIX}*"):
        for place, _, names in os.walk(space):
            for name in names:
                with suppress(FileNotFoundError):
                    size += os.stat(os.path.join(place, name)).st_size
    return size


@contextmanager
def workspace(root: Path, name: str) -> Iterator[Path]:
    """A temporary directory beside the folders of `root`, removed however the work in it ends.

    Only one process at a time has a workspace in a root, others wait; so what an earlier one left, killed before it
    could clean up, is nobody's and is removed.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in root.glob(f"{PREFIX}*"):
            shutil.rmtree(left)
        space = root / f"{PREFIX}{name}"
        space.mkdir()
        try:
            yield space
        finally:
            shutil.rmtree(space)
