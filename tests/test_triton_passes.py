"""The Triton kernels: run in Triton's interpreter on the CPU, and compiled for two GPUs without one."""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fa import kernels
from fa.kernels import torch_fallback

triton = pytest.importorskip("triton", reason="torch brings Triton for CUDA on Linux only")

NEAR = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 1e-6, "atol": 1e-6},
    torch.bfloat16: {"rtol": 1e-2, "atol": 1e-6},
}

NAMES = ("fa.kernels.triton_kernels", "fa.kernels.triton_passes")


def imported() -> tuple[ModuleType, ModuleType]:
    """The kernels and the passes, imported anew: Triton looks at the environment when it decorates a kernel."""
    forget()
    triton_kernels, triton_passes = map(importlib.import_module, NAMES)
    return triton_kernels, triton_passes


def forget() -> None:
    """Let the next import load the modules anew."""
    for name in NAMES:
        sys.modules.pop(name, None)
        vars(kernels).pop(name.rpartition(".")[2], None)


@pytest.fixture
def interpreted() -> Iterator[ModuleType]:
    """The passes, whose kernels run in the interpreter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield imported()[1]
    forget()


@pytest.fixture
def compiled() -> Iterator[tuple[ModuleType, ModuleType]]:
    """The kernels, which can be compiled, and the passes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        yield imported()
    forget()


def matrix(p: int, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows with a gap between them, as those of a part of the columns."""
    return torch.randn(p, n + 3, generator=torch.Generator().manual_seed(p)).to(dtype)[:, :n]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("p", "n"), [(1, 1), (5, 300), (17, 1000)])
def test_the_gram_matrix_is_torchs(interpreted: ModuleType, p: int, n: int, dtype: torch.dtype) -> None:
    G = matrix(p, n, dtype)
    torch.testing.assert_close(interpreted.gram(G), torch_fallback.gram(G), rtol=1e-13, atol=1e-12)


def test_more_blocks_than_programs(interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreted, "_GRAM_PROGRAMS", 2)
    G = matrix(3, 700)
    torch.testing.assert_close(interpreted.gram(G), torch_fallback.gram(G), rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_weighted_sum_is_torchs(interpreted: ModuleType, dtype: torch.dtype) -> None:
    G, weights = matrix(11, 1500, dtype), torch.arange(-5, 6, dtype=torch.float64)
    G[5, 7] = torch.nan  # Its weight is 0.
    d, bad = interpreted.combine(G, weights)
    expected, _ = torch_fallback.combine(G, weights)
    torch.testing.assert_close(d, expected, **NEAR[dtype])
    assert not bad.any()
    G[3, 1400] = torch.inf
    with np.errstate(invalid="ignore"):
        assert interpreted.combine(G, weights)[1].nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("nearest", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_an_order_statistic_is_torchs(interpreted: ModuleType, dtype: torch.dtype, nearest: int) -> None:
    G = matrix(7, 600, dtype).round(decimals=1)  # with ties
    R = torch.eye(7, dtype=torch.float64)[:, [0, 2, 3, 5, 6]]
    d, bad = interpreted.order_statistic(G, R, 2, 3, nearest)
    torch.testing.assert_close(d, torch_fallback.order_statistic(G, R, 2, 3, nearest)[0], **NEAR[dtype])
    assert not bad.any()
    G[1], G[6, 3] = torch.nan, torch.nan
    assert interpreted.order_statistic(G, R, 2, 3, nearest)[1].nonzero().flatten().tolist() == [6]


def test_an_order_statistic_of_mixed_rows_is_torchs(interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreted, "_ENTRIES", 400)
    G, R = matrix(4, 250), torch.rand(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for first, stop, nearest in ((1, 3, 0), (1, 2, 2)):
        d, _ = interpreted.order_statistic(G, R, first, stop, nearest)
        torch.testing.assert_close(d, torch_fallback.order_statistic(G, R, first, stop, nearest)[0])


@pytest.mark.parametrize("p", [20, 60, 65])
def test_many_rows(interpreted: ModuleType, p: int) -> None:
    G, R = matrix(p, 40), torch.eye(p, dtype=torch.float64)
    torch.testing.assert_close(interpreted.gram(G), torch_fallback.gram(G), rtol=1e-13, atol=1e-12)
    d, _ = interpreted.order_statistic(G, R, p // 2, p // 2 + 1, p - 3)
    torch.testing.assert_close(d, torch_fallback.order_statistic(G, R, p // 2, p // 2 + 1, p - 3)[0])


def test_torch_replaces_kernels_that_fail(
    compiled: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(G: Tensor) -> Tensor:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(compiled[1], "gram", fail)
    with pytest.warns(RuntimeWarning):
        assert not kernels._triton_works.__wrapped__(torch.device("cpu"))


def launches(dtype: str) -> dict[str, tuple[str, dict[str, str], dict[str, Any]]]:
    """The kernels that a matrix of this type needs: name, types of arguments, constants."""
    wide = triton.language.float64 if dtype == "fp64" else triton.language.float32
    matrix = {"G": f"*{dtype}", "stride": "i32", "n": "i32"}
    rows = {"rows": "*i64", "d": f"*{dtype}", "not_finite": "*i32"}
    grams = {
        f"gram, P = {P}": ("gram", matrix | {"p": "i32", "parts": "*fp64"}, {"P": P, "WIDTH": 128 * 16 // P})
        for P in (16, 64)
    }
    order = {"q": 3, "first": 1, "stop": 2, "nearest": 2, "NETWORK": (0, 2, 0, 1, 1, 2), "WIDE": wide, "WIDTH": 512}
    sums = matrix | rows | {"weights": "*fp64", "count": "i32"}
    others = {
        "combine": ("combine", sums, {"NARROW": wide, "WIDTH": 1024}),
        "order_statistic": ("order_statistic", matrix | rows, order),
    }
    return others if dtype == "bf16" else grams | others


CASES = [(dtype, kernel) for dtype in ("fp32", "fp64", "bf16") for kernel in launches(dtype)]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "kernel"), CASES, ids=str)
def test_a_kernel_compiles(compiled: tuple[ModuleType, ModuleType], dtype: str, kernel: str, capability: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    name, arguments, constants = launches(dtype)[kernel]
    function = getattr(compiled[0], name)
    types = arguments | dict.fromkeys(constants, "constexpr")
    source = ASTSource(function, {name: types[name] for name in function.arg_names}, constants)
    assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
