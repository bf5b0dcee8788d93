"""Surroundings that are not as usual: other libraries, kernels and users; files as others write them; long times."""

import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import fa
from fa.augment import flow
from fa.cli import main
from fa.data import sources
from fa.experiments.notebooks import execute
from fa.experiments.reporting import report
from fa.gradients.memory_map import layout
from fa.training import TrainConfig
from fa.training import loop as training_loop
from fa.training.loop import Loop
from fa.training.transports.base import GatheredGradients
from fa.utils.validation import TooFewWorkersError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("t", [3, 5, 12, 24, -24])
def test_the_cat_map_is_right_at_any_time_that_is_not_refused(t: int) -> None:
    points = np.random.default_rng(0).random((50, 2))
    a, b, c, d = (1, 0, 0, 1)
    for _ in range(abs(t)):
        a, b, c, d = (2 * a + c, 2 * b + d, a + c, b + d) if t > 0 else (a - c, b - d, 2 * c - a, 2 * d - b)
    exact = [[float((p * Fraction(x) + q * Fraction(y)) % 1) for p, q in ((a, b), (c, d))] for x, y in points]
    distance = np.abs(flow("cat", points, t) - exact)
    assert np.minimum(distance, 1 - distance).max() < 2e-5


@pytest.mark.parametrize("t", [24.5, -25.0, 1000.0])
def test_times_at_which_the_cat_map_is_noise_are_refused(t: float) -> None:
    with pytest.raises(ValueError, match=rf"^t must .*{t}"):
        flow("cat", [[0.1, 0.2]], t)


def test_fast_rotations_are_in_closed_form() -> None:
    expected = [[np.cos(1e5), np.sin(1e5)]]
    np.testing.assert_allclose(flow("rotation", [[1.0, 0.0]], 1.0, omega=1e5), expected, atol=1e-9)


@pytest.mark.parametrize("m", [-1.0, -1e-9])
def test_negative_exponents_of_the_smooth_cat_map_are_refused(m: float) -> None:
    with pytest.raises(ValueError, match=r"^m must"):
        flow("smooth_cat", np.zeros((1, 2)), 1.0, m=m)
    assert np.isfinite(flow("smooth_cat", np.array([[0.0, 0.0], [1.0, 1.0]]), 1.0, m=1e6)).all()


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main(list(arguments))
    return int(exited.value.code or 0)


def test_safetensors_with_metadata_in_one_file_are_read(tmp_path: Path) -> None:
    tensors = [{"a": torch.full((3,), float(i)), "b": torch.ones(2, 2) * i} for i in range(5)]
    paths = [tmp_path / f"{i}.safetensors" for i in range(5)]
    for i, (path, content) in enumerate(zip(paths, tensors, strict=True)):
        save_file(content, path, metadata={"format": "pt" * i} if i else None)
    assert call("aggregate", *map(str, paths), "--rule", "median", "--out", str(tmp_path / "d.safetensors")) == 0
    found = load_file(tmp_path / "d.safetensors")
    assert torch.equal(found["b"], torch.full((2, 2), 2.0))


