"""Order statistics of each coordinate on the CPU, by sorting networks on many coordinates at a time.

Up to 8 rows, or 16, are sorted within the processor's registers. More rows are sorted in groups of 16. Pairs of groups
are then merged in the order of a sorting network.
"""

from functools import reduce

import numpy as np

from fa.kernels.cache import jit
from fa.kernels.cpu import CHUNK
from fa.kernels.rows import mark_non_finite, row_factors, whole_rows
from fa.kernels.sorting import LANES, sort_plan, sort_rows
from fa.kernels.threads import run_on_threads
from fa.kernels.vectors import row_addresses

_LARGEST = {np.dtype(kind): np.finfo(kind).max for kind in (np.float32, np.float64)}


def order_statistic(G: np.ndarray, R: np.ndarray, first: int, stop: int, nearest: int, d: np.ndarray) -> np.ndarray:
    """Write a statistic of each coordinate's q sorted values of G^T R to d.

    Args:
        G: Matrix (p, n).
        R: Factors (p, q) float64; rows of G at which R is zero are not read.
        first: First sorted value of the centre, which is the mean of the values first .. stop - 1.
        stop: Index after the last one.
        nearest: 0 for the centre, else the number of values nearest the centre whose mean is taken; a tie takes the
            smaller value.
        d: Result (n,).

    Returns:
        Which rows of G that were read hold NaN or Inf, (p,) bool.
    """
    q = R.shape[1]
    size, merges = sort_plan(q)
    factors, whole = row_factors(R, G.dtype), whole_rows(G)
    owners, rows = R.T.nonzero()
    starts = owners.searchsorted(np.arange(q + 1))  # Column k of R is not zero at rows[starts[k]:starts[k + 1]].
    unchanged = rows.size == q and bool((R[rows, np.arange(q)] == 1).all())  # Every column of G^T R is a row of G.
    addresses = row_addresses(G, rows) if unchanged else np.empty(0, np.int64)
    padded_columns = np.minimum(np.arange(size), q)

    def work(thread: int, threads: int) -> np.ndarray:
        columns = np.zeros((q + 1, LANES), G.dtype)
        columns[q] = _LARGEST[G.dtype]  # Padding rows have the largest value, so they are sorted to the end.
        sources = row_addresses(columns, padded_columns)
        not_finite: np.ndarray = _order_chunks(
            whole, factors, starts, rows, columns, sources, addresses, merges, first, stop, nearest, d, thread, threads
        )
        return not_finite

    return reduce(np.logical_or, run_on_threads(work, G.size))


@jit
def _order_chunks(
    G, factors, starts, rows, columns, sources, addresses, merges, first, stop, nearest, d, thread, threads
):
    """Write every `threads`-th chunk of the statistic; return which rows hold NaN or Inf."""
    p, n, q = G.shape[0], d.size, factors.shape[1]
    values = np.empty((sources.size, LANES), G.dtype)
    nearer = np.empty((q, LANES), G.dtype)
    at = np.empty_like(sources)
    not_finite = np.zeros(p, np.bool_)
    for chunk in range(thread, -(-n // CHUNK), threads):
        end = min((chunk + 1) * CHUNK, n)
        for left in range(chunk * CHUNK, end, LANES):
            width = min(LANES, end - left)
            at[:] = sources
            if addresses.size and width == LANES:
                at[:q] = addresses + left * G.itemsize
            else:
                _gather(G, factors, starts, rows, left, width, columns)
            if not sort_rows(at, merges, values):
                mark_non_finite(G, rows, left, left + width, not_finite)
            if nearest == 0:
                _mean_of(values, first, stop, d, left, width)
            else:
                _mean_nearest(values[:q], nearer, first, stop, nearest, d, left, width)
    return not_finite


@jit
def _gather(G, factors, starts, rows, left, width, columns):
    """Write these columns of G^T R to `columns`."""
    for k in range(factors.shape[1]):
        out = columns[k]
        if starts[k + 1] == starts[k]:
            out[:width] = 0
        for at in range(starts[k], starts[k + 1]):
            w = factors[rows[at], k]
            row = G[rows[at], left : left + width]
            if at == starts[k]:
                for c in range(width):
                    out[c] = w * row[c]
            else:
                for c in range(width):
                    out[c] += w * row[c]


@jit
def _mean_of(values, first, stop, d, left, width):
    """Write the mean of the sorted values first .. stop - 1."""
    out = d[left : left + width]
    out[:] = 0
    weight = values.dtype.type(1.0 / (stop - first))
    for k in range(first, stop):
        row = values[k]
        for c in range(width):
            out[c] += row[c] * weight


@jit
def _mean_nearest(values, nearer, first, stop, nearest, d, left, width):
    """Write the mean of the `nearest` values nearest the centre, which are a window of the sorted column.

    The window moves from value k to value k + nearest exactly if the latter is nearer; once it does not, it stays. One
    comparison thus shows whether a value is in the window, and no value is added and subtracted again.
    """
    q = values.shape[0]
    centre = np.empty(width, values.dtype)
    _mean_of(values, first, stop, centre, 0, width)
    zero, one = values.dtype.type(0), values.dtype.type(1)
    for k in range(q - nearest):
        low, high, moves = values[k], values[k + nearest], nearer[k]
        for c in range(width):
            moves[c] = one if centre[c] - low[c] > high[c] - centre[c] else zero
    out = d[left : left + width]
    out[:] = 0
    weight = values.dtype.type(1.0 / nearest)
    for k in range(q):
        row = values[k]
        if k < q - nearest and k >= nearest:
            leaves, enters = nearer[k], nearer[k - nearest]
            for c in range(width):
                out[c] += row[c] * weight if enters[c] > leaves[c] else zero
        elif k < q - nearest:
            leaves = nearer[k]
            for c in range(width):
                out[c] += zero if leaves[c] > zero else row[c] * weight
        elif k >= nearest:
            enters = nearer[k - nearest]
            for c in range(width):
                out[c] += row[c] * weight if enters[c] > zero else zero
        else:
            for c in range(width):
                out[c] += row[c] * weight
