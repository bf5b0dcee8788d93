"""Downloads of data sets into the cache. A data set appears there whole and checked, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fa.data import mnist_mini, sources, store, tiny_imagenet
from fa.data.dataset import Arrays, MissingDataError, content_checksum
from fa.data.registry import NAMES, REGISTRY, cache_root, load
from fa.data.sources import SourceError
from fa.utils.progress_bar import bar
from fa.utils.validation import check_one_of


class FetchError(OSError):
    """No source has the data. The message is one line with the reason of each source."""


def fetch(name: str, root: str | Path | None = None, progress: bool = True) -> Path:
    """Bring a data set into the cache.

    A copy whose checksum is right is returned; a damaged copy is replaced. Otherwise the sources are tried in
    order. A download is built in a temporary folder, checked and renamed, so an interrupted call leaves no
    partial data set.

    Args:
        name: A name in `NAMES`.
        root: The cache folder, or Tiny ImageNet's folder, as in `load`; default None.
        progress: True to report progress on stderr; default True.

    Returns:
        The folder of the data set, or the embedded file of "mnist-mini".

    Raises:
        ValueError: Unknown name.
        MissingDataError: Tiny ImageNet's folder is not set.
        FetchError: Every source failed.
    """
    check_one_of("dataset", name, NAMES)
    if name == "mnist-mini":
        return mnist_mini.FILE
    if name == "tiny-imagenet":
        return tiny_imagenet.folder(root)
    folder = cache_root(root) / name
    with _reporter(progress, folder.parent) as report, store.workspace(folder.parent) as space:
        if folder.exists():
            try:
                load(name, folder.parent)
            except MissingDataError as error:
                report(f"{error}: it is fetched anew")
            else:
                return folder
        made = space / "new"
        store.write(made, _first_that_has_it(name, space, report))
        _check(name, store.read(made))
        store.replace(folder, made)
    return folder


def _first_that_has_it(name: str, space: Path, report: sources.Report) -> Arrays:
    """Return the arrays of the first source that has them, or raise FetchError."""
    failures = []
    for source in sources.SOURCES[name]:
        place = space / source.label
        place.mkdir()
        try:
            arrays = source.download(place, report)
            _check(name, arrays)
        except SourceError as error:
            failures.append(f"{source.label}: {' '.join(str(error).split())}")
            report(f"no {name} from {failures[-1]}")
        else:
            report(f"{name} from {source.label}")
            return arrays
    raise FetchError(f"{name} could not be fetched; {'; '.join(failures)}")


def _check(name: str, arrays: Arrays) -> None:
    """Raise SourceError if the content's checksum differs from the registry's."""
    found = content_checksum(arrays)
    if found != REGISTRY[name].checksum:
        raise SourceError(f"the content's SHA-256 is {found}; it must be {REGISTRY[name].checksum}")


@contextmanager
def _reporter(progress: bool, root: Path) -> Iterator[Callable[[str], None]]:
    """Print lines on stderr; on a terminal, add a spinner, the downloaded bytes and the time."""
    from rich.console import Console
    from rich.progress import ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Arrived(ProgressColumn):
        """The size of the workspace, since every source writes there and none reports its progress."""

        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            """Return the size in MB."""
            return Text(f"{store.workspace_size(root) / 1e6:.1f} MB")

    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, quiet=not progress)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), Arrived(), TimeElapsedColumn())
    with bar(*columns, console=console, shown=progress) as shown:
        task = shown.add_task("looking for a copy", total=None)

        def report(line: str) -> None:
            console.print(line, markup=False)
            shown.reset(task, total=None, description=line)

        yield report
