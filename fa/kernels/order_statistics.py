"""Order statistics of every coordinate on the CPU, by sorting networks that take many coordinates at a time.

Up to 8 rows, or 16, are sorted within the processor's registers; of more, groups of 16 are merged, two at a time, as a
sorting network says.
"""

import numpy as np

from fa.kernels.cpu import CHUNK, addresses, factors, flat, jit, mark_bad, share
from fa.kernels.llvm import FEW, LANES, MANY, merge, sort_few, sort_many
from fa.kernels.sorting_network import sorting_network


def order_statistic(G: np.ndarray, R: np.ndarray, lo: int, hi: int, keep: int, d: np.ndarray) -> np.ndarray:
    """Put a statistic of each coordinate's q sorted values of G^T R into d (n,); return which rows (p,) bool of G hold
    NaN or Inf.

    R is (p, q) float64; rows of R that are zero are not read. The centre is the mean of the sorted values lo .. hi -
    1; with keep = 0 it is the result, else the mean of the `keep` values nearest the centre is (a tie takes the
    smaller value).
    """
    q = R.shape[1]
    group = FEW if q <= FEW else MANY
    groups = -(-q // group)
    merges = group * sorting_network(groups)
    mix = factors(R, G.dtype)
    starts, rows = _sparse_columns(R)
    begins = addresses(G, rows) if _picks(R) else np.empty(0, np.int64)

    def work(t: int, threads: int) -> np.ndarray:
        columns = np.zeros((q + 1, LANES), G.dtype)
        columns[q] = np.finfo(G.dtype).max  # stands for the rows that a group lacks, and goes to the end of it
        sources = np.full(groups * group, addresses(columns, np.array([q]))[0])
        sources[:q] = addresses(columns, np.arange(q))
        bad: np.ndarray = _order_chunks(
            flat(G), mix, starts, rows, columns, sources, begins, merges, lo, hi, keep, d, t, threads
        )
        return bad

    return np.any(share(work, G.size), axis=0)  # type: ignore[no-any-return]


def _sparse_columns(R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where column k of R is not zero: rows[starts[k]:starts[k + 1]]."""
    columns, rows = np.nonzero(R.T)
    starts = np.searchsorted(columns, np.arange(R.shape[1] + 1))
    return starts, rows


def _picks(R: np.ndarray) -> bool:
    """Whether every column of G^T R is a row of G as it is."""
    return bool(np.all((R == 0) | (R == 1)) and np.all(R.sum(axis=0) == 1))


@jit
def _order_chunks(G, mix, starts, rows, columns, sources, begins, merges, lo, hi, keep, d, first, step):
    p, n, q = G.shape[0], d.size, mix.shape[1]
    values = np.empty((sources.size, LANES), G.dtype)
    nearer = np.empty((q, LANES), G.dtype)
    at = np.empty_like(sources)
    bad = np.zeros(p, np.bool_)
    for chunk in range(first, -(-n // CHUNK), step):
        stop = min((chunk + 1) * CHUNK, n)
        for left in range(chunk * CHUNK, stop, LANES):
            width = min(LANES, stop - left)
            at[:] = sources
            if begins.size and width == LANES:
                at[:q] = begins + left * G.itemsize
            else:
                _gather(G, mix, starts, rows, left, width, columns)
            if not _sort(at, merges, values):
                mark_bad(G, rows, left, left + width, bad)
            if keep == 0:
                _mean_of(values, lo, hi, d, left, width)
            else:
                _mean_nearest(values[:q], nearer, lo, hi, keep, d, left, width)
    return bad


@jit
def _gather(G, mix, starts, rows, left, width, columns):
    """The columns of G^T R here."""
    for k in range(mix.shape[1]):
        out = columns[k]
        if starts[k + 1] == starts[k]:
            out[:width] = 0
        for at in range(starts[k], starts[k + 1]):
            w = mix[rows[at], k]
            row = G[rows[at], left : left + width]
            if at == starts[k]:
                for c in range(width):
                    out[c] = w * row[c]
            else:
                for c in range(width):
                    out[c] += w * row[c]


@jit
def _sort(sources, merges, values):
    """values = the rows at these addresses, sorted; whether all of them are finite."""
    nought = values.dtype.type(0)
    if sources.size == FEW:
        nought += sort_few(sources, 0, values)
    else:
        for first in range(0, sources.size, MANY):
            nought += sort_many(sources, first, values)
    for k in range(merges.shape[0]):
        merge(values, merges[k, 0], merges[k, 1])  # type: ignore[call-arg]  # numba leaves out the first
    return nought == 0


@jit
def _mean_of(values, lo, hi, d, left, width):
    out = d[left : left + width]
    out[:] = 0
    share = values.dtype.type(1.0 / (hi - lo))
    for k in range(lo, hi):
        row = values[k]
        for c in range(width):
            out[c] += row[c] * share


@jit
def _mean_nearest(values, nearer, lo, hi, keep, d, left, width):
    """The mean of the `keep` values nearest the centre: they are a window of the sorted column.

    The window leaves value k for value k + keep exactly when the latter is nearer, and once it does not, it never does
    again; so each value knows from one comparison whether it is in, and none is added that must be taken away again.
    """
    q = values.shape[0]
    centre = np.empty(width, values.dtype)
    _mean_of(values, lo, hi, centre, 0, width)
    zero, one = values.dtype.type(0), values.dtype.type(1)
    for k in range(q - keep):
        low, high, moves = values[k], values[k + keep], nearer[k]
        for c in range(width):
            moves[c] = one if centre[c] - low[c] > high[c] - centre[c] else zero
    out = d[left : left + width]
    out[:] = 0
    share = values.dtype.type(1.0 / keep)
    for k in range(q):
        row = values[k]
        if k < q - keep and k >= keep:
            leaves, enters = nearer[k], nearer[k - keep]
            for c in range(width):
                out[c] += row[c] * share if enters[c] > leaves[c] else zero
        elif k < q - keep:
            leaves = nearer[k]
            for c in range(width):
                out[c] += zero if leaves[c] > zero else row[c] * share
        elif k >= keep:
            enters = nearer[k - keep]
            for c in range(width):
                out[c] += row[c] * share if enters[c] > zero else zero
        else:
            for c in range(width):
                out[c] += row[c] * share
