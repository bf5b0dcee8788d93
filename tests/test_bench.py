"""The benchmark measures what it says, side by side, and its peers compute the same as our rules."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import fa
from fa.bench import cases, peers, timing
from fa.bench.cases import (
    DEFAULT_N,
    OURS,
    PAPER,
    READ,
    SIZES,
    WORKERS,
    RuleTiming,
    all_cases,
    default_cases,
    num_byzantine,
)
from fa.bench.draw import IMPLEMENTATIONS, draw
from fa.bench.table import slopes, summary, table
from fa.cli import cli, main
from fa.utils.validation import TooFewWorkersError
from tests.texts import check_refusal, numbers


class Clock:
    """Time that only the calls under test let pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def takes(self, *seconds: float, log: list[str] | None = None, name: str = ""):
        left = list(seconds)

        def call() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]
            if log is not None:
                log.append(name)

        return call


def test_calls_take_turns_and_the_first_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(monkeypatch), list[str]()
    slow = (9.0, 8.0, 1.0, 8.0, 3.0, 8.0, 2.0)
    calls = {"a": clock.takes(*slow, log=log, name="a"), "b": clock.takes(0.5, log=log, name="b")}
    found = timing.interleaved(calls, repeats=3, patience=100)
    assert log == ["a", "b", *["a", "a", "b", "b"] * 3], "each timed call follows an untimed one of its own"
    assert (found["a"].first, found["a"].median, found["a"].repeats) == (9.0, 2.0, 3)
    assert (found["b"].median, found["b"].spent) == (0.5, 2.0)


def test_a_slow_call_is_repeated_while_patience_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = timing.interleaved({"slow": clock.takes(4.0), "slowest": clock.takes(30.0)}, repeats=10, patience=10)
    assert (found["slow"].repeats, found["slow"].median) == (2, 4.0)
    assert (found["slowest"].repeats, found["slowest"].median) == (1, 30.0)


def test_peers_compute_what_our_rules_do() -> None:
    """Else the ratio would compare two different things; Multi-Krum keeps as many as the other does."""
    p, f = 15, num_byzantine(15)
    G = torch.randn(p, 500, generator=torch.Generator().manual_seed(1))
    options = {
        "multi_krum": {"keep": p - f},
        "geometric_median": {"nu": 0.1, "max_iter": 3, "tol": 0.0},
        "centered_clipping": {"tau": 100.0, "max_iter": 1},
        "monna": {"reference": 0},
    }
    for rule, aggregate in peers.library_aggregators("byzfl", p, f).items():
        if rule == "caf":  # from a random vector; tests/test_field_rules.py compares it where that does not matter
            continue
        ours = fa.aggregate(G, rule, f=f, **options.get(rule, {}))
        np.testing.assert_allclose(np.asarray(aggregate(G)), ours, rtol=1e-4, atol=1e-5, err_msg=rule)
    for rule, aggregate in peers.torch_aggregators().items():
        found = aggregate(G)
        found = found if isinstance(found, torch.Tensor) else found.values
        np.testing.assert_allclose(found, fa.aggregate(G, rule), rtol=1e-4, atol=1e-5, err_msg=rule)
    unit = G / G.norm(dim=1, keepdim=True)
    ours = fa.irls.solve(G, tol=0.0, max_iter=5)
    values, direction = peers.svd_flag_aggregator(5)(unit)
    np.testing.assert_allclose(values, ours.values, atol=1e-4)
    np.testing.assert_allclose(direction, fa.irls.solve(unit, tol=0.0, max_iter=5).direction(), atol=1e-4)


def test_byzpy_computes_what_our_rules_do() -> None:
    pytest.importorskip(
        "byzpy", reason="byzpy's own limits exclude this torch: pip install --no-deps byzpy cloudpickle"
    )
    p, f = 15, num_byzantine(15)
    G = torch.randn(p, 500, generator=torch.Generator().manual_seed(1))
    for rule, aggregate in peers.library_aggregators("byzpy", p, f).items():
        options = {"keep": p - f} if rule == "multi_krum" else {}
        ours = fa.aggregate(G, rule, f=f, **options)
        np.testing.assert_allclose(aggregate(G), ours, rtol=1e-4, atol=1e-5, err_msg=rule)


def test_a_library_that_is_not_there_is_left_out_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(peers.importlib, "import_module", refuse)
    with pytest.raises(peers.Missing, match=r"^byzfl\b.*pip install byzfl"):
        peers.library_aggregators("byzfl", 15, 3)


def test_the_default_cases_vary_one_size_at_a_time() -> None:
    assert len(all_cases()) == len(SIZES) * len(WORKERS)
    assert set(default_cases()) < set(all_cases())
    assert [num_byzantine(p) for p in WORKERS] == [1, 3, 6, 14]
    for p in WORKERS:
        fa.make_rule("bulyan", f=num_byzantine(p)).check_workers(p)


