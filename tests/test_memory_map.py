"""Gradients in files: what the rules make of them is what they make of arrays, and memory stays free."""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from fa import RULES, cli, kernels, make_rule
from fa.gradients import memory_map
from fa.rules.decision import NOT_FINITE

P, N = 7, 70_001  # three chunks of the compiled loops, the last one cut


@pytest.fixture
def G() -> torch.Tensor:
    rng = np.random.default_rng(3)
    return torch.from_numpy(rng.standard_normal((P, N)) + rng.standard_normal(N)).float()


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["aggregate", *map(str, arguments)])
    output = capsys.readouterr()
    assert isinstance(leaving.value.code, int)
    return leaving.value.code, output.out, output.err


def saved_as_one(G: torch.Tensor, folder: Path) -> list[Path]:
    np.save(folder / "G.npy", G.numpy())
    return [folder / "G.npy"]


def saved_one_each(G: torch.Tensor, folder: Path) -> list[Path]:
    for i, g in enumerate(G):
        np.save(folder / f"{i}.npy", g.numpy())
    return [folder / f"{i}.npy" for i in range(len(G))]


def saved_as_layers(G: torch.Tensor, folder: Path) -> list[Path]:
    for i, g in enumerate(G):
        layers = {"bias": g[:1], "weight": g[1:].reshape(700, 100).contiguous()}
        safetensors.torch.save_file(layers, folder / f"{i}.safetensors")
    return [folder / f"{i}.safetensors" for i in range(len(G))]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("save", [saved_as_one, saved_one_each, saved_as_layers])
def test_a_rule_makes_the_same_bits_of_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, G: torch.Tensor, rule: str, save: Callable[..., list[Path]]
) -> None:
    code, out, err = call(capsys, *save(G, tmp_path), "--rule", rule, "--f", 1, "--out", tmp_path / "d.npy")
    assert (code, err) == (0, "")
    (heading,) = [line for line in out.splitlines() if str(N) in line]
    assert heading.split()[0] == rule
    assert re.findall(r"\d+", heading)[:2] == [str(P), str(N)]
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), make_rule(rule, f=1)(G).numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_named_tensors_of_every_dtype_come_back_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, G: torch.Tensor, dtype: torch.dtype
) -> None:
    G = G.to(dtype)
    out = tmp_path / "d.safetensors"
    assert call(capsys, *saved_as_layers(G, tmp_path), "--rule", "median", "--out", out)[0] == 0
    layers = safetensors.torch.load_file(out)
    assert {name: (layer.shape, layer.dtype) for name, layer in layers.items()} == {
        "bias": ((1,), dtype),
        "weight": ((700, 100), dtype),
    }
    # The order in the file is the library's own: each layer is checked against the gradients of that layer alone.
    assert torch.equal(layers["bias"], make_rule("median")(G[:, :1]))
    assert torch.equal(layers["weight"].flatten(), make_rule("median")(G[:, 1:]))


def test_a_workers_only_layer_may_be_a_matrix(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, G: torch.Tensor
) -> None:
    paths = [tmp_path / f"{i}.safetensors" for i in range(P)]
    for g, path in zip(G, paths, strict=True):
        safetensors.torch.save_file({"weight": g[1:].reshape(700, 100).contiguous()}, path)
    out = tmp_path / "d.safetensors"
    assert call(capsys, *paths, "--rule", "median", "--out", out)[0] == 0
    [(name, weight)] = safetensors.torch.load_file(out).items()
    assert (name, weight.shape) == ("weight", (700, 100))
    assert torch.equal(weight.flatten(), make_rule("median")(G[:, 1:]))


def test_the_options_of_the_rule_reach_it(capsys: pytest.CaptureFixture[str], tmp_path: Path, G: torch.Tensor) -> None:
    options = ["--m", 2, "--preaggregators", "clip,krum", "--f", 1, "--json", "--out", tmp_path / "d.npy"]
    code, out, _ = call(capsys, *saved_as_one(G, tmp_path), *options)
    assert code == 0
    rule = make_rule("fa", f=1, m=2, preaggregators=("clip", "krum"))
    decision = rule.aggregate(G).decision
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), rule(G).numpy())
    report = json.loads(out)
    assert decision.weights is not None
    assert report["weights"] == decision.weights.tolist()
    assert report["selected"] == list(decision.selected)
    assert report["excluded"] == {str(worker): reason for worker, reason in decision.excluded.items()}


