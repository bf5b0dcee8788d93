"""The passes over the coordinates: compiled and plain torch against numpy, and against each other."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fa import kernels
from fa.kernels import cache, cpu, stiefel, torch_fallback
from fa.kernels.products import BLOCK
from fa.kernels.sorting_network import sorting_network
from fa.kernels.threads import run_on_threads

CHUNK = cpu.CHUNK


def matrix(p, n, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal((p, n)).astype(dtype)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 15, 60])
@pytest.mark.parametrize("n", [1, 7, 2048, 2 * CHUNK + 5])
def test_the_gram_matrix_is_numpys(p, n):
    if p == 60:
        n = min(n, 5000)
    G = matrix(p, n)
    K = kernels.gram(torch.from_numpy(G), precise=True)
    np.testing.assert_allclose(K, G @ G.T, rtol=0, atol=1e-12 * n)
    assert np.array_equal(K, K.T)
    np.testing.assert_allclose(torch_fallback.gram(torch.from_numpy(G)).numpy(), G @ G.T, rtol=0, atol=1e-12 * n)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", range(1, 65))
def test_the_quick_gram_matrix_is_numpys(p, dtype):
    """Two whole blocks, which go through the tiles, and what is left, which does not."""
    G = matrix(p, 2 * BLOCK + 3, dtype, seed=p)
    K, wide = kernels.gram(torch.from_numpy(G)), G.astype(np.float64)
    np.testing.assert_allclose(K, wide @ wide.T, rtol=0, atol=len(wide.T) * (1e-6 if dtype == np.float32 else 1e-15))
    assert np.array_equal(K, K.T)


def test_a_quick_pass_errs_by_less_than_what_the_gram_stage_counts_on():
    G = matrix(15, 300_000, np.float32)
    wide = G.astype(np.float64)
    quick = kernels.gram(torch.from_numpy(G))
    assert np.abs(quick - wide @ wide.T).max() < 1e-6 * np.diag(quick).max()
    precise = kernels.gram(torch.from_numpy(G), precise=True)
    assert np.abs(precise - wide @ wide.T).max() < 1e-13 * np.diag(quick).max()


@pytest.mark.parametrize("n", [3, CHUNK + 1])
def test_squared_distances_do_not_cancel(n):
    G = 1e8 + matrix(6, n)
    expected = np.square(G[:, None] - G[None]).sum(axis=2)
    np.testing.assert_allclose(kernels.squared_distances(torch.from_numpy(G)), expected, rtol=1e-12)
    np.testing.assert_allclose(torch_fallback.squared_distances(torch.from_numpy(G)).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", [1, 4, 8, 9, 15, 16, 17, 25])
@pytest.mark.parametrize("n", [1, 17, 2049, CHUNK + 3])
def test_the_weighted_sum_is_numpys(p, n, dtype):
    G, weights = matrix(p, n, dtype), np.linspace(-1, 2, p)
    d, bad = kernels.combine(torch.from_numpy(G), weights)
    expected = weights.astype(dtype).astype(np.float64) @ G.astype(np.float64)
    np.testing.assert_allclose(d.numpy(), expected, rtol=0, atol=1e-5 if dtype == np.float32 else 1e-13)
    assert not bad.any()


@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, 1.0), (np.float32, 1e-35), (np.float64, 1.0)])
def test_a_coordinate_of_the_weighted_sum_does_not_depend_on_its_place(dtype, scale):
    G, weights = torch.from_numpy(matrix(15, CHUNK + 50, dtype)), scale * np.linspace(-1, 2, 15)
    whole = kernels.combine(G, weights)[0]
    for start, stop in ((0, 1), (3, 50), (5, CHUNK + 49), (CHUNK - 7, CHUNK + 50)):
        assert torch.equal(kernels.combine(G[:, start:stop], weights)[0], whole[start:stop])


def test_a_result_may_have_gaps():
    G, columns = torch.from_numpy(matrix(4, 300, np.float32)), torch.zeros(300, 2)
    for one_pass in (
        lambda out: kernels.combine(G, np.full(4, 0.25), out=out),
        lambda out: kernels.order_statistic(G, np.eye(4), 1, 3, 0, out=out),
    ):
        one_pass(columns[:, 0])
        assert torch.equal(columns[:, 0], one_pass(None)[0])
        assert not columns[:, 1].any()


def test_a_weighted_sum_of_no_rows_is_zero():
    G = torch.full((3, 5), torch.nan)
    d, bad = kernels.combine(G, np.zeros(3))
    assert not d.any()
    assert not bad.any()


def test_results_do_not_depend_on_the_number_of_threads():
    G = torch.from_numpy(matrix(15, 3 * CHUNK + 11, np.float32))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            median = kernels.order_statistic(G, np.eye(15), 7, 8, 12)[0].numpy()
            results.append((kernels.gram(G), kernels.combine(G, np.full(15, 1 / 15))[0].numpy(), median))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for found, first in zip(result, results[0], strict=True):
            assert np.array_equal(found, first)


@pytest.mark.parametrize("q", range(1, 65))
def test_the_network_sorts(q):
    """All columns of zeros and ones for q to 14, which by the 0-1 principle proves it; many random ones beyond."""
    if q <= 14:
        values = ((np.arange(2**q) >> np.arange(q)[:, None]) & 1).astype(np.float64)
    else:
        rng = np.random.default_rng(q)
        values = np.hstack([rng.standard_normal((q, 2000)), rng.integers(0, 2, (q, 2000)), np.eye(q), 1 - np.eye(q)])
    ordered = values.copy()
    for i, j in sorting_network(q):
        low, high = np.minimum(ordered[i], ordered[j]), np.maximum(ordered[i], ordered[j])
        ordered[i], ordered[j] = low, high
    assert np.array_equal(ordered, np.sort(values, axis=0))


def plain_statistic(columns, lo, hi, keep):
    ordered = np.sort(columns, axis=0)
    centre = ordered[lo:hi].mean(axis=0)
    if keep == 0:
        return centre
    nearest = np.argsort(np.abs(ordered - centre), axis=0, kind="stable")[:keep]
    return np.take_along_axis(ordered, nearest, axis=0).mean(axis=0)


@pytest.mark.parametrize("q", range(1, 65))
def test_order_statistics_are_those_of_sorted_columns(q):
    G = matrix(q, 700, seed=q)
    for lo, hi in {((q - 1) // 2, q // 2 + 1), (0, q), (q // 3, q - q // 3)}:
        for keep in {0, q, max(1, q - 1), max(1, q // 2), 1}:
            expected = plain_statistic(G, lo, hi, keep)
            d, bad = kernels.order_statistic(torch.from_numpy(G), np.eye(q), lo, hi, keep)
            np.testing.assert_allclose(d.numpy(), expected, rtol=0, atol=1e-13)
            assert not bad.any()
            plain, _ = torch_fallback.order_statistic(
                torch.from_numpy(G), torch.eye(q, dtype=torch.float64), lo, hi, keep
            )
            np.testing.assert_allclose(plain.numpy(), expected, rtol=0, atol=1e-13)


def test_order_statistics_of_mixed_rows():
    G, R = matrix(6, 999), np.random.default_rng(1).standard_normal((6, 4))
    R[2] = 0  # a row that is not read
    expected = plain_statistic(R.T @ G, 1, 3, 2)
    G[2] = np.nan
    d, bad = kernels.order_statistic(torch.from_numpy(G), R, 1, 3, 2)
    np.testing.assert_allclose(d.numpy(), expected, rtol=0, atol=1e-13)
    assert not bad.any()


def test_of_equally_near_values_the_smaller_is_taken():
    G = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    assert kernels.order_statistic(G, np.eye(3), 1, 2, 2)[0].item() == -0.5
    assert torch_fallback.order_statistic(G, torch.eye(3, dtype=torch.float64), 1, 2, 2)[0].item() == -0.5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [(0, 0), (2, 2047), (4, 2 * CHUNK + 1)])
def test_rows_that_are_not_finite_are_noticed_on_the_way(value, where):
    G = matrix(5, 2 * CHUNK + 2, np.float32)
    G[where] = value
    tensor = torch.from_numpy(G)
    expected = [row == where[0] for row in range(5)]
    assert list(kernels.combine(tensor, np.full(5, 0.2))[1]) == expected
    assert list(kernels.order_statistic(tensor, np.eye(5), 2, 3, 0)[1]) == expected
    assert torch_fallback.combine(tensor, torch.full((5,), 0.2, dtype=torch.float64))[1].tolist() == expected
    assert torch_fallback.order_statistic(tensor, torch.eye(5, dtype=torch.float64), 2, 3, 0)[1].tolist() == expected
    assert not np.isfinite(np.diag(kernels.gram(tensor))[where[0]])


def test_weights_beyond_float32_are_applied_in_float64():
    G = torch.tensor([[1e-30], [2.0]])
    d, _ = kernels.combine(G, np.array([1e60, 1.0]))
    assert d.item() == pytest.approx(1e30)
    d, _ = kernels.order_statistic(G, np.diag([1e60, 1e30]), 0, 2, 0)
    assert d.item() == pytest.approx(1.5e30)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    G = torch.from_numpy(matrix(8, 3000, np.float32)).to(dtype)
    wide = G.float().numpy()
    d, _ = kernels.combine(G, np.full(8, 1 / 8))
    assert d.dtype == dtype
    assert torch.equal(d, torch.from_numpy(wide.mean(axis=0)).to(dtype))
    np.testing.assert_allclose(kernels.gram(G), wide @ wide.T, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    "setting", ["OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "ENABLE_AVX", "BOUNDSCHECK", "DEBUGINFO_DEFAULT"]
)
def test_machine_code_of_other_settings_is_another_one(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache._sources_stamp()
    assert cache._sources_stamp() == before
    monkeypatch.setattr(cache.numba.config, setting, "another", raising=False)
    assert cache._sources_stamp() != before


def test_machine_code_of_other_sources_is_another_one_whatever_their_times_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = set()
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "cache.py"))
    for content in ("a = 1", "a = 2"):
        (tmp_path / "cpu.py").write_text(content)
        os.utime(tmp_path / "cpu.py", (1, 1))
        stamps.add(cache._sources_stamp())
    assert len(stamps) == 2


@pytest.fixture(params=range(4))
def thread_limit(request, monkeypatch):
    """A process in which only so many of three further threads can start."""
    start, started = threading.Thread.start, []

    def limited(thread):
        if len(started) == request.param:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.setattr(threading.Thread, "start", limited)
    yield started
    torch.set_num_threads(before)


def test_every_share_is_done_once_however_few_threads_start(thread_limit):
    calls = []

    def work(t, threads):
        calls.append(t)
        return t, threads

    assert run_on_threads(work, 1 << 20) == [(t, 4) for t in range(4)]
    assert sorted(calls) == [0, 1, 2, 3]


@pytest.mark.parametrize("share", range(4))
def test_the_error_of_a_share_reaches_the_caller(share, thread_limit):
    def work(t, threads):
        if t == share:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_on_threads(work, 1 << 20)


def passes(G):
    """The results of the passes that add to shared memory, or change it."""
    Z = np.ascontiguousarray(G.T)
    blocks = stiefel.correct(Z, np.eye(len(G)) / 8)
    d = np.empty(G.shape[1])
    cpu.combine(G, np.arange(len(G)) + 1.0, d)
    return *(np.triu(cpu.gram(G, precise)) for precise in (False, True)), cpu.squared_distances(G), Z, blocks, d


def test_a_pass_adds_nothing_twice_where_threads_cannot_start(monkeypatch, thread_limit):
    G = matrix(5, 9 * CHUNK)
    found = passes(G)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "get_num_threads", lambda: 1)
        expected = passes(G)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other)
