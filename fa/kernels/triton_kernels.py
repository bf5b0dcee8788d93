"""Triton's kernels of the passes over a gradient matrix, which `triton_passes` launches.

Each reads its matrix once. This is Triton's language, a part of Python.
"""

import triton
import triton.language as tl

GROUP = tl.constexpr(8)
"""Number of rows whose loads are under way together."""


@triton.jit
def gram(G, stride, p, n, parts, P: tl.constexpr, WIDTH: tl.constexpr):
    """Compute G G^T in parts, whose sum is the Gram matrix.

    Each of the launch's programs sums the products over every `programs`-th block of WIDTH columns.

    Args:
        G: Matrix (p, n) with contiguous rows.
        stride: Distance of two rows, in entries.
        p: Number of rows.
        n: Number of columns.
        parts: Result (programs, P, P), float64. Entries beyond p are 0.
        P: A power of two, at least 16 and at least p.
        WIDTH: Number of columns of a block, a power of two.
    """
    rows, columns = tl.arange(0, P), tl.arange(0, WIDTH)
    starts = G + rows[:, None].to(tl.int64) * stride
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    K = tl.full((P, P), 0, tl.float64)
    for left in range(program * WIDTH, n, programs * WIDTH):
        inside = (rows[:, None] < p) & (left + columns[None, :] < n)
        X = tl.load(starts + (left + columns[None, :]), mask=inside, other=0.0).to(tl.float64)
        K += tl.dot(X, tl.trans(X), out_dtype=tl.float64)
    tl.store(parts + program * P * P + rows[:, None] * P + rows[None, :], K)


@triton.jit
def combine(G, stride, n, rows, weights, count, d, not_finite, NARROW: tl.constexpr, WIDTH: tl.constexpr):
    """Compute the weighted sum of rows in float64. Each program computes WIDTH columns.

    Args:
        G: Matrix (p, n) with contiguous rows.
        stride: Distance of two rows, in entries.
        n: Number of columns.
        rows: Indices (count,) of the rows, int64.
        weights: Their weights (count,), float64.
        count: Number of rows.
        d: Result (n,), in G's dtype.
        not_finite: Flag (1,), int32, set to 1 if an entry of the sum is NaN or Inf.
        NARROW: Type to which the sum is rounded before it is converted to that of d: float64 or float32.
        WIDTH: Number of columns of a program, a power of two.
    """
    columns = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    total = tl.full((WIDTH,), 0, tl.float64)
    for first in range(0, count, GROUP):
        for k in tl.static_range(GROUP):
            present = first + k < count
            start = G + tl.load(rows + first + k, mask=present, other=0) * stride
            value = tl.load(start + columns, mask=present & (columns < n), other=0.0).to(tl.float64)
            total += tl.load(weights + first + k, mask=present, other=0.0) * value
    tl.store(not_finite + tl.full((WIDTH,), 0, tl.int32), 1, mask=total - total != 0)
    tl.store(d + columns, total.to(NARROW).to(d.dtype.element_ty), mask=columns < n)


@triton.jit
def _exchange(x, i: tl.constexpr, j: tl.constexpr):
    """Return the tuple x with the smaller of x[i] and x[j] at i, and the larger at j; i < j."""
    low, high = tl.minimum(x[i], x[j]), tl.maximum(x[i], x[j])
    return x[:i] + (low,) + x[i + 1 : j] + (high,) + x[j + 1 :]  # noqa: RUF005  # Triton has no starred items.


@triton.jit
def order_statistic(
    G,
    stride,
    n,
    rows,
    d,
    not_finite,
    q: tl.constexpr,
    first: tl.constexpr,
    stop: tl.constexpr,
    nearest: tl.constexpr,
    NETWORK: tl.constexpr,
    WIDE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Compute a statistic of the q rows' values in each column; see `fa.kernels.order_statistic`.

    Each program computes WIDTH columns.

    Args:
        G: Matrix with contiguous rows.
        stride: Distance of two rows, in entries.
        n: Number of columns.
        rows: Indices (q,) of the rows, int64.
        d: Result (n,).
        not_finite: Flag (1,), int32, set to 1 if a value is NaN or Inf.
        q: Number of rows.
        first: First sorted value of the centre.
        stop: Index after the last one.
        nearest: 0 for the centre, else the number of values nearest the centre.
        NETWORK: Pairs of `sorting_network(q)`, flattened.
        WIDE: Type of the computation: float64 or float32.
        WIDTH: Number of columns of a program, a power of two.
    """
    columns = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    x = ()
    probe = tl.full((WIDTH,), 0, WIDE)
    for k in tl.static_range(q):
        start = G + tl.load(rows + k) * stride
        value = tl.load(start + columns, mask=columns < n, other=0.0).to(WIDE)
        probe += value - value
        x = x + (value,)  # noqa: RUF005  # Triton has no starred items.
    tl.store(not_finite + tl.full((WIDTH,), 0, tl.int32), 1, mask=probe != 0)
    for pair in tl.static_range(len(NETWORK) // 2):
        x = _exchange(x, NETWORK[2 * pair], NETWORK[2 * pair + 1])
    centre = tl.full((WIDTH,), 0, WIDE)
    for k in tl.static_range(first, stop):
        centre += x[k]
    centre /= stop - first
    if nearest > 0:
        window = tl.full((WIDTH,), 0, tl.int32)  # First of the `nearest` values nearest the centre.
        for k in tl.static_range(q - nearest):
            window += (centre - x[k] > x[k + nearest] - centre).to(tl.int32)
        total = tl.full((WIDTH,), 0, WIDE)
        for k in tl.static_range(q):
            total += tl.where((window <= k) & (k < window + nearest), x[k], 0.0)
        centre = total / nearest
    tl.store(d + columns, centre.to(d.dtype.element_ty), mask=columns < n)
