"""Products of rows, on tiles of rows in the vector registers.

numba also vectorizes a plain loop over one row. Such a loop stores its values to memory after each product. Without
this module, products of 15 to 60 rows take 1.2 to 1.3 times as long, on one core (AVX-512, float32). Of these,
prefetching accounts for 1.05 to 1.2, and packing unaligned rows for 1.1 to 1.4 at 60 rows.

Compiled loops call `block_products` and `block_products_of_rows` with addresses of rows with contiguous entries.
`padded_rows` and `packing_addresses` prepare their arguments.
"""

from itertools import product

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fa.kernels.cache import jit
from fa.kernels.vectors import FEATURES, VECTOR, Vectors, constant

BLOCK = 2048
"""Number of columns that stay in the cache while all pairs of rows are multiplied."""

_TILE = 3 if FEATURES.get("sse2") and not FEATURES.get("avx512f") else 5  # The _TILE^2 sums must fit the registers.
_MIN_PACKED = 24  # From this number of rows on, copying a block of unaligned rows pays.


def padded_rows(rows: list[int]) -> list[int]:
    """Repeat the last row until the number of rows is a multiple of a tile's.

    Args:
        rows: Indices of rows, at least one.

    Returns:
        The padded indices.
    """
    return [*rows, *[rows[-1]] * (-len(rows) % _TILE)]