def rows() -> list[RuleTiming]:
    """Rules whose time grows as n p^2, peers that take ten times as long, reading at 1 GB/s."""
    found = []
    for n, p in default_cases():
        seconds = 1e-9 * n * p**2
        found += [RuleTiming(n, p, num_byzantine(p), rule, OURS, seconds, 1.0, 10, 1.0) for rule in fa.RULES]
        found += [RuleTiming(n, p, num_byzantine(p), "median", "byzfl", 10 * seconds, 1.0, 3, 10.0)]
        found += [RuleTiming(n, p, num_byzantine(p), "fa, 5 SVDs", PAPER, 300 * seconds, 1.0, 1, 300.0)]
        found += [RuleTiming(n, p, num_byzantine(p), "", READ, 4e-9 * n * p, 1.0, 10, 0.1)]
    return found


def test_the_table_gives_ratios_growth_and_bandwidth() -> None:
    case = [row for row in rows() if (row.n, row.p) == (DEFAULT_N, 15)]
    shown = table(case)
    assert numbers(str(shown.title)) == [15, 1e6, 3, 60, 1.0]
    by_rule = {rule: cells for rule, *cells in zip(*(column.cells for column in shown.columns), strict=True)}
    assert by_rule["median"] == ["225", "1.00", "0.3", "1e+03", "10", "10", "", ""]
    assert by_rule["fa, 5 SVDs"][:2] == ["6.75e+04", "300.00"]
    assert slopes(rows(), "n") == pytest.approx(dict.fromkeys(fa.RULES, 1.0))
    assert slopes(rows(), "p") == pytest.approx(dict.fromkeys(fa.RULES, 2.0))
    assert numbers(list(summary(rows()))[-1])[-len(fa.RULES) :] == [16.0] * len(fa.RULES)
    assert slopes(case, "n") == {}


def test_the_picture_has_every_rule_and_every_peer() -> None:
    figure = draw(rows(), "title")
    bars, by_n, by_p = figure.axes
    assert [label.get_text() for label in bars.get_yticklabels()][:2] == ["Mean", "Median"]
    assert len(by_n.lines) == len(by_p.lines) == len(fa.RULES)
    assert "FA (1.00, 2.00)" in [text.get_text() for text in by_p.get_legend().get_texts()]


def test_what_was_not_measured_is_not_drawn() -> None:
    one = [row for row in rows() if (row.n, row.p) == (DEFAULT_N, 15)]
    bars, by_n, by_p = draw(one, "title").axes
    assert [text.get_text() for text in bars.get_legend().get_texts()] == [
        IMPLEMENTATIONS[by] for by in (OURS, "byzfl", PAPER)
    ]
    assert not by_n.axison
    assert not by_p.axison


@pytest.mark.draws_globally
def test_the_command_writes_its_numbers_and_picture(tmp_path: Path) -> None:
    command = ["bench", "--n", "500", "--p", "7", "--p", "15", "--repeats", "1", "--out", str(tmp_path)]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert [7, 500, 1] in [numbers(line)[:3] for line in done.stdout.splitlines()]
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert {row["rule"] for row in kept["rows"] if row["by"] == OURS} == set(fa.RULES)
    assert kept["threads"] == torch.get_num_threads()
    with Image.open(tmp_path / "bench.png") as picture:
        assert np.asarray(picture).std() > 10


@pytest.mark.parametrize(
    ("option", "pattern"),
    [
        (["--device", "tpu"], r"^fa: device must be .*'tpu'"),
        (["--patience", "0"], r"^fa: patience must be .*\b0\.0\b"),
    ],
)
def test_what_it_refuses(option: list[str], pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--n", "100", *option])
    check_refusal(ended.value.code, capsys.readouterr().err, pattern)


def test_too_few_workers_for_a_rule_are_told_before_any_case() -> None:
    with pytest.raises(TooFewWorkersError, match=r"\bp = 2\b"):
        next(cases.measure_times([(10, 7), (10, 2)], repeats=1))


@pytest.mark.parametrize("wrong", [["--p", "2"], ["--rule", "nosuch"]])
def test_wrong_cases_leave_no_folder(wrong: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["bench", *wrong, "--out", str(tmp_path / "a" / "b")])
    assert isinstance(result.exception, ValueError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.draws_globally  # byzfl
def test_a_failing_case_keeps_the_finished_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*args: Any, **options: Any) -> Iterator[list[cases.RuleTiming]]:
        yield from measure(*args, **options)
        raise MemoryError

    measure = cases.measure_times
    monkeypatch.setattr(cases, "measure_times", measured)
    command = ["bench", "--n", "100", "--p", "7", "--repeats", "1", "--patience", "0.1", "--out", str(tmp_path)]
    assert isinstance(CliRunner().invoke(cli, command).exception, MemoryError)
    assert {row["n"] for row in json.loads((tmp_path / "bench.json").read_text())["rows"]} == {100}


@pytest.mark.parametrize("load", [0.1, 3.0])
def test_a_busy_machine_is_named(load: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "measure_times", lambda *arguments, **options: iter([]))
    monkeypatch.setattr("os.cpu_count", torch.get_num_threads)
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    result = CliRunner().invoke(cli, ["bench", "--n", "50", "--p", "15", "--repeats", "1"])
    assert result.exit_code == 0
    named = [line for line in result.stderr.splitlines() if "load" in line]
    assert [numbers(line) for line in named] == ([[3.0]] if load == 3.0 else [])
