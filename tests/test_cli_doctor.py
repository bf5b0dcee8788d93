"""`fa doctor` lists what is installed, and how to add what is missing."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from fa.cli import cli, doctor


def report() -> dict[str, tuple[str, str]]:
    done = CliRunner().invoke(cli, ["doctor"], catch_exceptions=False)
    assert done.exit_code == 0
    rows = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    return {name.strip(): (state, note.strip()) for state, rest in rows for name, _, note in [rest.partition("  ")]}


def test_what_the_tests_need_is_here() -> None:
    lines = report()
    for name in ("python", "fa", "torch", "numba", "papermill", "cvxpy", "byzfl", "mnist-mini", "cores"):
        assert lines[name][0] == "ok", lines[name]


def test_what_is_missing_is_listed_with_its_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FA_DATA", str(tmp_path))
    monkeypatch.setattr(doctor, "_LIBRARIES", {"theory": ("no-such-library",)})
    monkeypatch.setattr(doctor, "_MIN_DISK", 1e30)
    lines = report()
    assert lines["no-such-library"][0] == "missing"
    assert "pip install 'flag-aggregator[theory]'" in lines["no-such-library"][1]
    assert lines["cifar10"][0] == "missing"
    assert "fa data fetch cifar10" in lines["cifar10"][1]
    assert lines["free disk"][0] == "missing"


def test_links_are_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fa.experiments.measurements.lossy_links.unsupported_reason", lambda: "root only")
    assert report()["lossy links"] == ("missing", "root only")
