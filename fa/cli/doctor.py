"""`fa doctor`: what is here, and what to do about what is not."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import click

from fa import __version__

_LIBRARIES = {
    "notebooks": ("jupyterlab", "papermill", "seaborn", "pandas"),
    "theory": ("cvxpy", "scipy"),
    "tensorboard": ("tensorboard",),
}
_ENOUGH_DISK = 8e9  # bytes: an installation, and CIFAR-10


class Line(NamedTuple):
    """One thing, whether it is here, and what is said of it."""

    name: str
    here: bool
    said: str


@click.command()
def doctor() -> None:
    """Say what is installed and permitted here, a line each, and what to do about what is missing."""
    lines = list(_lines())
    width = max(len(line.name) for line in lines)
    for line in lines:
        click.echo(f"{'ok' if line.here else 'missing':8}{line.name:{width}}  {line.said}")


def _lines() -> Iterator[Line]:
    yield Line("python", sys.version_info >= (3, 11), f"{platform.python_version()}; 3.11 or newer is needed")
    yield Line("fa", True, __version__)
    yield from _packages(("torch", "torchvision", "numpy", "numba"), "pip install flag-aggregator")
    for extra, names in _LIBRARIES.items():
        yield from _packages(names, f"pip install 'flag-aggregator[{extra}]'")
    from fa.bench.peers import LIBRARIES

    for name, library in LIBRARIES.items():
        yield from _packages((name,), f"for comparisons: {library.install}")
    yield from _processor()
    yield _gpu()
    yield from _data()
    yield _namespaces()
    yield from _disk()


def _packages(names: tuple[str, ...], cure: str) -> Iterator[Line]:
    for name in names:
        try:
            yield Line(name, True, version(name))
        except PackageNotFoundError:
            found = importlib.util.find_spec(name) is not None
            yield Line(name, found, "found, without its version" if found else cure)


def _processor() -> Iterator[Line]:
    import torch

    from fa.utils.blas import usable_cores

    kind, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    yield Line("cores", True, f"{usable_cores()}, of which torch uses {threads} ({kind}); OMP_NUM_THREADS=N sets it")
    from fa.kernels import cpu

    cache = Path(cpu.__file__).parent / "__pycache__"
    writable = os.access(cache if cache.is_dir() else cache.parent, os.W_OK)
    where = (
        "the compiled loops are kept on disk"
        if writable
        else f"{cache} cannot be written: NUMBA_CACHE_DIR=FOLDER, or every process compiles anew"
    )
    yield Line("kernel cache", writable, where)


def _gpu() -> Line:
    import torch

    if torch.cuda.is_available():
        return Line("CUDA device", True, f"{torch.cuda.get_device_name()}; --device cuda")
    return Line("CUDA device", False, "all runs on the processor")


def _data() -> Iterator[Line]:
    from fa.data import describe

    for row in describe():
        here = row.status in ("embedded", "here")
        yield Line(row.name, here, row.place if here else f"{row.status}: {row.place}")


def _namespaces() -> Line:
    from fa.experiments.measurements.lossy_links import unsupported_reason

    why = unsupported_reason()
    return Line("lossy links", not why, why or "network namespaces are permitted")


def _disk() -> Iterator[Line]:
    from fa.data import cache_root

    root = next(place for place in (cache_root(), *cache_root().parents) if place.exists())
    free = shutil.disk_usage(root).free
    yield Line(
        "free disk",
        free > _ENOUGH_DISK,
        f"{free / 1e9:.0f} GB at {root}; {_ENOUGH_DISK / 1e9:.0f} GB hold an installation and CIFAR-10",
    )
