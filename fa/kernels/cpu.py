"""The passes over a gradient matrix on the CPU: compiled loops on a few threads.

Every pass cuts the n columns into chunks of a fixed size, and thread t of T takes chunks t, t + T, ... The chunks'
results are summed in order, so that a result does not depend on the number of threads. The loops are numba functions
that release the GIL and run on Python threads. numba's thread pool can neither be forked nor entered twice.
"""

from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Any

import numpy as np

from fa.kernels.cache import jit
from fa.kernels.products import BLOCK, block_products, block_products_of_rows, packing_addresses, padded_rows
from fa.kernels.rows import mark_non_finite, row_factors, whole_rows
from fa.kernels.sums import add_rows, padded_terms
from fa.kernels.threads import run_on_threads
from fa.kernels.vectors import row_addresses

CHUNK = 16 * BLOCK
"""Number of columns that a thread processes at a time."""


def gram(G: np.ndarray, precise: bool) -> np.ndarray:
    """Compute the upper triangle of K = G G^T, (p, p) float64.

    Args:
        G: Matrix (p, n).
        precise: Whether all sums are in float64; else products and sums of 2,048 of them are in G's precision.

    Returns:
        K (p, p) float64; entries below the diagonal are unspecified.
    """
    padded, tiles = _all_pairs(len(G))
    zero = np.float64(0) if precise else G.dtype.type(0)
    return _gram(G, G.size, zero, tiles, row_addresses(G, padded), np.empty(0, np.int64), 0)


