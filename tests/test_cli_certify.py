"""`fa certify`: what it prints, and one line for every file that it cannot take."""

import errno
import io
import json
import os
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from fa import cli, irls, sdp
from tests.texts import check_refusal

SIX_DIRECTIONS = [[1, -2, -1], [-2, 3, -3], [-3, 0, 2], [0, 3, 2], [3, 3, -1], [-1, 0, -1]]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of `fa certify ARGUMENTS`, in this process."""
    with pytest.raises(SystemExit) as leaving:
        cli.main(["certify", *map(str, arguments)])
    output = capsys.readouterr()
    assert isinstance(leaving.value.code, int)
    return leaving.value.code, output.out, output.err


@pytest.fixture
def G() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((6, 50)).astype(np.float32) + np.float32(0.3)


@pytest.fixture
def file(G: np.ndarray, tmp_path: Path) -> Path:
    path = tmp_path / "G.npy"
    np.save(path, G)
    return path


def test_json_holds_what_irls_and_the_certificate_found(
    capsys: pytest.CaptureFixture[str], G: np.ndarray, file: Path
) -> None:
    code, out, err = call(capsys, file, "--m", 2, "--lam", 3, "--a", 1.5, "--max-iter", 40, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    solution = irls.solve(G, m=2, lam=3.0, a=1.5, max_iter=40)
    certificate = sdp.certify(G, solution)
    assert (report["p"], report["m"], report["lam"], report["a"]) == (6, 2, 3.0, 1.5)
    assert (report["objective"], report["bound"], report["gap"]) == (
        solution.objective,
        certificate.bound,
        certificate.gap,
    )
    assert report["iterations"] == solution.iterations
    np.testing.assert_array_equal(report["values"], solution.values)
    np.testing.assert_array_equal(report["weights"], solution.weights())
    np.testing.assert_allclose(report["norms"], np.linalg.norm(G, axis=1), rtol=1e-6)


def test_a_file_a_worker_is_the_same(capsys: pytest.CaptureFixture[str], G: np.ndarray, file: Path) -> None:
    paths = [file.with_name(f"worker{i}.npy") for i in range(6)]
    for path, g in zip(paths, G, strict=True):
        np.save(path, g)
    together, apart = call(capsys, file, "--json"), call(capsys, *paths, "--json")
    assert apart == together
    _, out, _ = call(capsys, *paths)
    assert all(path.name in out for path in paths)


def test_the_table(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    code, out, _ = call(capsys, file, "--exact")
    assert code == 0
    report = json.loads(call(capsys, file, "--exact", "--json")[1])
    for name in ("objective", "bound", "gap"):
        assert f"{report[name]:.8g}" in out
    for number in report["values"] + report["weights"] + report["norms"]:
        assert f"{number:.6g}" in out
    assert report["bound"] <= report["exact"]["bound"] <= report["exact"]["polished_objective"]
    assert f"{report['exact']['rounded_objective']:.6f}"[:6] in out
    polished, bound = report["exact"]["polished_objective"], report["exact"]["bound"]
    assert report["exact"]["gap"] == (polished - bound) / polished >= 0
    assert "CLARABEL" in out
    assert "optimal" in out


def test_restarts_lower_the_objective(capsys: pytest.CaptureFixture[str], G: np.ndarray, file: Path) -> None:
    report = json.loads(call(capsys, file, "--m", 1, "--max-iter", 50, "--restarts", 10, "--json")[1])
    assert report["objective"] == irls.solve(G, m=1, max_iter=50, restarts=10).objective
    assert report["converged"]


def test_weights_of_workers_are_those_of_irls_and_of_the_relaxation(
    capsys: pytest.CaptureFixture[str], G: np.ndarray, file: Path
) -> None:
    code, out, _ = call(capsys, file, "--m", 2, "--lam", 1, "--worker-weights", "1,2,1,0.5,1,3", "--exact", "--json")
    assert code == 0
    report, weights = json.loads(out), (1.0, 2.0, 1.0, 0.5, 1.0, 3.0)
    solution = irls.solve(G, m=2, lam=1.0, worker_weights=weights)
    assert report["worker_weights"] == list(weights)
    assert (report["objective"], report["bound"]) == (solution.objective, sdp.certify(G, solution).bound)
    assert report["exact"]["value"] == sdp.solve(G, m=2, lam=1.0, worker_weights=weights).value
    check_one_line(call(capsys, file, "--worker-weights", "1,2"), r"^fa: worker_weights must be .*\b6\b")
    check_one_line(call(capsys, file, "--worker-weights", "much"), r"^fa: worker_weights must be .*'much'")


def lines_after_the_table(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    """The lines that are not numbers: what could lower the objective."""
    _, out, _ = call(capsys, *arguments)
    return [line for line in out.splitlines() if line.endswith(".")]


def test_it_names_what_lowers_the_objective(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Gradients on which IRLS from equal weights ends 13% above the relaxation's polished subspace."""
    path = tmp_path / "G.npy"
    np.save(path, np.array(SIX_DIRECTIONS, dtype=float))
    (short,) = lines_after_the_table(capsys, path, "--m", 2)
    assert "--max-iter" in short
    assert lines_after_the_table(capsys, path, "--m", 2, "--max-iter", 300) == []
    (better,) = lines_after_the_table(capsys, path, "--m", 2, "--max-iter", 300, "--exact")
    report = json.loads(call(capsys, path, "--m", 2, "--max-iter", 300, "--exact", "--json")[1])
    assert f"{report['exact']['polished_objective']:.8g}" in better