def test_a_worker_with_nan_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path, G: torch.Tensor) -> None:
    G[2, 5] = float("nan")
    code, out, _ = call(capsys, *saved_one_each(G, tmp_path), "--rule", "median", "--out", tmp_path / "d.npy")
    assert code == 0
    (line,) = [line for line in out.splitlines() if NOT_FINITE in line]
    assert "worker 2" in line
    assert "2.npy" in line
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), make_rule("median")(G).numpy())


@pytest.mark.parametrize("rule", ["mean", "phocas", "bulyan", "fa"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_pieces_give_what_the_whole_gives(
    monkeypatch: pytest.MonkeyPatch, G: torch.Tensor, rule: str, dtype: torch.dtype
) -> None:
    """Of one chunk each: the chunks' sums are then added in the order in which the whole adds them."""
    whole = make_rule(rule, f=1)(G.to(dtype))
    monkeypatch.setattr(kernels, "_WIDTH", 1 << 15)
    monkeypatch.setattr(kernels, "_WIDENED", P << 15)
    assert torch.equal(make_rule(rule, f=1)(G.to(dtype)), whole)


def test_numbers_out_of_range_are_taken_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from fa.gradients import measurement

    wide = np.random.default_rng(0).standard_normal((5, 1000)) * np.array([[1e-200], [1e200], [1], [1e3], [1e-3]])
    whole, _ = measurement.measure(torch.from_numpy(wide))
    monkeypatch.setattr(measurement, "_ENTRIES", 700)
    parts, _ = measurement.measure(torch.from_numpy(wide))
    np.testing.assert_allclose(parts.cosines, whole.cosines, rtol=0, atol=1e-14)
    np.testing.assert_allclose(parts.scaled_norms, whole.scaled_norms, rtol=1e-14)


WATCH = """
import sys, threading, time
from fa.cli import main
import fa.rules, fa.gradients.memory_map, fa.kernels.cpu

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

before, seen = anonymous(), [0]
def watch():
    while True:
        seen[0] = max(seen[0], anonymous())
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
for line in sys.stdin.read().splitlines():
    seen[0] = 0
    try:
        main(line.split())
    except SystemExit as end:
        assert end.code == 0
    print("peak", max(seen[0], anonymous()) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_stays_free(tmp_path: Path) -> None:
    """180 MB of gradients as float32, and 12 MB of direction, with no more than 64 MB of memory that is no file.

    By weights, by an order statistic of some workers, and of numbers that are widened. One process does all three:
    what one of them kept would count for the next.
    """
    lines = []
    for rule, dtype in (("fa", torch.float32), ("bulyan", torch.float32), ("fa", torch.bfloat16)):
        paths = [tmp_path / f"{dtype}-{i}.safetensors" for i in range(15)]
        for seed, path in enumerate(paths):
            if not path.exists():
                numbers = torch.randn(3_000_000, generator=torch.Generator().manual_seed(seed))
                safetensors.torch.save_file({"g": numbers.to(dtype)}, path)
        lines.append(" ".join(map(str, ["aggregate", *paths, "--rule", rule, "--f", 3, "--out", tmp_path / "d.npy"])))
    lines[-1] = lines[-1].replace("d.npy", "d.safetensors")
    script = [sys.executable, "-c", WATCH]
    done = subprocess.run(script, input="\n".join(lines), capture_output=True, text=True, check=True)
    peaks = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak ")]
    assert len(peaks) == len(lines)
    assert max(peaks) < 64 * 1024, peaks


def test_what_is_written_to_the_matrix_stays_in_memory(tmp_path: Path, G: torch.Tensor) -> None:
    paths = saved_one_each(G, tmp_path)
    matrix, _ = memory_map.open_gradients(paths)
    assert matrix.shape == (P, N)
    matrix[1, 1] = 7
    assert matrix[1, 1] == 7
    np.testing.assert_array_equal(np.load(paths[1]), G[1].numpy())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "d.txt"], r"\.npy\b.*\.safetensors\b.*\bd\.txt"),
        (["--out", "0.npy"], r"\bout must be .*\b0\.npy"),
        (["--out", "folder.npy"], r"\bfolder\.npy"),
        (["--out", "missing/d.npy"], r"\bmissing/d\.npy.*" + os.strerror(errno.ENOENT)),
        (["--out", "d.npy", "--rule", "krum", "--f", "3"], r"\bkrum\b.*\b2f \+ 3\b"),
        (["--out", "d.npy", "--rule", "kurm"], r"\brule must be .*'kurm'.*'krum'"),
        (["--out", "d.npy", "--rule", "median", "--m", "3"], r"'median'.*'m'"),
        (["--out", "d.npy", "--regularizer", "l1", "--lam", "1"], r"\bregularizer must be .*pairwise.*group.*'l1'"),
    ],
)
def test_bad_arguments_are_one_line_and_leave_nothing(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = saved_one_each(torch.ones(3, 4), Path())
    Path("folder.npy").mkdir()
    code, out, err = call(capsys, *paths, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err), err
    assert sorted(os.listdir()) == sorted([*map(str, paths), "folder.npy"])


def test_bfloat16_has_no_npy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    paths = saved_as_layers(torch.ones(3, N, dtype=torch.bfloat16), tmp_path)
    code, _, err = call(capsys, *paths, "--out", tmp_path / "d.npy")
    assert (code, err.count("\n")) == (2, 1)
    assert re.search(r"\.npy\b.*\bbfloat16\b", err)
    assert not (tmp_path / "d.npy").exists()


def header(tensors: dict[str, Any]) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"/x\b.*\.npy\b.*\.safetensors\b"),
        (b"\x08\0\0\0\0\0\0\0{}      ", r"/x\b.*\bF16, BF16, F32, F64\b.*\[\]"),
        (header({"d": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}), r"/x\b.*\.safetensors\b"),
        (header({"d": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2, 4]}}), r"/x\b.*\.safetensors\b"),
        (header({"d": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}), r"/x\b"),
        (b"\x04\0\0\0\0\0\0\0[1] ", r"/x\b.*\.safetensors\b"),
        (b"\xff\xff\xff\xff\0\0\0\0{}", r"/x\b.*\.npy\b.*\.safetensors\b"),
    ],
)
def test_files_that_are_neither(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "x").write_bytes(content)
    code, _, err = call(capsys, tmp_path / "x", "--out", tmp_path / "d.npy")
    assert (code, err.count("\n")) == (2, 1)
    assert re.search(message, err), err


def test_a_file_cut_short_and_one_of_other_tensors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    paths = saved_as_layers(torch.ones(3, N), tmp_path)
    paths[1].write_bytes(paths[1].read_bytes()[:-4])
    code, _, err = call(capsys, *paths, "--out", tmp_path / "d.npy")
    assert (code, err.count("\n")) == (2, 1)
    assert re.search(rf"{paths[1]} must be .*\.safetensors\b", err)
    safetensors.torch.save_file({"bais": torch.ones(1), "weight": torch.ones(700, 100)}, paths[1])
    code, _, err = call(capsys, *paths, "--out", tmp_path / "d.npy")
    assert (code, err.count("\n")) == (2, 1)
    assert re.search(rf"{paths[1]} must .*{paths[0]}\b", err)


def test_a_full_disk_is_told_before_the_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    paths = saved_one_each(torch.ones(3, 4), tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    code, _, err = call(capsys, *paths, "--out", tmp_path / "d.npy")
    assert (code, err.count("\n")) == (2, 1)
    assert re.search(rf"/d\.npy\b.*\b144\b.*{os.strerror(errno.ENOSPC)}", err)
    assert sorted(tmp_path.iterdir()) == paths


def test_an_interruption_leaves_the_result_of_before(tmp_path: Path) -> None:
    [path] = saved_as_one(torch.ones(3, 4), tmp_path)
    out = tmp_path / "d.npy"
    out.write_bytes(b"of before")
    layout = memory_map.layout(path)

    def interrupted() -> None:
        with memory_map.create_output(out, layout, 4) as d:
            d[:2] = 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert out.read_bytes() == b"of before"
    assert sorted(tmp_path.iterdir()) == [path, out]
