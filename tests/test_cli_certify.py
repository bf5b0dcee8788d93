"""`fa certify`: what it prints, and one line for every file that it cannot take."""

import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from fa import cli, irls, sdp


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
    assert "CLARABEL, optimal" in out
    assert "the optimum of eq. 5 with a = 2" in out


def test_one_gradient(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.save(tmp_path / "g.npy", np.ones(4))
    report = json.loads(call(capsys, tmp_path / "g.npy", "--json")[1])
    assert (report["p"], report["objective"], report["bound"], report["gap"]) == (1, 0, 0, 0)


def with_nan() -> np.ndarray:
    G = np.ones((4, 5))
    G[2, 1] = np.nan
    return G


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ([with_nan()], "NaN or Inf is in row 2"),
        ([np.ones((3, 4), dtype=np.int64)], "0.npy must be of float16, float32 or float64; its dtype is int64"),
        ([np.ones((3, 4), dtype=complex)], "0.npy must be of float16, float32 or float64; its dtype is complex128"),
        ([np.ones((2, 3, 4))], "0.npy must hold (p, n) or (n,); its shape is (2, 3, 4)"),
        ([np.float64(1)], "0.npy must hold (p, n) or (n,); its shape is ()"),
        ([np.ones(3), np.ones((2, 3))], "1.npy must hold one gradient, (n,), where 2 files are given"),
        ([np.ones(3), np.ones(4)], "1.npy must hold 3 numbers of float64, as"),
        ([np.ones(3), np.ones(3, np.float32)], "it holds 3 numbers of float32"),
        ([np.zeros((0, 3))], "0.npy must hold at least one number; its shape is (0, 3)"),
    ],
)
def test_arrays_that_are_no_gradients(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arrays: list[np.ndarray], said: str
) -> None:
    for i, array in enumerate(arrays):
        np.save(tmp_path / f"{i}.npy", array)
    one_line(call(capsys, *sorted(tmp_path.iterdir())), said)


def one_line(output: tuple[int, str, str], said: str) -> None:
    code, out, err = output
    assert (code, out) == (2, "")
    assert err.startswith("fa: ")
    assert err.count("\n") == 1
    assert said in err


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "must be a .npy or .safetensors file"),
        (b"1.0,2.0\n", "must be a .npy or"),
        (pickle.dumps([1.0]), "must be a .npy or"),
        (saved(np.array([print], dtype=object)), "cannot be read: "),
        (saved(np.ones((3, 4)))[:-8], "cannot be read: "),
        (saved(np.ones((3, 4)))[:20], "cannot be read: "),
    ],
    ids=["empty", "text", "pickle", "objects", "cut short", "cut in the header"],
)
def test_files_that_are_no_arrays(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "bad.npy"
    path.write_bytes(content)
    one_line(call(capsys, path), f"{path} {said}")


def test_files_that_are_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    one_line(call(capsys, tmp_path / "none.npy"), "none.npy cannot be read: No such file or directory")
    one_line(call(capsys, tmp_path), "cannot be read: Is a directory")
    one_line(call(capsys), "Missing argument 'FILE...'")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--m", 9), "m must be at most p = 6"),
        (("--m", 0), "m must be an integer of at least 1"),
        (("--a", 0.5), "a must be a finite number of at least 1"),
        (("--lam", -1), "lam must be a finite number of at least 0"),
        (("--max-iter", 0), "max_iter must be"),
        (("--lam", "much"), "'much' is not a valid float"),
    ],
)
def test_options_out_of_range(
    capsys: pytest.CaptureFixture[str], file: Path, option: tuple[object, ...], said: str
) -> None:
    one_line(call(capsys, file, *option), said)


def test_exact_without_cvxpy(capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    one_line(call(capsys, file, "--exact"), "pip install cvxpy")
    assert call(capsys, file)[0] == 0
