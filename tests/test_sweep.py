"""Sweeps with real processes: what is finished is kept, whatever ends the rest, and nobody is left behind."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fa.data import MissingDataError
from fa.experiments.runs import sweep as sweeping
from fa.experiments.runs.store import RunStore
from fa.experiments.runs.sweep import Outcome, select_shard, sweep
from fa.training import TrainConfig
from tests.processes import alive, descendants, wait_until, worked

# A run of well under a second, and one that outlasts every test.
SHORT = {"rule": "mean", "workers": 3, "byzantine": 1, "iterations": 2, "batch": 4}
LONG = SHORT | {"iterations": 1_000_000}

SCRIPT = """
import sys
from fa.experiments.runs.store import RunStore
from fa.experiments.runs.sweep import sweep
from fa.training import TrainConfig

def main():
    configs = [TrainConfig(seed=1, **{short!r}), TrainConfig(seed=2, **{long!r}), TrainConfig(seed=3, **{long!r})]
    sweep(configs, RunStore({root!r}), jobs=2, progress=False)

if __name__ == "__main__":
    main()
"""


def configs(*seeds: int) -> list[TrainConfig]:
    return [TrainConfig(seed=seed, **SHORT) for seed in seeds]


def test_finished_runs_are_reused_and_outcomes_keep_their_order(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    first = sweep(configs(1, 2), store, jobs=2, progress=False)
    inodes = {outcome.config: outcome.record.folder.stat().st_ino for outcome in first}
    again = sweep(configs(3, 2, 1), store, jobs=1, progress=False)
    assert [outcome.config.seed for outcome in again] == [3, 2, 1]
    assert {o.config: o.record.folder.stat().st_ino for o in again if o.config.seed != 3} == inodes


def test_a_process_that_cannot_start_fails_its_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = sweeping._start, []

    def starts_second(*arguments: object) -> object:
        started.append(None)
        if len(started) == 1:
            raise BrokenPipeError(32, "Broken pipe")
        return start(*arguments)

    monkeypatch.setattr(sweeping, "_start", starts_second)
    first, second = sweep(configs(1, 2), RunStore(tmp_path), jobs=1, progress=False)
    assert first.record is None
    assert "Broken pipe" in first.error
    assert second.record is not None


def test_a_process_that_cannot_start_beside_others_waits_for_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, alone = sweeping._start, []

    def starts_alone(context: object, *arguments: object) -> object:
        if any(child.process.is_alive() for child in alone):
            raise BrokenPipeError(32, "Broken pipe")
        alone.append(start(context, *arguments))
        return alone[-1]

    monkeypatch.setattr(sweeping, "_start", starts_alone)
    outcomes = sweep(configs(1, 2, 3), RunStore(tmp_path), jobs=3, progress=False)
    assert all(outcome.record is not None for outcome in outcomes)


def test_data_that_is_missing_is_told_before_any_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FA_DATA", str(tmp_path / "empty"))
    monkeypatch.setattr(sweeping, "_run_all", lambda *_: pytest.fail("began"))
    missing = TrainConfig(seed=1, dataset="mnist", **SHORT)
    with pytest.raises(MissingDataError, match="`fa data fetch mnist`"):
        sweep([missing], RunStore(tmp_path), progress=False)


def test_what_goes_beside_a_run_does_not_change_its_bits(tmp_path: Path) -> None:
    together = sweep(configs(1, 2), RunStore(tmp_path / "two"), jobs=2, progress=False)
    alone = sweep(configs(1), RunStore(tmp_path / "one"), jobs=1, progress=False)
    drop = lambda rows: [{name: x for name, x in row.items() if name != "seconds"} for row in rows]  # noqa: E731
    assert drop(together[0].record.curve) == drop(alone[0].record.curve)
    workers = [outcome.record.folder / "workers.csv" for outcome in (together[0], alone[0])]
    assert workers[0].read_bytes() == workers[1].read_bytes()


def test_a_run_that_fails_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    bad = TrainConfig(**SHORT | {"rule": "bulyan"})
    outcomes = sweep([*configs(1), bad, *configs(2)], RunStore(tmp_path), jobs=2, progress=False)
    assert [outcome.record is None for outcome in outcomes] == [False, True, False]
    assert re.search(r"\bbulyan\b.*\b4f \+ 3\b", outcomes[1].error)


def test_an_outcome_tells_the_rules_options() -> None:
    config = TrainConfig(
        rule="fa", byzantine=1, rule_options=(("preaggregators", ("krum", "unit")), ("formulation", "released"))
    )
    none = replace(config, rule_options=(("preaggregators", ()),))
    for run, start in ((config, "formulation = released, preaggregators = krum unit"), (none, "preaggregators = none")):
        assert re.match(rf"fa \({start}\), f = 1, seed ", str(Outcome(run, None, "why")))


def test_an_outcome_tells_the_settings_in_which_runs_differ(tmp_path: Path) -> None:
    some = [TrainConfig(**SHORT | {"attack": attack}) for attack in ("zero", "nan")]
    outcomes = sweep(some, RunStore(tmp_path), jobs=2, progress=False)
    assert [str(outcome).partition(", seed ")[0] for outcome in outcomes] == [
        f"mean, f = 1, attack = {attack}" for attack in ("zero", "nan")
    ]


@pytest.mark.parametrize("processes", [False, True])
def test_a_rule_whose_file_disappears_is_an_error_and_no_wait(
    processes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = tmp_path / "rule.py"
    rule.write_text("import fa.rules.mean\n\n\nclass Own(fa.rules.mean.Mean):\n    name = 'own'\n")
    config = TrainConfig(**SHORT | {"rule": f"{rule}:Own"})
    monkeypatch.setattr(sweeping, "check_present", lambda _: rule.unlink())
    with pytest.raises(ValueError, match=re.escape(str(rule))):
        sweep([config], RunStore(tmp_path / "records"), jobs=1, progress=False, processes=processes)


def test_progress_is_told_in_lines_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fa.utils.progress_bar.LINES", 0.0)
    sweep(configs(1), RunStore(tmp_path), jobs=1)
    assert "1 of 1 runs" in capsys.readouterr().err
    sweep(configs(1), RunStore(tmp_path), jobs=1)
    assert capsys.readouterr() == ("", "")


def test_a_core_serves_one_run_and_so_does_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "usable_cores", lambda: 8)
    assert sweeping._usual_jobs(configs(1)) == 8
    assert sweeping._usual_jobs([TrainConfig(device="cuda", **SHORT)]) == 1


TELLS_MUCH = """
import sys
from pathlib import Path
from fa.experiments.runs.store import RunStore
from fa.experiments.runs.sweep import sweep
from fa.training import TrainConfig

