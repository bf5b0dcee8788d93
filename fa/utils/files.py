"""Files and folders that appear complete, or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".making-"
"""What the names of unfinished files and folders begin with."""


def temporary_path(folder: Path, suffix: str = "") -> Path:
    """Return a path in `folder` that does not exist."""
    return folder / f"{PREFIX}{secrets.token_hex(8)}{suffix}"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file, or leave the old one as it was.

    Args:
        path: File, in a folder that exists.
        content: The whole of the file; text is written as UTF-8.
    """
    with new_file(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`, with its suffix, which replaces `path` when the block ends without an error."""
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

    Parents of `path` are created; a non-empty folder at `path` raises OSError.
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
    """Flush a folder and the files in it to the disk, so that a power cut leaves no empty files."""
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
