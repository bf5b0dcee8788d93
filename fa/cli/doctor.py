"""`fa doctor`: the installed parts, and how to add the missing ones."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import click

from fa import __version__

_LIBRARIES = {
    "notebooks": ("jupyterlab", "papermill", "seaborn", "pandas"),
    "theory": ("cvxpy", "scipy"),
    "tensorboard": ("tensorboard",),
}
_MIN_DISK = 8e9  # bytes, for an installation and CIFAR-10


class Line(NamedTuple):
    """One line of the output."""

    name: str
    available: bool
    note: str  # version, place or cure


@click.command()
def doctor() -> None:
    """List what is installed and permitted, and how to add what is missing."""
    lines = list(_lines())
    width = max(len(line.name) for line in lines)
    for line in lines:
        click.echo(f"{'ok' if line.available else 'missing':8}{line.name:{width}}  {line.note}")


def _lines() -> Iterator[Line]:
    yield Line("python", sys.version_info >= (3, 11), f"{platform.python_version()}; needs 3.11 or newer")
    yield Line("fa", True, __version__)
    yield from _packages(("torch", "torchvision", "numpy", "numba"), "pip install flag-aggregator")
    for extra, names in _LIBRARIES.items():
        yield from _packages(names, f"pip install 'flag-aggregator[{extra}]'")
    from fa.bench.peers import LIBRARIES

    for name, library in LIBRARIES.items():
        yield from _packages((name,), library.install)
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
            importable = importlib.util.find_spec(name) is not None
            yield Line(name, importable, "unknown version" if importable else cure)


def _processor() -> Iterator[Line]:
    import torch

    from fa.utils.blas import usable_cores

    kind, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    yield Line("cores", True, f"{usable_cores()}; torch uses {threads} ({kind}), OMP_NUM_THREADS=N sets this")
    from fa.kernels import rows
    from fa.kernels.cache import cache_folder

    folder = cache_folder(rows.mark_non_finite)
    note = folder or "no folder is writable, so every process compiles: set NUMBA_CACHE_DIR=FOLDER"
    yield Line("kernel cache", folder is not None, note)


def _gpu() -> Line:
    import torch

    if torch.cuda.is_available():
        return Line("CUDA device", True, f"{torch.cuda.get_device_name()}; --device cuda")
    return Line("CUDA device", False, "runs use the CPU")


def _data() -> Iterator[Line]:
    from fa.data import describe

    for row in describe():
        available = row.status in ("embedded", "here")
        yield Line(row.name, available, row.place if available else f"{row.status}: {row.place}")


def _namespaces() -> Line:
    from fa.experiments.measurements.lossy_links import unsupported_reason

    reason = unsupported_reason()
    return Line("lossy links", not reason, reason or "network namespaces are permitted")


def _disk() -> Iterator[Line]:
    from fa.data import cache_root

    root = next(place for place in (cache_root(), *cache_root().parents) if place.exists())
    free = shutil.disk_usage(root).free
    yield Line(
        "free disk",
        free > _MIN_DISK,
        f"{free / 1e9:.0f} GB at {root}; {_MIN_DISK / 1e9:.0f} GB are needed for an installation and CIFAR-10",
    )
