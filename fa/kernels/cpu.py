"""The passes over a gradient matrix on the CPU: compiled loops, a few of the machine's threads each.

Every pass cuts the n columns into chunks of a fixed size and lets thread t of T take chunks t, t + T, ...; what the
chunks give is put together in their order, so that a result does not depend on the number of threads. The loops are
plain numba functions that release the GIL and run on threads of ours: numba's own thread pool may neither be forked
nor entered twice.

``_FASTMATH`` leaves out "nnan" and "ninf": NaN and Inf keep their meaning, since finding them is part of the job.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from fa.kernels import cache
from fa.kernels.llvm import BLOCK, TILE, VECTOR, pack, packed_square, packed_triangle, square, triangle

_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
CHUNK = 16 * BLOCK  # columns a thread takes at a time
_SPAN = 4 * BLOCK  # columns of a sum that stay in the cache while rows are added to it
_PACKED = 24  # rows from which on it pays to copy a block where vectors are not aligned, so that they are
_SERIAL = 1 << 19  # entries of G below which one thread is faster than several

jit = cache.jit(nogil=True, fastmath=_FASTMATH, error_model="numpy")


def share(work: Callable[[int, int], Any], size: int) -> list[Any]:
    """work(t, T) for t = 0 .. T - 1 on T threads; T = 1 where G has few entries."""
    threads = 1 if size < _SERIAL else torch.get_num_threads()
    if threads == 1:
        return [work(0, 1)]
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(work, t, threads) for t in range(1, threads)]
        first = work(0, threads)  # here, since a thread takes as long to begin as a small pass takes in all
        return [first, *(other.result() for other in others)]


def flat(G: np.ndarray) -> np.ndarray:
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
    p, n = G.shape
    parts = np.zeros((-(-n // CHUNK), p, p))
    zero = np.float64(0) if precise else G.dtype.type(0)
    tiled = zero.dtype == G.dtype
    threes = _threes(range(p))
    tiles = np.array([a + b for i, a in enumerate(threes) for b in threes[i:]])
    rows = addresses(G, np.minimum(np.arange(-(-p // TILE) * TILE), p - 1))
    pays = p >= _PACKED and bool(np.any(rows % VECTOR))

    none = np.empty(0, np.int64)

    def work(t: int, threads: int) -> None:
        memory = np.empty(rows.size * BLOCK * G.itemsize + VECTOR if pays else 0, np.uint8)
        packed = _packed(rows, memory, G.itemsize)
        _gram_chunks(flat(G), n, parts, t, threads, zero, rows, tiles, tiled, packed, none, 0)

    share(work, G.size)
    K: np.ndarray = parts.sum(axis=0)
    return K


def gram_rows(G: np.ndarray, rows: Sequence[int], others: Sequence[int]) -> np.ndarray:
    """Those rows of K = G G^T, (p, p) float64, in the columns `others`, and 0 elsewhere: to the bits of `gram`."""
    p, n = G.shape
    parts = np.zeros((-(-n // CHUNK), p, p))
    tiles = np.array([a + b for a in _threes(rows) for b in _threes(others)])
    near = _together(rows, TILE)
    names = np.array([*near, *_together(others, TILE)])
    starts, zero, none = addresses(G, names), G.dtype.type(0), np.empty(0, np.int64)

    def work(t: int, threads: int) -> None:
        _gram_chunks(flat(G), n, parts, t, threads, zero, starts, tiles, True, none, names, len(near))

    share(work, (len(rows) + len(others)) * n)
    K: np.ndarray = parts.sum(axis=0)
    return K


def _together(rows: Sequence[int], size: int) -> list[int]:
    """The rows, and the last one again until their number is a multiple of `size`."""
    return [*rows, *[rows[-1]] * (-len(rows) % size)]


def _threes(rows: Sequence[int]) -> list[list[int]]:
    """The rows three by three, the last one again where a three is not full."""
    whole = _together(rows, 3)
    return [whole[first : first + 3] for first in range(0, len(whole), 3)]


def _packed(rows: np.ndarray, memory: np.ndarray, itemsize: int) -> np.ndarray:
    """Where the rows' first vectors go in `memory`, which is aligned to vectors then; nowhere if it is empty."""
    start = -(-memory.ctypes.data // VECTOR) * VECTOR
    group, k = np.divmod(np.arange(rows.size if memory.size else 0), TILE)
    places: np.ndarray = start + group * TILE * BLOCK * itemsize + k * VECTOR
    return places


def addresses(G: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Where these rows of G begin in memory."""
    starts: np.ndarray = G.ctypes.data + rows.astype(np.int64) * G.strides[0]
    return starts


@jit
def _gram_chunks(G, n, parts, first, step, zero, rows, tiles, tiled, packed, names, near):
    """The products of a block in vector registers if it is whole and `tiled`, else those in `tiles`, three by three: of
    all rows, or, where they have `names`, of the first `near` with the others.
    """
    p = G.shape[0]
    block = np.zeros((p, p))
    for chunk in range(first, parts.shape[0], step):
        stop = min((chunk + 1) * CHUNK, n)
        for lo in range(chunk * CHUNK, stop, BLOCK):
            hi = min(lo + BLOCK, stop)
            if tiled and hi - lo == BLOCK:
                if near:
                    _rows_block(G, rows, lo, names, near, block)
                else:
                    _gram_block(G, rows, lo, packed, block)
            else:
                for tile in tiles:
                    _gram_tile(G, tile, lo, hi, zero, block)
            parts[chunk] += block


@jit
def _gram_block(G, rows, left, packed, block):
    """block = the products of all rows over the BLOCK columns from `left` on, by tiles; each tile asks for its share of
    the rows' next block, so that it is on its way while this one is multiplied. Rows are packed first where it pays.
    """
    p, start, width, one = G.shape[0], left * G.itemsize, BLOCK * G.itemsize, G.dtype.type(1)
    sums, soon = np.empty((TILE, TILE)), np.empty(TILE, np.int64)
    tile, tiles = 0, rows.size // TILE * (rows.size // TILE + 1) // 2
    for i in range(0, packed.size, TILE):
        pack(rows, i, start, one, packed)  # type: ignore[call-arg]  # the first is the compiler's
    for i in range(0, p, TILE):
        for j in range(i, p, TILE):
            for k in range(TILE):
                soon[k] = rows[min(tile * p // tiles + k, ((tile + 1) * p - 1) // tiles)] + start + width
            tile += 1
            if packed.size:
                if i == j:
                    packed_triangle(packed, i, j, 0, one, soon, sums)
                else:
                    packed_square(packed, i, j, 0, one, soon, sums)
            elif i == j:
                triangle(rows, i, j, start, one, soon, sums)
            else:
                square(rows, i, j, start, one, soon, sums)
            for k in range(min(TILE, p - i)):
                for h in range(k if i == j else 0, min(TILE, p - j)):
                    block[i + k, j + h] = sums[k, h]


@jit
def _rows_block(G, rows, left, names, near, block):
    """The block's products of the first `near` of these rows with those after them, to the bits of `_gram_block`."""
    start, width, one = left * G.itemsize, BLOCK * G.itemsize, G.dtype.type(1)
    sums = np.empty((TILE, TILE))
    for i in range(0, near, TILE):
        for j in range(near, rows.size, TILE):
            square(rows, i, j, start, one, rows[j : j + TILE] + start + width, sums)
            for k in range(TILE):
                for h in range(TILE):
                    block[names[i + k], names[j + h]] = sums[k, h]


@jit
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
    parts = np.zeros((-(-n // CHUNK), p, p))
    share(lambda t, threads: _distance_chunks(flat(G), n, parts, t, threads), G.size)
    D2: np.ndarray = parts.sum(axis=0)
    return D2


@jit
def _distance_chunks(G, n, parts, first, step):
    p = G.shape[0]
    for chunk in range(first, parts.shape[0], step):
        stop = min((chunk + 1) * CHUNK, n)
        for lo in range(chunk * CHUNK, stop, BLOCK):
            hi = min(lo + BLOCK, stop)
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
    own = factors(weights[rows], G.dtype)
    bad: np.ndarray = np.any(share(lambda t, T: _combine_chunks(flat(G), rows, own, d, t, T), G.size), axis=0)
    return bad


def factors(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Factors of rows in the rows' precision, or in float64 where float32 would lose or overflow them."""
    sizes = np.abs(values[values != 0])
    narrow = sizes.size == 0 or (sizes.min() > 1e-30 and sizes.max() < 1e30)
    return values.astype(dtype) if narrow else values


@jit
def _combine_chunks(G, rows, weights, d, first, step):
    p, n = G.shape[0], d.size
    bad = np.zeros(p, np.bool_)
    for chunk in range(first, -(-n // CHUNK), step):
        stop = min((chunk + 1) * CHUNK, n)
        for lo in range(chunk * CHUNK, stop, _SPAN):
            hi = min(lo + _SPAN, stop)
            if not _combine_block(G, rows, weights, d, lo, hi):
                mark_bad(G, rows, lo, hi, bad)
    return bad


@jit
def _combine_block(G, rows, weights, d, lo, hi):
    """d[lo:hi], eight rows at a time, then four, then one; whether all of it is finite."""
    out = d[lo:hi]
    out[:] = 0
    k = 0
    while k + 8 <= rows.size:
        g0, g1, g2, g3 = G[rows[k], lo:hi], G[rows[k + 1], lo:hi], G[rows[k + 2], lo:hi], G[rows[k + 3], lo:hi]
        g4, g5, g6, g7 = G[rows[k + 4], lo:hi], G[rows[k + 5], lo:hi], G[rows[k + 6], lo:hi], G[rows[k + 7], lo:hi]
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        w4, w5, w6, w7 = weights[k + 4], weights[k + 5], weights[k + 6], weights[k + 7]
        for c in range(out.size):
            half = out[c] + ((w0 * g0[c] + w1 * g1[c]) + (w2 * g2[c] + w3 * g3[c]))
            out[c] = half + ((w4 * g4[c] + w5 * g5[c]) + (w6 * g6[c] + w7 * g7[c]))
        k += 8
    while k + 4 <= rows.size:
        g0, g1, g2, g3 = G[rows[k], lo:hi], G[rows[k + 1], lo:hi], G[rows[k + 2], lo:hi], G[rows[k + 3], lo:hi]
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        for c in range(out.size):
            out[c] += (w0 * g0[c] + w1 * g1[c]) + (w2 * g2[c] + w3 * g3[c])
        k += 4
    while k < rows.size:
        row, w = G[rows[k], lo:hi], weights[k]
        for c in range(out.size):
            out[c] += w * row[c]
        k += 1
    nought = out.dtype.type(0)
    for c in range(out.size):
        nought += out[c] * out.dtype.type(0)
    return nought == 0


@jit
def mark_bad(G, rows, lo, hi, bad):
    """bad[i] = True for those of the rows that hold NaN or Inf in columns lo .. hi - 1."""
    for i in rows:
        for c in range(lo, hi):
            if not np.isfinite(G[i, c]):
                bad[i] = True
