"""Fetching a data set into the cache: from the first of its sources that has it, checked, and all at once."""

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
    """No source has the data; the message is one line that says what was tried."""


def fetch(name: str, root: str | Path | None = None, progress: bool = True) -> Path:
    """Bring a data set into the cache and return its folder; `root` as for `load`.

    A copy that is there is taken if its content has the known checksum, and replaced if not. Otherwise the sources are
    tried in turn: what they give is built in a temporary folder beside, read again, checked and renamed, so that an
    interrupted call leaves no part of a data set. `progress` shows on stderr what is done. Raises ValueError for an
    unknown name, MissingDataError for Tiny ImageNet where it is not given, FetchError where no source succeeds.
    """
    check_one_of("dataset", name, NAMES)
    if name == "mnist-mini":
        return mnist_mini.FILE
    if name == "tiny-imagenet":
        return tiny_imagenet.folder(root)
    folder = cache_root(root) / name
    with _reporter(progress, folder.parent) as report, store.workspace(folder.parent, name) as space:
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
    failures = []
    for source in sources.SOURCES[name]:
        place = space / source.label
        place.mkdir()
        try:
            arrays = source.take(place, report)
            _check(name, arrays)
        except SourceError as error:
            failures.append(f"{source.label}: {' '.join(str(error).split())}")
            report(f"no {name} from {failures[-1]}")
        else:
            report(f"{name} from {source.label}")
            return arrays
    raise FetchError(f"{name} could not be fetched; {'; '.join(failures)}")


def _check(name: str, arrays: Arrays) -> None:
    found = content_checksum(arrays)
    if found != REGISTRY[name].checksum:
        raise SourceError(f"the content's SHA-256 is {found}; it must be {REGISTRY[name].checksum}")


@contextmanager
def _reporter(progress: bool, root: Path) -> Iterator[Callable[[str], None]]:
    """Lines on stderr, and on a terminal the last of them with a spinner, the bytes that have come, and the time."""
    from rich.console import Console
    from rich.progress import ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Arrived(ProgressColumn):
        """The size of what lies in the workspace: every source writes there, and none tells how far it is."""

        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            return Text(f"{store.workspace_size(root) / 1e6:.1f} MB")

    console = Console(stderr=True, soft_wrap=True, highlight=False, quiet=not progress)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), Arrived(), TimeElapsedColumn())
    with bar(*columns, console=console, shown=progress) as shown:
        task = shown.add_task("looking for a copy", total=None)

        def report(line: str) -> None:
            console.print(line, markup=False)
            shown.reset(task, total=None, description=line)

        yield report
