"""Weighted sums of rows, in the vector registers.

numba also vectorizes a plain loop over eight rows at a time. Such a loop cannot prefetch. Without this module, the mean
of 15 rows of millions of coordinates takes 1.3 times as long, on one core (AVX-512, float32).

Compiled loops call `add_rows` with addresses of rows with contiguous entries. `padded_terms` prepares its arguments.
"""

import numpy as np
from numba.core import cgutils
from numba.extending import intrinsic

from fa.kernels.cache import jit
from fa.kernels.vectors import INT, VECTOR, Vectors, constant

_FEW, _MANY = 8, 16  # Numbers of rows that are added at a time.
_AHEAD = 1024  # Distance of prefetching in bytes; hardware prefetching ends at each page.


@jit
def padded_terms(G, rows, weights):
    """Repeat the last row with weight 0 until the number of rows suits `add_rows`.

    Args:
        G: Matrix (p, n) with contiguous rows.
        rows: Indices of rows, at least one.
        weights: Their weights.

    Returns:
        The addresses of the padded rows, and their weights.
    """
    size = -(-rows.size // _FEW) * _FEW
    addresses, padded = np.empty(size, np.int64), np.zeros(size, weights.dtype)
    for k in range(size):
        addresses[k] = G.ctypes.data + rows[min(k, rows.size - 1)] * G.strides[0]
    padded[: rows.size] = weights
    return addresses, padded


@jit
def add_rows(rows, weights, left, out):
    """Write the weighted sum of rows to `out`.

    Args:
        rows: Addresses of the rows, padded.
        weights: Their weights, in the rows' precision.
        left: First column.
        out: Result (columns,).

    Returns:
        True if the whole sum is finite.
    """
    probe = out.dtype.type(0)  # The first NaN or Inf makes it NaN.
    start, rest = left * out.itemsize, rows.size % _MANY
    for first in range(0, rows.size - rest, _MANY):
        probe += _add_many(rows, first, weights, start, out)
    if rest:
        probe += _add_few(rows, rows.size - rest, weights, start, out)
    return probe == 0


def _add(count):
    """Create the intrinsic that adds `count` rows."""

    @intrinsic
    def add(typing, rows, first, weights, left, out):
        """Add the weighted rows at the addresses rows[first : first + count] to `out`, which is 0 before the first row.

        The result is 0 if the whole sum is finite, and NaN otherwise.
        """
        kind = out.dtype

        def generate(context, builder, signature, arguments):
            rows, first, weights, left, out = arguments
            vectors, scalars = Vectors(context, builder, kind), Vectors(context, builder, kind, lanes=1)
            addresses = [builder.add(row, left) for row in vectors.entries(signature.args[0], rows, first, count)]
            factors = vectors.entries(signature.args[2], weights, first, count)
            array = context.make_array(signature.args[4])(context, builder, out)
            target = builder.ptrtoint(array.data, INT)
            size = builder.mul(array.nitems, constant(vectors.size))
            whole = builder.and_(size, constant(-VECTOR))
            is_first = builder.icmp_signed("==", first, constant(0))

            def add_columns(part, begin, end):
                probe = cgutils.alloca_once_value(builder, part.zero)
                broadcast = [part.broadcast(factor) for factor in factors]
                step = part.lanes * part.size
                with cgutils.for_range_slice(builder, begin, end, constant(step)) as (at, _):
                    place = builder.add(target, at)
                    total = builder.select(is_first, part.zero, part.load(place))
                    for factor, address in zip(broadcast, addresses, strict=True):
                        source = builder.add(address, at)
                        total = part.multiply_add(factor, part.load(source), total)
                        part.prefetch(builder.add(source, constant(_AHEAD)))
                    part.store(total, place)
                    builder.store(part.multiply_add(total, part.zero, builder.load(probe)), probe)
                return part.sum(builder.load(probe))

            return builder.fadd(add_columns(vectors, constant(0), whole), add_columns(scalars, whole, size))

        return kind(rows, first, weights, left, out), generate

    return add


_add_few, _add_many = _add(_FEW), _add(_MANY)