def packing_addresses(rows: np.ndarray, itemsize: int) -> tuple[np.ndarray, np.ndarray]:
    """Allocate memory in which `block_products` packs a block, if that pays.

    Args:
        rows: Addresses of the padded rows.
        itemsize: Bytes of a coordinate.

    Returns:
        The memory, which must outlive the calls, and the addresses of the rows' first vectors in it; both are empty if
        packing does not pay.
    """
    pays = rows.size >= _MIN_PACKED and bool((rows % VECTOR).any())
    if not pays:
        return np.empty(0, np.uint8), np.empty(0, np.int64)
    memory = np.empty(rows.size * BLOCK * itemsize + VECTOR, np.uint8)
    start = -(-memory.ctypes.data // VECTOR) * VECTOR
    group, k = np.divmod(np.arange(rows.size), _TILE)
    return memory, start + group * _TILE * BLOCK * itemsize + k * VECTOR


@jit
def block_products(G, rows, left, packed, block):
    """Write the products of all rows over BLOCK columns to block[i, j], i <= j.

    Each tile prefetches its share of the rows' next block.

    Args:
        G: Matrix (p, n), whose shape and dtype count.
        rows: Addresses of its rows, padded.
        left: First column.
        packed: Addresses for packing, may be empty.
        block: Result (p, p) float64.
    """
    p, start, width, one = G.shape[0], left * G.itemsize, BLOCK * G.itemsize, G.dtype.type(1)
    sums, upcoming = np.empty((_TILE, _TILE)), np.empty(_TILE, np.int64)
    tile, tiles = 0, rows.size // _TILE * (rows.size // _TILE + 1) // 2
    for i in range(0, packed.size, _TILE):
        _pack(rows, i, start, one, packed)  # type: ignore[call-arg]  # numba supplies the first argument
    for i in range(0, p, _TILE):
        for j in range(i, p, _TILE):
            for k in range(_TILE):
                upcoming[k] = rows[min(tile * p // tiles + k, ((tile + 1) * p - 1) // tiles)] + start + width
            tile += 1
            if packed.size:
                if i == j:
                    _packed_triangle(packed, i, j, 0, one, upcoming, sums)
                else:
                    _packed_square(packed, i, j, 0, one, upcoming, sums)
            elif i == j:
                _triangle(rows, i, j, start, one, upcoming, sums)
            else:
                _square(rows, i, j, start, one, upcoming, sums)
            for k in range(min(_TILE, p - i)):
                for h in range(k if i == j else 0, min(_TILE, p - j)):
                    block[i + k, j + h] = sums[k, h]


@jit
def block_products_of_rows(G, rows, left, indices, split, block):
    """Write the products of the first `split` rows with the others, over BLOCK columns, to `block`.

    The bits are those of `block_products`.

    Args:
        G: Matrix (p, n), whose dtype counts.
        rows: Addresses of both groups of rows, each padded.
        left: First column.
        indices: Index in G of each of these rows.
        split: Number of rows in the first group.
        block: Result (p, p) float64; other entries stay.
    """
    start, width, one = left * G.itemsize, BLOCK * G.itemsize, G.dtype.type(1)
    sums = np.empty((_TILE, _TILE))
    for i in range(0, split, _TILE):
        for j in range(split, rows.size, _TILE):
            _square(rows, i, j, start, one, rows[j : j + _TILE] + start + width, sums)
            for k in range(_TILE):
                for h in range(_TILE):
                    block[indices[i + k], indices[j + h]] = sums[k, h]


def _products(diagonal, packed):
    """Create the intrinsic for a tile: _TILE rows with _TILE others or, on the diagonal, with one another."""
    pairs = [(k, h) for k in range(_TILE) for h in range(k if diagonal else 0, _TILE)]

    @intrinsic
    def products(typing, rows, i, j, left, kind, upcoming, sums):
        """Compute sums[k, h]: row i + k times row j + h, over BLOCK columns from byte `left` on.

        `rows` are addresses. As many bytes from the addresses `upcoming` are prefetched.
        """

        def generate(context, builder, signature, arguments):
            rows, i, j, left, _, upcoming, sums = arguments
            vectors = Vectors(context, builder, kind)
            first, second = (vectors.entries(signature.args[0], rows, index, _TILE) for index in (i, j))
            first, second = ([builder.add(row, left) for row in group] for group in (first, second))
            if packed:  # With constant distances, LLVM needs only one address for a group.
                first, second = (
                    [builder.add(group[0], constant(k * VECTOR)) for k in range(_TILE)] for group in (first, second)
                )
            next_rows = vectors.entries(signature.args[5], upcoming, constant(0), _TILE)
            totals = [dict.fromkeys(pairs), dict.fromkeys(pairs)]
            for total, pair in product(totals, pairs):
                total[pair] = cgutils.alloca_once_value(builder, vectors.zero)
            part = 64 * VECTOR if packed else 32 * VECTOR  # So many bytes of all rows stay in the first cache.
            with vectors.loop(0, BLOCK * vectors.size, part) as (start, _):
                for half, total in enumerate(totals):  # Every other vector: shorter sums are more precise.
                    with vectors.loop(half * VECTOR, part, 2 * VECTOR) as (distance, _):
                        at = builder.add(start, distance)
                        offset = builder.mul(at, constant(_TILE if packed else 1))
                        y = [vectors.load(builder.add(row, offset)) for row in second]
                        x = y if diagonal else [vectors.load(builder.add(row, offset)) for row in first]
                        for k, h in pairs:
                            s = total[k, h]
                            builder.store(vectors.multiply_add(x[k], y[h], builder.load(s)), s)
                        for row in next_rows:
                            vectors.prefetch(builder.add(row, at))
            data = context.make_array(signature.args[6])(context, builder, sums).data
            for k, h in pairs:
                s = vectors.sum(builder.fadd(builder.load(totals[0][k, h]), builder.load(totals[1][k, h])))
                wide = s if vectors.size == 8 else builder.fpext(s, ir.DoubleType())
                builder.store(wide, builder.gep(data, [constant(k * _TILE + h)]))
            return context.get_dummy_value()

        return types.void(rows, i, j, left, kind, upcoming, sums), generate

    return products


_square, _triangle = _products(diagonal=False, packed=False), _products(diagonal=True, packed=False)
_packed_square, _packed_triangle = _products(diagonal=False, packed=True), _products(diagonal=True, packed=True)


@intrinsic
def _pack(typing, rows, first, left, kind, packed):
    """Copy BLOCK columns from byte `left` on of _TILE rows to packed[first], a vector of each row in turn."""

    def generate(context, builder, signature, arguments):
        rows, first, left, _, packed = arguments
        vectors = Vectors(context, builder, kind)
        sources = [builder.add(row, left) for row in vectors.entries(signature.args[0], rows, first, _TILE)]
        targets = vectors.entries(signature.args[4], packed, first, _TILE)
        with vectors.loop(0, BLOCK * vectors.size, VECTOR) as (at, _):
            for source, target in zip(sources, targets, strict=True):
                value = vectors.load(builder.add(source, at))
                vectors.store(value, builder.add(target, builder.mul(at, constant(_TILE))))
        return context.get_dummy_value()

    return types.void(rows, first, left, kind, packed), generate