def test_one_gradient(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.save(tmp_path / "g.npy", np.ones(4))
    report = json.loads(call(capsys, tmp_path / "g.npy", "--json")[1])
    assert (report["p"], report["objective"], report["bound"], report["gap"]) == (1, 0, 0, 0)


def with_nan() -> np.ndarray:
    G = np.ones((4, 5))
    G[2, 1] = np.nan
    return G


@pytest.mark.parametrize(
    ("arrays", "pattern"),
    [
        ([with_nan()], r"NaN.*\b2\b"),
        ([np.ones((3, 4), dtype=np.int64)], r"\b0\.npy must .*int64"),
        ([np.ones((3, 4), dtype=complex)], r"\b0\.npy must .*complex128"),
        ([np.ones((2, 3, 4))], r"\b0\.npy must .*\(2, 3, 4\)"),
        ([np.float64(1)], r"\b0\.npy must .*\(\)"),
        ([np.ones(3), np.ones((2, 3))], r"\b1\.npy must .*\b2\b"),
        ([np.ones(3), np.ones(4)], r"\b1\.npy must .*\b3\b.*float64.*\b4\b"),
        ([np.ones(3), np.ones(3, np.float32)], r"\b1\.npy must .*float64.*\b3\b.*float32"),
        ([np.zeros((0, 3))], r"\b0\.npy must .*\(0, 3\)"),
    ],
)
def test_arrays_that_are_no_gradients(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arrays: list[np.ndarray], pattern: str
) -> None:
    for i, array in enumerate(arrays):
        np.save(tmp_path / f"{i}.npy", array)
    check_one_line(call(capsys, *sorted(tmp_path.iterdir())), pattern)


def check_one_line(output: tuple[int, str, str], pattern: str) -> None:
    code, out, err = output
    assert out == ""
    check_refusal(code, err, pattern)


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1.0,2.0\n",
        pickle.dumps([1.0]),
        saved(np.array([print], dtype=object)),
        saved(np.ones((3, 4)))[:-8],
        saved(np.ones((3, 4)))[:20],
    ],
    ids=["empty", "text", "pickle", "objects", "cut short", "header cut"],
)
def test_files_that_are_no_arrays(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.npy"
    path.write_bytes(content)
    check_one_line(call(capsys, path), re.escape(str(path)))


def test_files_that_are_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    check_one_line(call(capsys, tmp_path / "none.npy"), rf"\bnone\.npy\b.*{os.strerror(errno.ENOENT)}")
    check_one_line(call(capsys, tmp_path), re.escape(str(tmp_path)))
    check_one_line(call(capsys), r"\bFILE\b")


@pytest.mark.parametrize(
    ("option", "pattern"),
    [
        (("--m", 9), r"^fa: m must be .*\b6\b.*\b9\b"),
        (("--m", 0), r"^fa: m must be .*\b0\b"),
        (("--a", 0.5), r"^fa: a must be .*\b0\.5"),
        (("--lam", -1), r"^fa: lam must be .*-1"),
        (("--max-iter", 0), r"^fa: max_iter must be .*\b0\b"),
        (("--lam", "much"), r"--lam\b.*'much'"),
    ],
)
def test_options_out_of_range(
    capsys: pytest.CaptureFixture[str], file: Path, option: tuple[object, ...], pattern: str
) -> None:
    check_one_line(call(capsys, file, *option), pattern)


def test_a_relaxation_that_fails_leaves_the_certificate(
    capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no solution")

    monkeypatch.setattr("fa.sdp.solve", fails)
    code, out, err = call(capsys, file, "--exact", "--json")
    assert code != 0
    assert "no solution" in err
    assert json.loads(out) == json.loads(call(capsys, file, "--json")[1])


def test_exact_without_cvxpy(capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    monkeypatch.setattr("fa.irls.solve", lambda *_, **__: pytest.fail("the file is read first"))
    check_one_line(call(capsys, file, "--exact"), r"cvxpy.*pip install .*\[theory\]")
    monkeypatch.undo()
    assert call(capsys, file)[0] == 0