def test_safetensors_with_counts_are_read_as_state_dicts(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.safetensors") for i in range(5)]
    for i, path in enumerate(paths):
        save_file({"w": torch.full((3,), float(i)), "num_batches_tracked": torch.tensor(10 + i)}, path)
    assert call("aggregate", *paths, "--rule", "median", "--out", str(tmp_path / "d.safetensors")) == 0
    found = load_file(tmp_path / "d.safetensors")
    assert int(found["num_batches_tracked"]) == 12
    assert torch.equal(found["w"], torch.full((3,), 2.0))


@pytest.mark.parametrize("shape", ["(9223372036854775808,)", "(True,)", "(-4,)", "(4.0,)", "(4611686018427387904, 4)"])
def test_headers_with_absurd_shapes_are_refused(shape: str, tmp_path: Path) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    (tmp_path / "G.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))
    with pytest.raises(ValueError, match=r"G\.npy"):
        layout(tmp_path / "G.npy")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_are_refused_and_not_awaited(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "G.npy")
    with pytest.raises(ValueError, match=r"G\.npy must be a regular file"):
        layout(tmp_path / "G.npy")


def test_files_of_a_package_that_are_not_wanted_are_not_unpacked(tmp_path: Path) -> None:
    """One may be a bomb: here, it is not even gzip."""
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as tar:
        for name, content in (("bomb.gz", b"no gzip"), ("wanted", b"data")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with tarfile.open(tmp_path / "package.tgz") as tar:
        assert dict(sources._members(tar, {"wanted": ""})) == {"wanted": b"data"}


def test_texts_of_a_copied_figure_are_no_markup(tmp_path: Path) -> None:
    source = ROOT / "figures" / "quick"
    for suffix in (".json", ".claims.csv"):
        name = f"fig04_byzantine_workers{suffix}"
        (tmp_path / name).write_text((source / name).read_text(encoding="utf-8"), encoding="utf-8")
    path = tmp_path / "fig04_byzantine_workers.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    about["settings"] += "<script>alert(1)</script> <img src=x onerror=alert(2)> [x](javascript:alert(3))"
    path.write_text(json.dumps(about), encoding="utf-8")
    report.write(tmp_path)
    page = (tmp_path / "REPORT.html").read_text(encoding="utf-8")
    for markup in ("<script", "<img src=x", 'href="javascript'):
        assert markup not in page
    assert '<a id="fig04_byzantine_workers"></a>' in page


class NanLoss:
    """A transport of which two of four workers are gone, and one sends a loss of NaN."""

    def gradients(self, iteration: int) -> GatheredGradients:
        G = torch.ones(4, 3)
        G[:2] = torch.nan
        return GatheredGradients(G, torch.tensor(torch.nan), {0: "its process has ended", 1: "its process has ended"})

    def statistics(self) -> list:
        return []

    def momenta(self) -> list[torch.Tensor]:
        return []


def test_a_loss_of_nan_does_not_hide_that_too_few_workers_are_left() -> None:
    config = TrainConfig(workers=4, byzantine=1, rule="multi_krum", iterations=5, batch=4)
    rule = training_loop.make_rule("multi_krum", f=1)
    loop = Loop(config, rule, NanLoss(), torch.zeros(3), 100)
    with pytest.raises(TooFewWorkersError, match=r"^iteration 1: "):
        loop.run(lambda: 0.5, None)


UNKNOWN = """
import os, pwd, sys

def unknown(*_):
    raise KeyError("unknown")

pwd.getpwuid = pwd.getpwnam = unknown
os.environ.pop("HOME", None)
from fa.cli import main
for words in ("data list", "doctor", "train --rule ~nosuchuser/r.py:X --iterations 1"):
    try:
        main(words.split())
    except SystemExit as leaving:
        print(words.split()[0], leaving.code)
"""


def test_an_unknown_user_is_told_in_one_line() -> None:
    """By each command that looks for a folder of the user's; one process for all."""
    environment = {name: value for name, value in os.environ.items() if name not in ("XDG_CACHE_HOME", "FA_DATA")}
    command = [sys.executable, "-c", UNKNOWN]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["data 2", "doctor 2", "train 2"]
    assert [line[:4] for line in done.stderr.splitlines()] == ["fa: "] * 3, done.stderr


def test_without_a_writable_cache_loops_are_compiled_and_that_is_said_once(tmp_path: Path) -> None:
    code = (
        "import numba.core.caching as c\n"
        "c.CacheImpl._locator_classes = []\n"
        "import numpy, fa\n"
        "print(*fa.aggregate(numpy.arange(30.0).reshape(3, 10), 'mean')[:2])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "10.0 11.0\n"
    assert done.stderr.count("NUMBA_CACHE_DIR") == 1


@pytest.mark.parametrize("chosen", [True, False])
def test_doctor_reports_the_folder_that_stores_the_loops(chosen: bool, tmp_path: Path) -> None:
    """That of NUMBA_CACHE_DIR comes first; without any folder the line says what to set."""
    without = "" if chosen else "import numba.core.caching as c; c.CacheImpl._locator_classes = []; "
    code = f"{without}from fa.cli import main; main()"
    environment = os.environ | ({"NUMBA_CACHE_DIR": str(tmp_path)} if chosen else {})
    command = [sys.executable, "-c", code, "doctor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    (line,) = (line for line in done.stdout.splitlines() if "kernel cache" in line)
    assert line.startswith("ok") == chosen
    assert (str(tmp_path) if chosen else "NUMBA_CACHE_DIR") in line


def test_folders_named_like_templates_and_foreign_kernels_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """papermill formats paths, and takes the first kernel named python3 on JUPYTER_PATH."""
    pytest.importorskip("papermill")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"}))
    kernelspec = {"name": "python3", "display_name": "x", "language": "python"}
    cell = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    out = tmp_path / "run{1}{x}"

    def run(source: str) -> Path:
        notebook = {"cells": [cell | {"source": source}], "metadata": {"kernelspec": kernelspec}}
        (tmp_path / "n.ipynb").write_text(json.dumps(notebook | {"nbformat": 4, "nbformat_minor": 4}))
        return execute(tmp_path / "n.ipynb", out)

    assert run("print(6 * 7)") == out / "notebooks" / "n.ipynb"
    assert (out / "notebooks" / "n.ipynb").exists()
    assert "42" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"^n\.ipynb\b"):
        run("import os; os._exit(9)")


def test_options_of_byzfls_attacks_and_its_label_flipping() -> None:
    pytest.importorskip("byzfl")
    from fa.attacks import make_attack

    for tau in (1.5, 3.0):
        G = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
        honest = G[1:].clone()
        make_attack(f"byzfl:ALittleIsEnough(tau={tau})").apply(G, range(1), 0, 0)
        expected = honest.mean(0) + tau * honest.std(0)
        torch.testing.assert_close(G[0], expected)
    for name in ("LabelFlipping", "ALittleIsEnough(tau)", "ALittleIsEnough(no=1)", "ALittleIsEnough(tau=1"):
        with pytest.raises(ValueError, match="attack of byzfl"):
            make_attack(f"byzfl:{name}")


@pytest.mark.parametrize("name", ["CAF", "SMEA"])
def test_a_failure_of_byzfl_names_the_rule(name: str) -> None:
    pytest.importorskip("byzfl")
    with pytest.raises(ValueError, match=rf"^byzfl:{name}\b"):
        fa.make_rule(f"byzfl:{name}", f=1)(torch.zeros(7, 5))


def test_byzfl_servers_bear_gradients_of_another_dtype() -> None:
    pytest.importorskip("byzfl")
    from fa.interop.byzfl import register

    register()
    rule = getattr(importlib.import_module("byzfl.aggregators.aggregators"), "fa:median")(f=1)
    vectors = [torch.ones(3), torch.ones(3), torch.ones(3), torch.full((3,), torch.inf, dtype=torch.float64)]
    assert torch.equal(rule(vectors), torch.ones(3))
