"""Sorting of many columns at a time, by comparisons of rows in the vector registers.

numba also vectorizes a plain loop over one row. Such a loop stores its values to memory after each comparison. Without
this module, the median of 15 or 60 rows takes 2 to 3 times as long, on one core (AVX-512, float32).

Compiled loops call `sort_rows` with addresses of rows with contiguous entries. `sort_plan` prepares its arguments.
"""

import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic

from fa.kernels.cache import jit
from fa.kernels.sorting_network import sorting_network
from fa.kernels.vectors import VECTOR, Vectors, constant

LANES = 256
"""Number of columns that are sorted together."""

_FEW, _MANY = 8, 16  # Numbers of rows that are sorted within the registers.
_AHEAD = 1024  # Distance of prefetching in bytes; hardware prefetching ends at each page.


def sort_plan(q: int) -> tuple[int, np.ndarray]:
    """Plan `sort_rows` for q rows.

    Args:
        q: Number of rows.

    Returns:
        The number of rows after padding, and the merges (N, 2) of groups of rows.
    """
    group = _FEW if q <= _FEW else _MANY
    groups = -(-q // group)
    return groups * group, group * sorting_network(groups)


@jit
def sort_rows(sources, merges, values):
    """Sort LANES columns of the rows at these addresses.

    Args:
        sources: Addresses of as many rows as `sort_plan` returns.
        merges: Its merges.
        values: Result (rows, LANES), ascending in each column.

    Returns:
        True if all entries are finite.
    """
    probe = values.dtype.type(0)  # The first NaN or Inf makes it NaN.
    if sources.size == _FEW:
        probe += _sort_few(sources, 0, values)
    else:
        for first in range(0, sources.size, _MANY):
            probe += _sort_many(sources, first, values)
    for k in range(merges.shape[0]):
        _merge(values, merges[k, 0], merges[k, 1])  # type: ignore[call-arg]  # numba supplies the first argument
    return probe == 0


def _sort(count):
    """Create the intrinsic that sorts `count` rows."""
    network = sorting_network(count).tolist()

    @intrinsic
    def sort(typing, rows, first, values):
        """Write LANES sorted columns of the rows at these addresses to values[first : first + count].

        The result is 0 if all entries are finite, and NaN otherwise.
        """
        kind = values.dtype

        def generate(context, builder, signature, arguments):
            rows, first, values = arguments
            vectors = Vectors(context, builder, kind)
            sources = vectors.entries(signature.args[0], rows, first, count)
            targets = vectors.rows_of(signature.args[2], values, first, count, LANES)
            probe = cgutils.alloca_once_value(builder, vectors.zero)
            with vectors.loop(0, LANES * vectors.size, VECTOR) as (at, _):
                x = [vectors.load(builder.add(source, at)) for source in sources]
                for source in sources:
                    vectors.prefetch(builder.add(builder.add(source, at), constant(_AHEAD)))
                for value in x:
                    builder.store(vectors.multiply_add(value, vectors.zero, builder.load(probe)), probe)
                vectors.sort_and_store(x, network, targets, at)
            return vectors.sum(builder.load(probe))

        return kind(rows, first, values), generate

    return sort


_sort_few, _sort_many = _sort(_FEW), _sort(_MANY)


@intrinsic
def _merge(typing, values, low, high):
    """Merge two sorted groups of _MANY rows, at `low` and `high`; the first becomes the lower half.

    The first group upwards and the second downwards form a sequence that rises and then falls. After one comparison of
    opposite rows, each half is such a sequence or its reverse. Four rounds then sort each half.

    Source: K. E. Batcher (1968), bitonic sorters.
    """
    rounds = [(i, i + distance) for distance in (8, 4, 2, 1) for i in range(_MANY) if not i & distance]

    def generate(context, builder, signature, arguments):
        values, low, high = arguments
        vectors = Vectors(context, builder, signature.args[0].dtype)
        lower = vectors.rows_of(signature.args[0], values, low, _MANY, LANES)
        upper = vectors.rows_of(signature.args[0], values, high, _MANY, LANES)
        with vectors.loop(0, LANES * vectors.size, VECTOR) as (at, _):
            x = []
            for row, other in zip(lower, reversed(upper), strict=True):
                pair = [vectors.load(builder.add(row, at)), vectors.load(builder.add(other, at))]
                vectors.compare_exchange(pair, [(0, 1)])
                x.append(pair[0])
                vectors.store(pair[1], builder.add(other, at))
            vectors.sort_and_store(x, rounds, lower, at)
            x = [vectors.load(builder.add(row, at)) for row in upper]
            vectors.sort_and_store(x, rounds, upper, at)
        return context.get_dummy_value()

    return types.void(values, low, high), generate