if __name__ == "__main__":
    print(len(sweep([TrainConfig(rule="x" * 300_000)], RunStore(Path({root!r})), jobs=1, progress=False)[0].error))
"""


def test_a_child_with_more_to_tell_than_a_pipe_holds_ends(tmp_path: Path) -> None:
    """A pipe holds 64 KiB: a parent that waited for the child's end before reading would wait for ever."""
    script = tmp_path / "run.py"
    script.write_text(TELLS_MUCH.format(root=str(tmp_path / "records")))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) > 300_000


@pytest.mark.parametrize("jobs", [0, -1, True])
def test_jobs_that_are_none_are_named(tmp_path: Path, jobs: int) -> None:
    with pytest.raises(ValueError, match=rf"^jobs must be .*\b1\b.*{jobs}\b"):
        sweep(configs(1), RunStore(tmp_path), jobs=jobs)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_shards_cover_every_run_once(parts: int) -> None:
    runs = configs(*range(10))
    split = [select_shard(runs, f"{i}/{parts}") for i in range(1, parts + 1)]
    assert sorted(config.seed for part in split for config in part) == list(range(10))
    assert max(map(len, split)) - min(map(len, split)) <= 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_a_shard_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"^shard must be .*i/k.*{text!r}"):
        select_shard(configs(1), text)


def runs_below(pid: int) -> list[int]:
    """The fork server's children."""
    return [run for child in descendants(pid) for run in descendants(child)]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs Linux")
@pytest.mark.parametrize(
    ("how", "stopping"),
    [(signal.SIGINT, False), (signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGKILL, True)],
    ids=["SIGINT", "SIGKILL", "SIGTERM", "SIGKILL-stopped"],
)
def test_an_interrupted_sweep_keeps_what_is_finished_and_leaves_nobody(
    tmp_path: Path, how: signal.Signals, stopping: bool
) -> None:
    store = RunStore(tmp_path / "records")
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(short=SHORT, long=LONG, root=str(store.root)))
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: store.find(configs(1)[0]) is not None)
        wait_until(lambda: len(descendants(process.pid)) >= 3)  # the fork server and the runs that go on
        children = descendants(process.pid)
        if stopping:  # a stopped process cannot end itself
            runs: list[int] = []

            def steady() -> bool:  # the finished run has ended, and the others are past what they begin with
                runs[:] = runs_below(process.pid)
                time.sleep(1)
                return runs == runs_below(process.pid) and all(worked(run) > 0.2 for run in runs)

            wait_until(steady)
            for run in runs:
                os.kill(run, signal.SIGSTOP)
        if how == signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does
        else:
            process.send_signal(how)
        _, errors = process.communicate(timeout=30)
        wait_until(lambda: not any(map(alive, children)))
    finally:
        if alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    assert ("KeyboardInterrupt" in errors) == (how == signal.SIGINT)
    assert store.find(configs(1)[0]) is not None
    assert store.find(TrainConfig(seed=2, **LONG)) is None


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs Linux")
def test_ctrl_c_while_processes_are_still_starting_is_told_once(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(short=SHORT, long=LONG, root=str(tmp_path / "records")))
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: len(descendants(process.pid)) >= 2)  # the resource tracker and the fork server
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        os.killpg(process.pid, signal.SIGKILL) if alive(process.pid) else None
    chained = errors.count("During handling")  # where the signal reached a handler of an exception
    assert errors.count("Traceback") - chained == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
