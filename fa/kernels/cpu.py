"""The passes over a gradient matrix on the CPU: compiled loops, a few of the machine's threads each.

Every pass cuts the n columns into chunks of a fixed size and lets thread t of T take chunks t, t + T, ...; what the
chunks give is put together in their order, so that a result does not depend on the number of threads. The loops are
plain numba functions that release the GIL and run on threads of ours: numba's own thread pool may neither be forked
nor entered twice.

``_FASTMATH`` leaves out "nnan" and "ninf": NaN and Inf keep their meaning, since finding them is part of the job.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.extending import intrinsic

_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
_BLOCK = 2048  # columns that stay in the cache while all pairs of rows are multiplied
_CHUNK = 16 * _BLOCK  # columns a thread takes at a time
_LANES = 256  # columns that go through a sorting network together
_SERIAL = 1 << 19  # entries of G below which one thread is faster than several

_jit = numba.njit(nogil=True, cache=True, fastmath=_FASTMATH, error_model="numpy")


def _share(work: Callable[[int, int], Any], size: int) -> list[Any]:
    """work(t, T) for t = 0 .. T - 1 on T threads; T = 1 where G has few entries."""
    threads = 1 if size < _SERIAL else torch.get_num_threads()
    if threads == 1:
        return [work(0, 1)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda t: work(t, threads), range(threads)))


def _rows(G: np.ndarray) -> np.ndarray:
    """The C-contiguous array (p, stride) in which G (p, n) lies, so that the compiled loops know the entries of a row
    to be neighbours. What is past n may be no memory at all, and is not touched.
    """
    p, n = G.shape
    stride = G.strides[0] // G.itemsize if p > 1 else n
    return np.lib.stride_tricks.as_strided(G, (p, stride), (stride * G.itemsize, G.itemsize))


def gram(G: np.ndarray, precise: bool) -> np.ndarray:
    """The upper triangle of K = G G^T, (p, p) float64, of G (p, n): products and the sums of 2,048 of them in G's
    precision, in float64 if `precise`.
    """
    p = G.shape[0]
    threes = _threes(range(p))
    return _products(G, [a + b for i, a in enumerate(threes) for b in threes[i:]], precise, G.size)


def gram_rows(G: np.ndarray, rows: Sequence[int], others: Sequence[int]) -> np.ndarray:
    """Those rows of K = G G^T, (p, p) float64, in the columns `others`, and 0 elsewhere: to the bits of `gram`."""
    tiles = [a + b for a in _threes(rows) for b in _threes(others)]
    return _products(G, tiles, precise=False, size=(len(rows) + len(others)) * G.shape[1])


def _threes(rows: Sequence[int]) -> list[list[int]]:
    """The rows three by three, the last one again where a three is not full."""
    return [[rows[min(k, len(rows) - 1)] for k in range(first, first + 3)] for first in range(0, len(rows), 3)]


def _products(G: np.ndarray, tiles: list[list[int]], precise: bool, size: int) -> np.ndarray:
    """The entries of K that lie in tiles, each of three rows and three columns; those in no tile are 0."""
    p, n = G.shape
    parts = np.zeros((-(-n // _CHUNK), p, p))
    zero = np.float64(0) if precise else G.dtype.type(0)
    numbers = np.array(tiles).reshape(-1, 6)
    _share(lambda t, threads: _gram_chunks(_rows(G), n, numbers, parts, t, threads, zero), size)
    K: np.ndarray = parts.sum(axis=0)
    return K


@_jit
def _gram_chunks(G, n, tiles, parts, first, step, zero):
    p = G.shape[0]
    block = np.zeros((p, p))
    for chunk in range(first, parts.shape[0], step):
        stop = min((chunk + 1) * _CHUNK, n)
        for lo in range(chunk * _CHUNK, stop, _BLOCK):
            hi = min(lo + _BLOCK, stop)
            for tile in tiles:
                _gram_tile(G, tile, lo, hi, zero, block)
            parts[chunk] += block


@_jit
def _gram_tile(G, tile, lo, hi, zero, block):
    """The block's entries in a tile: the products of three rows with three rows."""
    i, i1, i2, j, j1, j2 = tile[0], tile[1], tile[2], tile[3], tile[4], tile[5]
    a0, a1, a2 = G[i, lo:hi], G[i1, lo:hi], G[i2, lo:hi]
    b0, b1, b2 = G[j, lo:hi], G[j1, lo:hi], G[j2, lo:hi]
    s00 = s01 = s02 = s10 = s11 = s12 = s20 = s21 = s22 = zero
    for c in range(hi - lo):
        x0, x1, x2 = (
            a0[c] + zero,
            a1[c] + zero,
            a2[c] + zero,
        )  # `+ zero` takes float32 to float64 in a precise pass
        y0, y1, y2 = b0[c] + zero, b1[c] + zero, b2[c] + zero
        s00 += x0 * y0
        s01 += x0 * y1
        s02 += x0 * y2
        s10 += x1 * y0
        s11 += x1 * y1
        s12 += x1 * y2
        s20 += x2 * y0
        s21 += x2 * y1
        s22 += x2 * y2
    block[i, j], block[i, j1], block[i, j2] = s00, s01, s02
    block[i1, j], block[i1, j1], block[i1, j2] = s10, s11, s12
    block[i2, j], block[i2, j1], block[i2, j2] = s20, s21, s22


