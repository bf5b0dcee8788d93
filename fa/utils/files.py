"""Files and folders that appear complete, or not at all, and that one process at a time writes.

An unfinished file or folder is locked while its process lives. The next writer in the same folder removes those whose
process was killed. Locks are those of `flock`, which end with the process.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class InUseError(ValueError):
    """Error for a file or folder that another process has reserved."""


_PAUSES = (0.001, 0.01, 0.05)  # seconds before further attempts to lock

PREFIX = ".making-"
"""Prefix of the names of unfinished files, unfinished folders, and locks."""


def expand_user(name: str, path: str | Path) -> Path:
    """Replace "~" or "~user" at the start of a path by the user's home folder.

    Args:
        name: Name of the argument, for the message.
        path: The path.

    Returns:
        The path, with the home folder for "~".

    Raises:
        ValueError: The user, or this user's home folder, is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name} must be in the home folder of a user of this system, got {str(path)!r}") from error


def file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits.

    Args:
        path: The file.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
    """Yield an empty file beside `path`, which replaces `path` when the block ends without an error.

    Args:
        path: File to create or overwrite.

    Yields:
        The empty file, with the suffix of `path`.
    """
    with _unfinished(path.parent, path.suffix, Path.touch) as unfinished:
        yield unfinished
        sync(unfinished)
        publish(unfinished, path)


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
    with temporary_folder(path.parent) as unfinished:
        yield unfinished
        sync_folder(unfinished)
        publish(unfinished, path)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder, which is removed when the block ends, unless it has been renamed.

    Args:
        parent: Folder that holds it, created with its parents if missing.

    Yields:
        The folder.
    """
    create_folder(parent)
    with _unfinished(parent, "", Path.mkdir) as unfinished:
        yield unfinished


def create_folder(path: Path) -> None:
    """Create a folder and its parents, and flush their names to the disk.

    Args:
        path: Folder, which may exist.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def publish(unfinished: Path, path: Path) -> None:
    """Give a flushed file or folder its final name, and flush the name to the disk.

    Args:
        unfinished: The file or folder.
        path: Its final name, in the same file system.
    """
    unfinished.replace(path)
    sync(path.parent)


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


@contextmanager
def exclusive(name: str, path: Path, patient: bool = True) -> Iterator[None]:
    """Reserve a file or folder for the block, so that no other process writes it.

    Args:
        name: Name of the argument, for the message.
        path: File or folder, which need not exist.
        patient: Whether to try for some hundredths of a second, since `remove_abandoned` may hold the lock so long.

    Raises:
        InUseError: Another process, or another thread of this one, has reserved it.
    """
    lock = path if path.is_dir() else path.with_name(f"{PREFIX}{path.name}.lock")
    descriptor, created = None, not os.path.lexists(lock)
    for pause in (*(_PAUSES if patient else ()), None):
        try:
            descriptor = _lock(lock, _keep if lock == path else _touch)
            break
        except BlockingIOError:
            if pause is None:
                raise InUseError(f"{name} must not be in use by another process, got {path}") from None
            time.sleep(pause)
        except OSError:  # The file system has no locks, or nothing can be written, which the writer reports.
            break
    try:
        yield
    finally:
        if lock != path and (created or descriptor is not None):
            with suppress(OSError):
                lock.unlink()
        if descriptor is not None:
            os.close(descriptor)


def remove_abandoned(folder: Path) -> None:
    """Remove the unfinished files and folders, and the locks, of processes that were killed.

    Args:
        folder: Folder that holds them.
    """
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):  # Its process lives, or the file system has no locks.
            descriptor = _lock(path)
            try:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            finally:
                os.close(descriptor)


@contextmanager
def _unfinished(parent: Path, suffix: str, create: Callable[[Path], object]) -> Iterator[Path]:
    """Yield a new file or folder, locked until the block ends, and then removed if it still has its name."""
    remove_abandoned(parent)
    descriptor = None
    try:
        while True:
            path = parent / f"{PREFIX}{secrets.token_hex(8)}{suffix}"
            try:
                descriptor = _lock(path, create)
            except BlockingIOError:  # `remove_abandoned` of another process is about to remove it.
                continue
            except OSError:  # Without locks, nothing is removed as abandoned.
                if not path.exists():
                    raise
            break
        yield path
    finally:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


def _touch(path: Path) -> None:
    """Create a file that all users can read and so lock, unless it exists, possibly as another user's."""
    try:
        path.touch()
        path.chmod(0o644)
    except PermissionError:
        if not path.exists():
            raise


def _keep(path: Path) -> None:
    """Create nothing: the file exists."""


def _lock(path: Path, create: Callable[[Path], object] = _keep) -> int:
    """Return an open descriptor of a file or folder, locked until it is closed.

    Another process may remove the file between its creation and the lock. It is then created again.

    Raises:
        BlockingIOError: Another descriptor has the lock.
        OSError: The file cannot be created, or its file system has no locks.
    """
    while True:
        create(path)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            if create is _keep:
                raise
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
