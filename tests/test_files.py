"""Files survive killed processes, power cuts and full disks, and have one writer at a time."""

import ast
import errno
import fcntl
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import click
import pytest

from fa import cli
from fa.experiments.reporting import artifacts
from fa.experiments.runs.store import Record, RunStore
from fa.experiments.runs.sweep import sweep
from fa.training import TrainConfig, train
from fa.training.checkpoint import read
from fa.training.records import UnwrittenRunError
from fa.training.transports.base import GatheredGradients
from fa.training.transports.simulation import SimulatedTransport
from fa.utils import signals
from fa.utils.files import PREFIX, InUseError, exclusive, new_file, new_folder, remove_abandoned, write_atomically
from tests.processes import alive, beside, descendants, wait_until, worked
from tests.texts import check_refusal

ROOT = Path(__file__).parents[1]
CONFIG = TrainConfig(
    workers=3, byzantine=1, rule="median", iterations=30, batch=4, momentum=0.9, seed=3, evaluate_every=0
)
RUN = "--workers 3 --byzantine 1 --rule median --batch 4 --seed 3 --threads 1"


def fa(words: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run `fa WORDS` in a process of its own, which is killed if it takes too long."""
    command = [sys.executable, "-c", "from fa.cli import main; main()", *words.split()]
    pipes = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": 300, "check": False}
    return subprocess.run(command, cwd=ROOT, text=True, **pipes | options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_leftovers_of_killed_processes_are_removed_and_unfinished_files_of_others_are_not(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}file").write_text("half")
    (tmp_path / f"{PREFIX}folder").mkdir()
    (tmp_path / f"{PREFIX}folder" / "G.npy").write_text("half")
    with new_file(tmp_path / "a") as file, new_folder(tmp_path / "b"), exclusive("out", tmp_path / "c"):
        file.write_text("x")
        before = names(tmp_path)
        write_atomically(tmp_path / "d", "y")
        assert names(tmp_path) == sorted([*before, "d"])
        assert len(before) == 3
    assert names(tmp_path) == ["a", "b", "d"]


def test_a_file_that_is_removed_before_its_lock_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may clean up between the two."""
    open_file, removed = os.open, []

    def open_and_lose(path: Path, *arguments: int) -> int:
        descriptor = open_file(path, *arguments)
        if Path(path).name.startswith(PREFIX) and len(removed) < 3:
            removed.append(Path(path).unlink())
        return descriptor

    monkeypatch.setattr(os, "open", open_and_lose)
    write_atomically(tmp_path / "a", "x")
    assert len(removed) == 3
    assert (tmp_path / "a").read_text() == "x"


def cleaner(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Another process cleans up, and locks the first unfinished file or lock before its creator; returns its end."""
    flock, held = fcntl.flock, []

    def locked_before(descriptor: int, how: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not held and path.name.startswith(PREFIX):
            held.append((os.open(path, os.O_RDONLY), path))
            flock(held[0][0], how)
        flock(descriptor, how)

    def finish(*_: object) -> None:
        if held:
            descriptor, path = held.pop()
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            os.close(descriptor)
            held.append(())

    monkeypatch.setattr(fcntl, "flock", locked_before)
    return finish


def test_a_new_folder_that_another_process_cleans_up_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = cleaner(monkeypatch)
    with new_folder(tmp_path / "record") as unfinished:
        finish()
        (unfinished / "a").write_text("x")
    assert (tmp_path / "record" / "a").read_text() == "x"


def test_a_lock_that_another_process_cleans_up_is_not_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = cleaner(monkeypatch)
    monkeypatch.setattr("fa.utils.files.time.sleep", finish)
    with exclusive("out", tmp_path / "out"):
        pass
    assert names(tmp_path) == []


def test_a_lock_of_another_user_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not write the lock file may still see that it is locked."""
    with exclusive("out", tmp_path / "out"):
        before = names(tmp_path)

        def refused(path: Path) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "touch", refused)
        with pytest.raises(InUseError), exclusive("out", tmp_path / "out"):
            pass
        assert names(tmp_path) == before


def test_a_lock_can_be_read_by_other_users(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with exclusive("out", tmp_path / "out"):
            (lock,) = tmp_path.iterdir()
            assert lock.stat().st_mode & 0o444 == 0o444
    finally:
        os.umask(before)


def test_a_name_that_is_too_long_for_a_lock_is_left_to_its_writer(tmp_path: Path) -> None:
    with exclusive("out", tmp_path / ("x" * 245)):
        pass


def test_names_that_differ_by_a_dot_are_reserved_apart(tmp_path: Path) -> None:
    with exclusive("out", tmp_path / "run"), exclusive("checkpoint", tmp_path / ".run"):
        assert len(names(tmp_path)) == 2


def test_file_systems_without_locks_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    (tmp_path / f"{PREFIX}of-another").write_text("perhaps alive")
    with exclusive("out", tmp_path / "a"), exclusive("out", tmp_path / "a"):
        write_atomically(tmp_path / "a", "x")
    assert names(tmp_path) == [f"{PREFIX}of-another", "a"]


class Disk:
    """Whether the content of a file, and its name, have reached the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flushed: set[Path] = set()
        self.unflushed: set[Path] = set()
        self.checked = 0
        fsync, rename, unlink, mkdir = os.fsync, os.replace, os.unlink, os.mkdir

        def logged_fsync(descriptor: int) -> None:
            fsync(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            self.flushed.add(path)
            self.unflushed -= {name for name in self.unflushed if name.parent == path}

        def logged_replace(source: Path, target: Path) -> None:
            contents = list(Path(source).iterdir()) if Path(source).is_dir() else []
            assert {Path(source), *contents} <= self.flushed, source
            rename(source, target)
            self.unflushed.add(Path(target))
            self.checked += 1

        def logged_mkdir(path: Path, *arguments: object, **options: object) -> None:
            mkdir(path, *arguments, **options)
            if PREFIX not in str(path):
                self.unflushed.add(Path(path))

        def logged_unlink(path: Path, *arguments: object, **options: object) -> None:
            if not Path(path).name.startswith(PREFIX):
                assert not self.unflushed, f"{path} is removed before they are on the disk: {self.unflushed}"
            unlink(path, *arguments, **options)

        for name, logged in (("fsync", logged_fsync), ("replace", logged_replace), ("unlink", logged_unlink)):
            monkeypatch.setattr(os, name, logged)
        monkeypatch.setattr(os, "mkdir", logged_mkdir)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs Linux")
@pytest.mark.parametrize("prepare", [lambda out: None, Path.mkdir], ids=["new", "empty"])
def test_a_power_cut_never_loses_a_finished_run(
    prepare: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and contents are flushed before the checkpoint, of which they take the place, is removed."""
    out = tmp_path / "parent" / "out"
    if prepare is Path.mkdir:
        out.mkdir(parents=True)
    disk = Disk(monkeypatch)
    run = train(CONFIG, out, threads=1, checkpoint=tmp_path / "kept", checkpoint_every=0)
    assert disk.checked >= CONFIG.iterations
    store = RunStore(tmp_path / "figures" / "records")
    store.checkpoint(CONFIG).write_text("a checkpoint")
    store.save(run)
    assert names(store.root) == [store.key(CONFIG)]
    write_atomically(tmp_path / "REPORT.md", "text")
    (tmp_path / "REPORT.md").unlink()  # asserts that it was flushed


def train_without_end(out: Path, kept: Path) -> None:
    """In a process of its own."""
    train(replace(CONFIG, iterations=1_000_000), out, threads=1, checkpoint=kept, checkpoint_every=0)


def test_what_another_process_writes_is_refused(tmp_path: Path) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    process = beside(train_without_end, out, kept)
    try:
        wait_until(kept.exists, 60)
        for arguments, name in (({"out": out}, "out"), ({"checkpoint": kept}, "checkpoint")):
            with pytest.raises(ValueError, match=rf"^{name} must .*{tmp_path / name if name == 'out' else kept}"):
                train(CONFIG, **arguments)
    finally:
        process.kill()
        process.join()
    train(CONFIG, out, threads=1)
    assert names(tmp_path) == ["kept", "out"]


def test_an_output_folder_has_one_writer_among_threads_too(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for path in (tmp_path / "out", tmp_path / "new"):
        with exclusive("out", path):
            failures: list[str] = []

            def second(path: Path = path, failures: list[str] = failures) -> None:
                try:
                    with exclusive("out", path):
                        pass
                except ValueError as error:
                    failures.append(str(error))

            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
            assert len(failures) == 1
        with exclusive("out", path):
            pass
    assert names(tmp_path) == ["out"]


def test_outputs_within_the_folder_of_the_records_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder must be empty at the end, too."""
    with pytest.raises(ValueError, match=rf"^checkpoint must .*{tmp_path}"):
        train(CONFIG, tmp_path / "r", checkpoint=tmp_path / "r" / "state")
    with pytest.raises(SystemExit) as leaving:
        cli.main(
            [*f"train {RUN} --iterations 5 --out {tmp_path / 'r'} --tensorboard".split(), str(tmp_path / "r" / "b")]
        )
    check_refusal(leaving.value.code, capsys.readouterr().err, r"^fa: tensorboard must")


COUNTED = """
import os
from dataclasses import dataclass
from fa.rules import Rule
from fa.rules.mean import Mean

with open(os.environ["FA_TEST_LOG"], "a") as log:
    log.write("x")

@dataclass(frozen=True, kw_only=True)
class Counted(Mean):
    name = "counted"
"""

SWEEP = """
import sys
from fa.experiments.runs.store import Record, RunStore
from fa.experiments.runs.sweep import sweep
from fa.training import TrainConfig

if __name__ == "__main__":
    configs = [TrainConfig(seed=seed, **{settings!r}) for seed in range(1, 7)]
    outcomes = sweep(configs, RunStore({root!r}), jobs=2, progress=False)
    print(sum(outcome.record is not None for outcome in outcomes))
"""


def test_two_sweeps_on_one_store_do_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FA_TEST_LOG", str(tmp_path / "log"))
    (tmp_path / "rule.py").write_text(COUNTED)
    settings = {"rule": f"{tmp_path / 'rule.py'}:Counted", "workers": 3, "byzantine": 1, "iterations": 100, "batch": 4}
    (tmp_path / "sweep.py").write_text(SWEEP.format(settings=settings, root=str(tmp_path / "records")))
    command = [sys.executable, str(tmp_path / "sweep.py")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        assert [int(process.communicate(timeout=240)[0]) for process in both] == [6, 6]
    finally:
        for process in both:
            process.kill()
    assert (tmp_path / "log").read_text() == "x" * 6
    store = RunStore(tmp_path / "records")
    assert names(store.root) == sorted(store.key(TrainConfig(seed=seed, **settings)) for seed in range(1, 7))


def numbers(folder: Path) -> list[str]:
    """The records but for times."""
    curve = [line.split(",") for line in (folder / "curve.csv").read_text().splitlines()]
    return [",".join(cells[:2] + cells[3:]) for cells in curve] + (folder / "workers.csv").read_text().splitlines()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    train(replace(CONFIG, iterations=100), out, threads=1)
    return numbers(out)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_the_checkpoint_first(
    signum: signal.Signals,
    tmp_path: Path,
    undisturbed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    words = f"train {RUN} --momentum 0.9 --iterations 100 --evaluate-every 100 --out {out} --checkpoint {kept}"
    gradients = SimulatedTransport.gradients

    def interrupted(transport: SimulatedTransport, iteration: int) -> GatheredGradients:
        if iteration == 50:
            assert not kept.exists()  # the first one would be due after 300 s
            signal.raise_signal(signum)
        return gradients(transport, iteration)

    with monkeypatch.context() as patch:
        patch.setattr("fa.utils.progress_bar.LINES", float("inf"))
        patch.setattr(SimulatedTransport, "gradients", interrupted)
        with pytest.raises(SystemExit) as leaving:
            cli.main([*words.split(), "--tensorboard", str(tmp_path / "board")])
    assert (leaving.value.code, capsys.readouterr().err.count("\n")) == (128 + signum, 1)
    assert 50 <= read(kept)["state"]["iteration"] <= 51
    train(replace(CONFIG, iterations=100, evaluate_every=100), out, threads=1, checkpoint=kept)
    assert numbers(out) == undisturbed
    assert names(tmp_path) == ["board", "out"]


def test_the_callers_own_handler_is_called_after_the_checkpoint_and_the_run_goes_on(
    tmp_path: Path, undisturbed: list[str]
) -> None:
    saved: list[bool] = []
    previous = signal.signal(signal.SIGTERM, lambda *_: saved.append((tmp_path / "kept").exists()))
    try:
        train(
            replace(CONFIG, iterations=100),
            tmp_path / "out",
            lambda state: signal.raise_signal(signal.SIGTERM) if state.iteration % 40 == 10 else None,
            threads=1,
            checkpoint=tmp_path / "kept",
        )
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert saved == [True] * 3
    assert numbers(tmp_path / "out") == undisturbed


def test_ignored_signals_remain_ignored_and_a_second_signal_acts_at_once() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.held_back() as interrupted:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupted()
    finally:
        signal.signal(signal.SIGHUP, previous)
    block = signals.held_back()
    interrupted = block.__enter__()
    signal.raise_signal(signal.SIGINT)
    assert interrupted()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        block.__exit__(None, None, None)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs Linux")
def test_an_interrupted_sweep_keeps_its_checkpoints(tmp_path: Path) -> None:
    settings = {"workers": 3, "byzantine": 1, "iterations": 1_000_000, "batch": 4}
    (tmp_path / "sweep.py").write_text(SWEEP.format(settings=settings, root=str(tmp_path / "records")))
    process = subprocess.Popen([sys.executable, str(tmp_path / "sweep.py")], stderr=subprocess.DEVNULL)

    def runs() -> list[int]:
        return [run for child in descendants(process.pid) for run in descendants(child)]

    try:
        wait_until(lambda: len(runs()) == 2 and all(worked(run) > 2 for run in runs()))
        below = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        process.wait(60)
        wait_until(lambda: not any(map(alive, below)))
    finally:
        process.kill()  # if it is still there: its runs would go on for hours
        process.wait()
    kept = list((tmp_path / "records").glob(".*.checkpoint"))
    assert [read(path)["state"]["iteration"] > 0 for path in kept] == [True] * 2
    remove_abandoned(tmp_path / "records")
    assert names(tmp_path / "records") == sorted(path.name for path in kept)


def run_to_the_end(folder: Path) -> None:
    """In a process of its own, with a checkpoint after each iteration."""
    train(CONFIG, folder / "out", threads=1, checkpoint=folder / "kept", checkpoint_every=0)


def kill_and_resume(folder: Path, delay: float) -> None:
    killed = beside(run_to_the_end, folder)
    time.sleep(delay)
    killed.kill()
    killed.join()
    if (folder / "out").exists():  # killed at the very end: the records are whole
        (folder / "kept").unlink(missing_ok=True)
    else:
        beside(run_to_the_end, folder).join()


@pytest.mark.parametrize("moments", [pytest.param(4, marks=pytest.mark.long), pytest.param(50, marks=pytest.mark.long)])
def test_a_run_that_is_killed_at_any_moment_goes_on_to_the_same_curve(moments: int, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    began = time.monotonic()
    beside(run_to_the_end, tmp_path / "first").join()
    longest = time.monotonic() - began
    undisturbed = numbers(tmp_path / "first" / "out")
    draw = random.Random(5)
    for moment in range(moments):
        folder = tmp_path / str(moment)
        folder.mkdir()
        kill_and_resume(folder, draw.uniform(0, longest))
        assert names(folder) == ["out"]
        assert numbers(folder / "out") == undisturbed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that mounts a tmpfs of so many KiB."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk{size}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a tmpfs")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("size", [4, 8])
def test_a_disk_that_is_full_at_the_end_keeps_the_result(size: int, small_disk: Callable[[int], Path]) -> None:
    folder = small_disk(size)
    with pytest.raises(UnwrittenRunError, match=str(folder)) as raised:
        train(CONFIG, folder / "out", threads=1)
    assert names(folder) == []
    raised.value.run.write(folder.parent / "out")  # the run is in memory until there is a place for it
    assert len(numbers(folder.parent / "out")) > CONFIG.iterations


def test_a_result_whose_records_cannot_be_written_is_printed(
    small_disk: Callable[[int], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_disk(4)
    monkeypatch.setattr("fa.utils.progress_bar.LINES", float("inf"))
    with pytest.raises(SystemExit) as leaving:
        cli.main(f"train {RUN} --iterations 30 --out {folder / 'out'}".split())
    printed = capsys.readouterr()
    check_refusal(leaving.value.code, printed.err, "")
    assert "accuracy" in printed.out
    assert names(folder) == []


@pytest.mark.parametrize("answer", ["~/rescued", "", click.Abort()], ids=["folder", "nothing", "Ctrl-C"])
def test_a_terminal_is_asked_for_another_folder(
    answer: str | click.Abort,
    small_disk: Callable[[int], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def prompt(*_: object, **__: object) -> str:
        if isinstance(answer, str):
            return answer
        raise answer

    folder = small_disk(4)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("fa.utils.progress_bar.LINES", float("inf"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(click, "prompt", prompt)
    with pytest.raises(SystemExit) as leaving:
        cli.main(f"train {RUN} --iterations 30 --out {folder / 'out'}".split())
    assert "accuracy" in capsys.readouterr().out
    written = answer == "~/rescued"
    assert leaving.value.code == (0 if written else 2)
    assert (tmp_path / "rescued" / "curve.csv").is_file() == written


@pytest.mark.parametrize("size", [40, 80, 400, 1000, 2000])
def test_a_full_disk_leaves_the_old_checkpoint(size: int, small_disk: Callable[[int], Path]) -> None:
    folder = small_disk(size)

    def fill(_: object) -> None:
        with suppress(OSError), (folder / "more").open("ab") as file:
            file.write(bytes(20_000))

    with pytest.raises(ValueError, match=r"^checkpoint must .*"):
        train(replace(CONFIG, iterations=1000), None, fill, 1, checkpoint=folder / "kept", checkpoint_every=0)
    assert set(names(folder)) <= {"kept", "more"}
    assert not (folder / "kept").exists() or read(folder / "kept")["state"]["iteration"] > 0


@pytest.mark.parametrize("size", [8, 40])
def test_a_full_disk_leaves_the_old_figure_and_the_store_as_they_were(
    size: int, small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    from matplotlib.figure import Figure

    folder = small_disk(size)
    (folder / "f.png").write_bytes(b"the good one")
    figure = Figure()
    figure.subplots().plot([[1, 2], [3, 5]])
    (folder / "filler").write_bytes(bytes(1024 * (size - 8)))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        artifacts.save_png(figure, folder / "f.png")
    assert (folder / "f.png").read_bytes() == b"the good one"
    run = train(CONFIG, threads=1)
    store = RunStore(folder / "records")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        store.save(run)
    assert not store.root.exists() or names(store.root) == []
    (outcome,) = sweep([CONFIG], store, jobs=1, progress=False)
    assert (outcome.record, os.strerror(errno.ENOSPC) in outcome.error) == (None, True)
    (kept,) = {*re.findall(r"/\S*/fa-record-[^/\s]+", str(outcome))}  # in the folder of temporary files
    shutil.rmtree(kept)


def text_calls_without_encoding(source: str) -> list[int]:
    """Lines of calls that read or write text in the locale's encoding."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and not any(keyword.arg == "encoding" for keyword in call.keywords):
            name = ast.unparse(call.func)
            arguments = ast.unparse(call).removeprefix(f"{name}(")
            binary = name in ("os.open", "tarfile.open", "Image.open") or re.match(r"""(\w+, )?'\w*b""", arguments)
            if name.endswith((".read_text", ".write_text")) or (name.split(".")[-1] == "open" and not binary):
                found.append(call.lineno)
    return found


def test_text_is_utf8_whatever_the_locale() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "fa").rglob("*.py")}
    lines = {str(path.relative_to(ROOT)): text_calls_without_encoding(text) for path, text in sources.items()}
    assert {path: calls for path, calls in lines.items() if calls} == {}


def test_a_sweep_whose_disk_is_full_keeps_the_record_of_each_run(
    small_disk: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = RunStore(small_disk(32) / "records")
    configs = [replace(CONFIG, iterations=5, seed=seed) for seed in range(3)]
    outcomes = sweep(configs, store, progress=False, processes=True)
    unsaved = [outcome for outcome in outcomes if outcome.record is None]
    assert 1 <= len(unsaved) < 3  # the others are in the store
    for outcome in unsaved:
        (record,) = tmp_path.glob(f"*/{store.key(outcome.config)}")
        assert str(record) in str(outcome)
        assert f"{Record(record).curve[-1]['test_accuracy']:.4f}" in str(outcome)
        assert RunStore(record.parent).find(outcome.config) is not None


def check_unsaved(folder: Path, temporary: str, errors: str) -> None:
    """Assert that the four runs are saved, or kept in the folder of temporary files and printed."""
    saved, kept = len(list(folder.glob("records/*/manifest.json"))), list(Path(temporary).glob("fa-record-*/*"))
    assert len(kept) == 4 - saved > 0
    for path in kept:
        assert re.search(rf"\baccuracy 0\.\d{{4}}\b.*{re.escape(str(path))}", errors)


FIG02 = "fig02 --profile smoke --jobs 1 --out"


def test_the_results_of_runs_that_are_not_saved_are_printed(small_disk: Callable[[int], Path]) -> None:
    folder = small_disk(48)
    with tempfile.TemporaryDirectory() as temporary:
        done = fa(f"sweep {FIG02} {folder}", env=os.environ | {"TMPDIR": temporary})
        assert done.returncode == 1, done.stderr
        check_unsaved(folder, temporary, done.stderr)


def test_the_results_of_a_notebooks_runs_that_are_not_saved_are_printed(
    small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_disk(48)
    with tempfile.TemporaryDirectory() as temporary:
        monkeypatch.setenv("TMPDIR", temporary)  # for the notebook's kernel
        with pytest.raises(SystemExit) as leaving:
            cli.main(["reproduce", *FIG02.split(), str(folder)])
        errors = capsys.readouterr().err
        assert leaving.value.code == 2, errors
        check_unsaved(folder, temporary, errors)


def test_a_folder_of_temporary_files_with_a_long_name_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    temporary = tmp_path / ("long" * 25)
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with pytest.raises(SystemExit) as leaving:
        cli.main(["sweep", "fig02", "--profile", "smoke", "--jobs", "1", "--out", str(tmp_path / "out")])
    check_refusal(leaving.value.code, capsys.readouterr().err, r"\bTMPDIR\b.*long")