@lru_cache
def _all_pairs(p: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the p rows, padded, and tiles that have all pairs of them."""
    groups = _groups_of_three(range(p))
    tiles = [first + second for i, first in enumerate(groups) for second in groups[i:]]
    return np.array(padded_rows(list(range(p)))), np.array(tiles)


def gram_rows(G: np.ndarray, rows: Sequence[int], others: Sequence[int]) -> np.ndarray:
    """Compute some rows of K = G G^T, to the bits of the quick pass of `gram`.

    Args:
        G: Matrix (p, n).
        rows: Rows of K.
        others: Columns of K.

    Returns:
        K (p, p) float64, 0 elsewhere.
    """
    tiles = [first + second for first in _groups_of_three(rows) for second in _groups_of_three(others)]
    first, second = padded_rows(list(rows)), padded_rows(list(others))
    indices = np.array([*first, *second])
    size = (len(rows) + len(others)) * G.shape[1]
    return _gram(G, size, G.dtype.type(0), np.array(tiles), row_addresses(G, indices), indices, len(first))


def _gram(
    G: np.ndarray, size: int, zero: Any, tiles: np.ndarray, rows: np.ndarray, indices: np.ndarray, split: int
) -> np.ndarray:
    """Compute K with the given tiles of rows; `split` is the number of first rows, 0 for all pairs."""
    p, n = G.shape
    parts = np.zeros((-(-n // CHUNK), p, p))
    vectors, whole = zero.dtype == G.dtype, whole_rows(G)

    def work(thread: int, threads: int) -> None:
        memory, packed = packing_addresses(rows[: 0 if split else None], G.itemsize)
        _gram_chunks(whole, n, parts, thread, threads, zero, vectors, rows, tiles, packed, indices, split)
        del memory  # The addresses in `packed` point to it.

    run_on_threads(work, size)
    K: np.ndarray = parts.sum(axis=0)
    return K


def _groups_of_three(rows: Sequence[int]) -> list[list[int]]:
    """Split rows into groups of three, with the last row repeated if needed."""
    padded = [*rows, *[rows[-1]] * (-len(rows) % 3)]
    return [padded[first : first + 3] for first in range(0, len(padded), 3)]


@jit
def _gram_chunks(G, n, parts, thread, threads, zero, vectors, rows, tiles, packed, indices, split):
    """Add the products of each chunk's blocks: of all rows or, with `split`, of the first rows with the others.

    With `vectors` a whole block is multiplied in vector registers, any other by `tiles`.
    """
    p = G.shape[0]
    block = np.zeros((p, p))
    for chunk in range(thread, parts.shape[0], threads):
        stop = min((chunk + 1) * CHUNK, n)
        for lo in range(chunk * CHUNK, stop, BLOCK):
            hi = min(lo + BLOCK, stop)
            if vectors and hi - lo == BLOCK:
                if split:
                    block_products_of_rows(G, rows, lo, indices, split, block)
                else:
                    block_products(G, rows, lo, packed, block)
            else:
                for tile in tiles:
                    _gram_tile(G, tile, lo, hi, zero, block)
            parts[chunk] += block


@jit
def _gram_tile(G, tile, lo, hi, zero, block):
    """Write the products of three rows with three rows to `block`; `+ zero` converts to float64 in a precise pass."""
    i, i1, i2, j, j1, j2 = tile[0], tile[1], tile[2], tile[3], tile[4], tile[5]
    a0, a1, a2 = G[i, lo:hi], G[i1, lo:hi], G[i2, lo:hi]
    b0, b1, b2 = G[j, lo:hi], G[j1, lo:hi], G[j2, lo:hi]
    s00 = s01 = s02 = s10 = s11 = s12 = s20 = s21 = s22 = zero
    for c in range(hi - lo):
        x0, x1, x2 = a0[c] + zero, a1[c] + zero, a2[c] + zero
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
    """Compute the upper triangle of ||g_i - g_j||^2 from differences in float64.

    Args:
        G: Matrix (p, n).

    Returns:
        Squared distances (p, p), float64; 0 below the diagonal.
    """
    p, n = G.shape
    parts = np.zeros((-(-n // CHUNK), p, p))
    run_on_threads(lambda thread, threads: _distance_chunks(whole_rows(G), n, parts, thread, threads), G.size)
    D2: np.ndarray = parts.sum(axis=0)
    return D2


@jit
def _distance_chunks(G, n, parts, thread, threads):
    """Add the squared distances of every `threads`-th chunk to `parts`."""
    p = G.shape[0]
    for chunk in range(thread, parts.shape[0], threads):
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
    """Write the weighted sum of rows to d.

    Args:
        G: Matrix (p, n).
        weights: Weights (p,) float64; rows of weight 0 are not read.
        d: Result (n,).

    Returns:
        Which rows that were read hold NaN or Inf, (p,) bool.
    """
    rows = weights.nonzero()[0]
    if rows.size == 0:
        d[:] = 0
        return np.zeros(len(G), np.bool_)
    factors = row_factors(weights[rows], G.dtype)
    if factors.dtype != G.dtype:
        return _combine_in_float64(G, rows, factors, d)
    G = whole_rows(G)
    return reduce(np.logical_or, run_on_threads(lambda *share: _combine_chunks(G, rows, factors, d, *share), G.size))


def _combine_in_float64(G: np.ndarray, rows: np.ndarray, factors: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Write the sum of float32 rows with factors that float32 cannot hold; return which rows hold NaN or Inf."""
    not_finite = np.zeros(len(G), np.bool_)
    for lo in range(0, d.size, CHUNK):
        part = G[rows, lo : lo + CHUNK].astype(np.float64)
        total = np.zeros(part.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):
            for factor, row in zip(factors, part, strict=True):  # BLAS would sum in an order of its own.
                total += factor * row
            d[lo : lo + CHUNK] = total
        if not np.isfinite(d[lo : lo + CHUNK]).all():
            not_finite[rows] |= ~np.isfinite(part).all(axis=1)
    return not_finite


@jit
def _combine_chunks(G, rows, factors, d, thread, threads):
    """Write every `threads`-th chunk of the sum; return which rows hold NaN or Inf."""
    p, n = G.shape[0], d.size
    not_finite = np.zeros(p, np.bool_)
    addresses, padded = padded_terms(G, rows, factors)
    for chunk in range(thread, -(-n // CHUNK), threads):
        stop = min((chunk + 1) * CHUNK, n)
        for lo in range(chunk * CHUNK, stop, BLOCK):
            hi = min(lo + BLOCK, stop)
            if not add_rows(addresses, padded, lo, d[lo:hi]):
                mark_non_finite(G, rows, lo, hi, not_finite)
    return not_finite