def squared_distances(G: np.ndarray) -> np.ndarray:
    """The upper triangle of ||g_i - g_j||^2, (p, p) float64, from differences taken in float64."""
    p, n = G.shape
    parts = np.zeros((-(-n // _CHUNK), p, p))
    _share(lambda t, threads: _distance_chunks(_rows(G), n, parts, t, threads), G.size)
    D2: np.ndarray = parts.sum(axis=0)
    return D2


@_jit
def _distance_chunks(G, n, parts, first, step):
    p = G.shape[0]
    for chunk in range(first, parts.shape[0], step):
        stop = min((chunk + 1) * _CHUNK, n)
        for lo in range(chunk * _CHUNK, stop, _BLOCK):
            hi = min(lo + _BLOCK, stop)
            for i in range(p):
                for j in range(i + 1, p):
                    a, b = G[i, lo:hi], G[j, lo:hi]
                    total = 0.0
                    for c in range(hi - lo):
                        difference = np.float64(a[c]) - np.float64(b[c])
                        total += difference * difference
                    parts[chunk, i, j] += total


def combine(G: np.ndarray, weights: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Put the weighted sum of rows into d (n,); return which rows (p,) bool hold NaN or Inf. Rows of weight 0 are not
    read.
    """
    rows = np.flatnonzero(weights)
    factors = _factors(weights[rows], G.dtype)
    bad: np.ndarray = np.any(_share(lambda t, T: _combine_chunks(_rows(G), rows, factors, d, t, T), G.size), axis=0)
    return bad


def _factors(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Factors of rows in the rows' precision, or in float64 where float32 would lose or overflow them."""
    sizes = np.abs(values[values != 0])
    narrow = sizes.size == 0 or (sizes.min() > 1e-30 and sizes.max() < 1e30)
    return values.astype(dtype) if narrow else values


@_jit
def _combine_chunks(G, rows, weights, d, first, step):
    p, n = G.shape[0], d.size
    bad = np.zeros(p, np.bool_)
    for chunk in range(first, -(-n // _CHUNK), step):
        stop = min((chunk + 1) * _CHUNK, n)
        for lo in range(chunk * _CHUNK, stop, _BLOCK):
            hi = min(lo + _BLOCK, stop)
            if not _combine_block(G, rows, weights, d, lo, hi):
                _mark_bad(G, rows, lo, hi, bad)
    return bad


@_jit
def _combine_block(G, rows, weights, d, lo, hi):
    """d[lo:hi], four rows at a time; whether all of it is finite."""
    out = d[lo:hi]
    out[:] = 0
    quads = rows.size - rows.size % 4
    for k in range(0, quads, 4):
        g0, g1, g2, g3 = (
            G[rows[k], lo:hi],
            G[rows[k + 1], lo:hi],
            G[rows[k + 2], lo:hi],
            G[rows[k + 3], lo:hi],
        )
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        for c in range(out.size):
            out[c] += (w0 * g0[c] + w1 * g1[c]) + (w2 * g2[c] + w3 * g3[c])
    for k in range(quads, rows.size):
        row, w = G[rows[k], lo:hi], weights[k]
        for c in range(out.size):
            out[c] += w * row[c]
    nought = out.dtype.type(0)
    for c in range(out.size):
        nought += out[c] * out.dtype.type(0)
    return nought == 0


@_jit
def _mark_bad(G, rows, lo, hi, bad):
    for i in rows:
        for c in range(lo, hi):
            if not np.isfinite(G[i, c]):
                bad[i] = True


def order_statistic(G: np.ndarray, R: np.ndarray, lo: int, hi: int, keep: int, d: np.ndarray) -> np.ndarray:
    """Put a statistic of each coordinate's q sorted values of G^T R into d (n,); return which rows (p,) bool of G hold
    NaN or Inf.

    R is (p, q) float64; rows of R that are zero are not read. The centre is the mean of the sorted values lo .. hi -
    1; with keep = 0 it is the result, else the mean of the `keep` values nearest the centre is (a tie takes the
    smaller value).
    """
    pairs = sorting_network(R.shape[1])
    mix = _factors(R, G.dtype)
    starts, rows = _sparse_columns(R)

    def work(t: int, threads: int) -> np.ndarray:
        bad: np.ndarray = _order_chunks(_rows(G), mix, starts, rows, pairs, lo, hi, keep, d, t, threads)
        return bad

    return np.any(_share(work, G.size), axis=0)  # type: ignore[no-any-return]


def _sparse_columns(R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where column k of R is not zero: rows[starts[k]:starts[k + 1]]."""
    columns, rows = np.nonzero(R.T)
    starts = np.searchsorted(columns, np.arange(R.shape[1] + 1))
    return starts, rows


@lru_cache(maxsize=128)
def sorting_network(q: int) -> np.ndarray:
    """Batcher's odd-even merge sort for q values: compare-exchanges (i, j), i < j, as an (N, 2) array.

    Source: K. E. Batcher, Sorting networks and their applications (1968); Knuth, TAOCP 3, 5.2.2, algorithm M.
    """
    pairs: list[tuple[int, int]] = []
    top = 1 << max(q - 1, 0).bit_length() >> 1
    step = top
    while step > 0:
        partner, offset, distance = top, 0, step
        while True:
            pairs += [(i, i + distance) for i in range(q - distance) if i & step == offset]
            if partner == step:
                break
            partner, offset, distance = partner >> 1, step, partner - step
        step >>= 1
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


@_jit
def _order_chunks(G, mix, starts, rows, pairs, lo, hi, keep, d, first, step):
    p, n = G.shape[0], d.size
    q = mix.shape[1]
    values = np.empty((q, _LANES), G.dtype)
    nearer = np.empty((q, _LANES), np.bool_)
    bad = np.zeros(p, np.bool_)
    for chunk in range(first, -(-n // _CHUNK), step):
        stop = min((chunk + 1) * _CHUNK, n)
        for left in range(chunk * _CHUNK, stop, _LANES):
            width = min(_LANES, stop - left)
            if not _gather(G, mix, starts, rows, left, width, values):
                _mark_bad(G, rows, left, left + width, bad)
            _sort(values, pairs, width)
            if keep == 0:
                _mean_of(values, lo, hi, d, left, width)
            else:
                _mean_nearest(values, nearer, lo, hi, keep, d, left, width)
    return bad


@_jit
def _gather(G, mix, starts, rows, left, width, values):
    """values = the columns of G^T R here; whether all of them are finite."""
    zero = G.dtype.type(0)
    nought = np.zeros(width, G.dtype)
    for k in range(values.shape[0]):
        out = values[k]
        if starts[k + 1] == starts[k]:
            out[:width] = 0
        for at in range(starts[k], starts[k + 1]):
            i = rows[at]
            w = mix[i, k]
            row = G[i, left : left + width]
            if at == starts[k]:
                for c in range(width):
                    out[c] = w * row[c]
            else:
                for c in range(width):
                    out[c] += w * row[c]
        for c in range(width):
            nought[c] += out[c] * zero
    total = zero
    for c in range(width):
        total += nought[c]
    return total == 0


def _extremum(name: str) -> Any:
    """LLVM's own minimum or maximum: of a Python conditional it makes masked stores, which are three times slower."""

    @intrinsic
    def extremum(context: Any, x: Any, y: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            kind = arguments[0].type
            call = builder.module.declare_intrinsic(name, [kind], ir.FunctionType(kind, [kind, kind]))
            return builder.call(call, arguments, fastmath=("nnan", "nsz"))

        return x(x, y), generate

    return extremum


_lower, _upper = _extremum("llvm.minnum"), _extremum("llvm.maxnum")


@_jit
def _sort(values, pairs, width):
    for at in range(pairs.shape[0]):
        a, b = values[pairs[at, 0]], values[pairs[at, 1]]
        for c in range(width):
            x, y = a[c], b[c]
            a[c] = _lower(x, y)
            b[c] = _upper(x, y)


@_jit
def _mean_of(values, lo, hi, d, left, width):
    out = d[left : left + width]
    out[:] = 0
    share = values.dtype.type(1.0 / (hi - lo))
    for k in range(lo, hi):
        row = values[k]
        for c in range(width):
            out[c] += row[c] * share


@_jit
def _mean_nearest(values, nearer, lo, hi, keep, d, left, width):
    """The mean of the `keep` values nearest the centre: they are a window of the sorted column.

    The window leaves value k for value k + keep exactly when the latter is nearer, and once it does not, it never does
    again; so each value knows from one comparison whether it is in, and none is added that must be taken away again.
    """
    q = values.shape[0]
    centre = np.empty(width, values.dtype)
    _mean_of(values, lo, hi, centre, 0, width)
    for k in range(q - keep):
        low, high, moves = values[k], values[k + keep], nearer[k]
        for c in range(width):
            moves[c] = centre[c] - low[c] > high[c] - centre[c]
    out = d[left : left + width]
    out[:] = 0
    share = values.dtype.type(1.0 / keep)
    zero = values.dtype.type(0)
    for k in range(q):
        row = values[k]
        if k < q - keep and k >= keep:
            leaves, enters = nearer[k], nearer[k - keep]
            for c in range(width):
                out[c] += row[c] * share if enters[c] and not leaves[c] else zero
        elif k < q - keep:
            leaves = nearer[k]
            for c in range(width):
                out[c] += zero if leaves[c] else row[c] * share
        elif k >= keep:
            enters = nearer[k - keep]
            for c in range(width):
                out[c] += row[c] * share if enters[c] else zero
        else:
            for c in range(width):
                out[c] += row[c] * share
