"""Gradients in files: what the rules make of them is what they make of arrays, and memory stays free."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from fa import RULES, cli, kernels, make_rule, mapped

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
    assert f"{rule} of 7 gradients of 70001 numbers" in out
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
    assert report["left_out"] == {str(worker): reason for worker, reason in decision.left_out.items()}


def test_a_worker_with_nan_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path, G: torch.Tensor) -> None:
    G[2, 5] = float("nan")
    code, out, _ = call(capsys, *saved_one_each(G, tmp_path), "--rule", "median", "--out", tmp_path / "d.npy")
    assert code == 0
    assert out.startswith("worker 2 (2.npy) left out: NaN or Inf\n")
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
    from fa import gram

    wide = np.random.default_rng(0).standard_normal((5, 1000)) * np.array([[1e-200], [1e200], [1], [1e3], [1e-3]])
    whole, _ = gram.measure(torch.from_numpy(wide))
    monkeypatch.setattr(gram, "_ENTRIES", 700)
    parts, _ = gram.measure(torch.from_numpy(wide))
    np.testing.assert_allclose(parts.cosines, whole.cosines, rtol=0, atol=1e-14)
    np.testing.assert_allclose(parts.lengths, whole.lengths, rtol=1e-14)


WATCH = """
import sys, threading, time
from fa.cli import main
import fa.rules, fa.mapped, fa.kernels.cpu

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

before, seen = anonymous(), [0]
def watch():
    while True:
        seen[0] = max(seen[0], anonymous())
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
try:
    main(sys.argv[1:])
finally:
    print("anonymous kB:", max(seen[0], anonymous()) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from Linux' /proc")
@pytest.mark.parametrize(
    ("rule", "dtype"),
    [("fa", torch.float32), ("median", torch.float32), ("bulyan", torch.float32), ("fa", torch.bfloat16)],
)
def test_memory_stays_free(tmp_path: Path, rule: str, dtype: torch.dtype) -> None:
    """240 MB of gradients as float32, and 16 MB of direction, with no more than 64 MB of memory that is no file."""
    numbers = torch.Generator().manual_seed(0)
    paths = [tmp_path / f"{i}.safetensors" for i in range(15)]
    for path in paths:
        safetensors.torch.save_file({"g": torch.randn(4_000_000, generator=numbers).to(dtype)}, path)
    arguments = ["aggregate", *map(str, paths), "--rule", rule, "--f", "3", "--out", str(tmp_path / "d.safetensors")]
    done = subprocess.run([sys.executable, "-c", WATCH, *arguments], capture_output=True, text=True, check=True)
    assert int(done.stdout.rsplit(":", 1)[1]) < 64 * 1024


def test_what_is_written_to_the_matrix_stays_in_memory(tmp_path: Path, G: torch.Tensor) -> None:
    paths = saved_one_each(G, tmp_path)
    matrix, _ = mapped.open_gradients(paths)
    assert matrix.shape == (P, N)
    matrix[1, 1] = 7
    assert matrix[1, 1] == 7
    np.testing.assert_array_equal(np.load(paths[1]), G[1].numpy())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "d.txt"], "the name of the result must be one in .npy or .safetensors; it is"),
        (["--out", "0.npy"], "out must be another file than those of the gradients; it is"),
        (["--out", "folder.npy"], "the name of the result must be that of a file; there is a folder of that name"),
        (["--out", "missing/d.npy"], "cannot be written: No such file or directory"),
        (["--out", "d.npy", "--rule", "krum", "--f", "3"], "krum needs p >= 2f + 3"),
        (["--out", "d.npy", "--rule", "kurm"], "did you mean 'krum'?"),
        (["--out", "d.npy", "--rule", "median", "--m", "3"], "rule 'median' has no option 'm'"),
        (
            ["--out", "d.npy", "--regularizer", "l1", "--lam", "1"],
            "regularizer must be 'pairwise' or 'group' for files",
        ),
    ],
)
def test_bad_arguments_are_one_line_and_leave_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = saved_one_each(torch.ones(3, 4), Path())
    Path("folder.npy").mkdir()
    code, out, err = call(capsys, *paths, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert sorted(os.listdir()) == sorted([*map(str, paths), "folder.npy"])


def test_bfloat16_has_no_npy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    paths = saved_as_layers(torch.ones(3, N, dtype=torch.bfloat16), tmp_path)
    assert "as .npy has no bfloat16" in call(capsys, *paths, "--out", tmp_path / "d.npy")[2]


def header(tensors: dict[str, Any]) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "must be a .npy or .safetensors"),
        (b"\x08\0\0\0\0\0\0\0{}      ", "must hold numbers of one of F16, BF16, F32, F64; it has []"),
        (
            header({"d": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}),
            "must be a .npy or .safetensors file",
        ),
        (
            header({"d": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2, 4]}}),
            "must be a .npy or .safetensors file",
        ),
        (header({"d": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}), "must be a .npy or .safetensors"),
        (b"\x04\0\0\0\0\0\0\0[1] ", "must be a .npy or .safetensors"),
        (b"\xff\xff\xff\xff\0\0\0\0{}", "must be a .npy or .safetensors"),
    ],
)
def test_files_that_are_neither(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x").write_bytes(content)
    code, _, err = call(capsys, tmp_path / "x", "--out", tmp_path / "d.npy")
    assert (code, err.count("\n")) == (2, 1)
    assert said in err


def test_a_file_cut_short_and_one_of_other_tensors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    paths = saved_as_layers(torch.ones(3, N), tmp_path)
    paths[1].write_bytes(paths[1].read_bytes()[:-4])
    assert f"{paths[1]} must be a .npy or .safetensors file" in call(capsys, *paths, "--out", tmp_path / "d.npy")[2]
    safetensors.torch.save_file({"bais": torch.ones(1), "weight": torch.ones(700, 100)}, paths[1])
    said = call(capsys, *paths, "--out", tmp_path / "d.npy")[2]
    assert f"{paths[1]} must hold the tensors of {paths[0]}; it has others, or in another order" in said


def test_a_full_disk_is_told_before_the_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    paths = saved_one_each(torch.ones(3, 4), tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert "d.npy cannot be written (144 bytes): No space left" in call(capsys, *paths, "--out", tmp_path / "d.npy")[2]
    assert sorted(tmp_path.iterdir()) == paths


def test_an_interruption_leaves_the_result_of_before(tmp_path: Path) -> None:
    [path] = saved_as_one(torch.ones(3, 4), tmp_path)
    out = tmp_path / "d.npy"
    out.write_bytes(b"of before")
    layout = mapped.layout(path)

    def interrupted() -> None:
        with mapped.new_direction(out, layout, 4) as d:
            d[:2] = 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert out.read_bytes() == b"of before"
    assert sorted(tmp_path.iterdir()) == [path, out]
