"""Killed, cut short, no room left: each is told or done again, and nothing that is finished is lost."""

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from fa import cli
from fa.experiments import figure_module
from fa.experiments.reporting import report
from fa.experiments.runs.store import RunStore
from tests.processes import alive, beside, descendants, wait_until
from tests.texts import check_refusal

ROOT = Path(__file__).parents[1]
RUN = "--workers 3 --byzantine 1 --iterations 60 --batch 4 --rule median --threads 1"
AGGREGATE = "import fa, numpy; print(*fa.aggregate(numpy.arange(30.0).reshape(3, 10), 'mean').tolist())"


def fa(words: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from fa.cli import main; main()", *words.split()]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs Linux")
def test_a_notebook_that_was_killed_in_mid_run_goes_on_from_the_runs_it_had_finished(tmp_path: Path) -> None:
    words = f"reproduce fig05 --profile smoke --jobs 1 --out {tmp_path}"
    study = figure_module("fig05").study("smoke", tmp_path)
    store, configs = RunStore(study.store.root), list(study.configs)

    def finished() -> dict[str, int]:
        return {store.key(c): record.folder.stat().st_ino for c in configs if (record := store.find(c))}

    first = fa(words)
    wait_until(lambda: len(finished()) > 0, 120)
    below = descendants(first.pid)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    wait_until(lambda: not any(map(alive, below)))
    before = finished()
    assert 0 < len(before) < len(configs)
    second = fa(words)
    _, errors = second.communicate(timeout=240)
    assert (second.returncode, errors.count("Traceback")) == (0, 0), errors
    after = finished()
    assert len(after) == len(configs)
    assert {key: after[key] for key in before} == before  # not made again
    assert matplotlib.image.imread(tmp_path / "fig05_batch_size.png").std() > 0  # a whole picture with something on it


def no_file_larger_than(size: int) -> dict[str, object]:
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}


def run_without_room(words: str, result: Path) -> None:
    """In a process of its own: run `fa WORDS` where no file may be larger than 1024 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    errors = io.StringIO()
    with redirect_stderr(errors), pytest.raises(SystemExit) as leaving:
        cli.main(words.split())
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    result.write_text(json.dumps([leaving.value.code, errors.getvalue()]))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (f"train {RUN} --out PLACE/run", "PLACE/run"),
        (f"train {RUN} --checkpoint PLACE/kept --checkpoint-every 0", "PLACE/kept"),
        ("augment lv --out PLACE/lv", "PLACE/lv"),
        ("aggregate PLACE/G.npy --out PLACE/d.npy", "PLACE/d.npy"),
    ],
)
def test_where_no_room_is_left_one_line_says_for_what_and_nothing_half_made_stays(
    words: str, named: str, tmp_path: Path
) -> None:
    """A limit on the size of files stands for a full disk."""
    place = tmp_path / "place"
    place.mkdir()
    np.save(place / "G.npy", np.ones((3, 1000)))
    process = beside(run_without_room, words.replace("PLACE", str(place)), tmp_path / "result")
    process.join(120)
    assert process.exitcode == 0
    code, errors = json.loads((tmp_path / "result").read_text())
    check_refusal(code, errors, re.escape(named.replace("PLACE", str(place))))
    assert [path.name for path in place.iterdir()] == ["G.npy"]


@pytest.mark.long
def test_a_damaged_cache_of_compiled_loops_is_made_again(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", AGGREGATE]
    first = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    written = sorted(path for path in tmp_path.rglob("*") if path.suffix in (".nbi", ".nbc"))
    assert len(written) >= 4
    for number, path in enumerate(written):
        whole = path.read_bytes()
        path.write_bytes((b"", whole[: len(whole) // 2], whole[:50] + bytes(9) + whole[59:])[number % 3])
    again = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert again.stdout == first.stdout
    repaired = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")} == repaired  # nothing compiled anew


@pytest.mark.slow
def test_without_room_for_compiled_loops_they_are_used_and_not_kept(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", AGGREGATE]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, **no_file_larger_than(64))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[0] == "10.0"


@pytest.mark.parametrize("suffix", [".json", ".claims.csv"])
@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: bytes(range(256))])
def test_a_figures_damaged_file_is_named(suffix: str, damage, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "figures" / "quick", tmp_path / "quick", ignore=shutil.ignore_patterns("records*", "*.p*"))
    path = tmp_path / "quick" / f"fig04_byzantine_workers{suffix}"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"\bfig04_byzantine_workers\b.*\.json\b.*\.claims\.csv\b"):
        report.write(tmp_path / "quick")
