"""Files and folders that appear complete, or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".making-"
"""Prefix of the names of unfinished files and folders."""


def temporary_path(folder: Path, suffix: str = "") -> Path:
    """Return a path that does not exist yet.

    Args:
        folder: Folder of the path.
        suffix: End of its name.

    Returns:
        The path, with the prefix `PREFIX`.
    """
    return folder / f"{PREFIX}{secrets.token_hex(8)}{suffix}"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file completely, or leave the old one unchanged.

    Args:
        path: File, in a folder that exists.
        content: Complete content; text is written as UTF-8.
    """
    with new_file(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`, which replaces `path` when the block ends without an error.

    Args:
        path: File to create or overwrite.

    Yields:
        A path with the suffix of `path`, at which the block creates the file.
    """
    unfinished = temporary_path(path.parent, path.suffix)
    try:
        yield unfinished
        sync(unfinished)
        unfinished.replace(path)
        sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path`, which is renamed to `path` when the block ends without an error.

    Args:
        path: Folder to create; its parents are created too.

    Yields:
        An empty folder.

    Raises:
        OSError: `path` is a folder that is not empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = temporary_path(path.parent)
    unfinished.mkdir()
    try:
        yield unfinished
        sync_folder(unfinished)
        unfinished.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder and its files to the disk, so that a power cut leaves no empty files.

    Args:
        folder: Folder without subfolders.
    """
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk.

    Args:
        path: File or folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
