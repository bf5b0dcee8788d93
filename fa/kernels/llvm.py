"""Two inner loops in the processor's vector registers: products of rows, and sorting of columns.

numba compiles Python by translating it to LLVM's intermediate language. `numba.extending.intrinsic` lets a function
emit that language directly. Such a function has two stages:

- At compile time, `generate` runs in Python and appends instructions through llvmlite's `builder`. A Python loop over
  rows is thereby unrolled.
- At run time, only the appended instructions run.

An intrinsic is called from compiled functions only, and numba supplies its first argument.

A register holds a vector of up to 16 float32. numba also vectorizes a plain loop over one row. Such a loop stores its
values to memory after each comparison or product.

The times without this module, relative to the times with it, are from one core (AVX-512, float32) with plain numba
loops:

- product of 15 to 60 rows: 1.2 to 1.3;
- median of 15 or 60 rows: 2 to 3;
- of these, prefetching accounts for 1.05 to 1.2, and packing unaligned rows for 1.1 to 1.4 at 60 rows.

The interface of compiled loops is `block_products`, `block_products_of_rows` and `sort_rows`. They use addresses of
rows with contiguous entries. The constants and `padded_rows`, `packing_addresses` and `sort_plan` prepare their
arguments. Everything else is private.

The module uses `numba.extending.intrinsic` and the low-level builder functions `numba.core.cgutils`. Of a numba
context, it uses `make_array`, `get_value_type` and `get_abi_sizeof`. Tested with numba 0.61 to 0.68 and llvmlite 0.44
to 0.50.
"""

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fa.kernels.cache import jit
from fa.kernels.sorting_network import sorting_network

BLOCK = 2048
"""Number of columns that stay in the cache while all pairs of rows are multiplied."""

LANES = 256
"""Number of columns that are sorted together."""

_FEATURES = llvmlite.binding.get_host_cpu_features()
_VECTOR = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16  # Bytes of a register.
_TILE = 3 if _FEATURES.get("sse2") and not _FEATURES.get("avx512f") else 5  # The _TILE^2 sums must fit the registers.
_MIN_PACKED = 24  # From this number of rows on, copying a block of unaligned rows pays.
_FEW, _MANY = 8, 16  # Numbers of rows that are sorted within the registers.
_AHEAD = 1024  # Distance of prefetching in bytes; hardware prefetching ends at each page.

_INT, _BYTE = ir.IntType(64), ir.IntType(8).as_pointer()


# Functions with which callers prepare arguments.


def row_addresses(G: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the addresses of the first entries of some rows.

    Args:
        G: Matrix (p, n).
        rows: Indices of the rows, int64.

    Returns:
        The addresses, int64, of the shape of `rows`.
    """
    first, _ = G.__array_interface__["data"]
    starts: np.ndarray = first + rows * G.strides[0]
    return starts


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
    pays = rows.size >= _MIN_PACKED and bool((rows % _VECTOR).any())
    if not pays:
        return np.empty(0, np.uint8), np.empty(0, np.int64)
    memory = np.empty(rows.size * BLOCK * itemsize + _VECTOR, np.uint8)
    start = -(-memory.ctypes.data // _VECTOR) * _VECTOR
    group, k = np.divmod(np.arange(rows.size), _TILE)
    return memory, start + group * _TILE * BLOCK * itemsize + k * _VECTOR


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


# Functions that compiled loops call.


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


# Instructions on vectors.


class _Vectors:
    """Builder of instructions on vectors of one type of coordinates."""

    def __init__(self, context, builder, kind):
        self.builder, self.context = builder, context
        self.scalar = context.get_value_type(kind)
        self.size = context.get_abi_sizeof(self.scalar)
        self.lanes = _VECTOR // self.size
        self.kind = ir.VectorType(self.scalar, self.lanes)
        self.zero = ir.Constant(self.kind, [0.0] * self.lanes)

    def _call(self, name, result, arguments, fastmath=()):
        """Call an LLVM intrinsic on vectors."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(
            self.builder.module, kind, f"llvm.{name}.v{self.lanes}{self.scalar.intrinsic_name}"
        )
        return self.builder.call(function, arguments, fastmath=fastmath)

    def load(self, address):
        """Load a vector."""
        return self.builder.load(self.builder.inttoptr(address, self.kind.as_pointer()), align=self.size)

    def store(self, x, address):
        """Store a vector."""
        self.builder.store(x, self.builder.inttoptr(address, self.kind.as_pointer()), align=self.size)

    def multiply_add(self, x, y, z):
        """Compute x y + z."""
        return self._call("fmuladd", self.kind, [x, y, z])

    def compare_exchange(self, x, pairs):
        """Move the smaller of x[i] and x[j] to i and the larger to j, for each pair in turn."""
        for i, j in pairs:
            both = [x[i], x[j]]
            x[i] = self._call("minnum", self.kind, both, fastmath=("nnan", "nsz"))
            x[j] = self._call("maxnum", self.kind, both, fastmath=("nnan", "nsz"))

    def sum(self, x):
        """Sum the entries of a vector."""
        return self._call("vector.reduce.fadd", self.scalar, [ir.Constant(self.scalar, -0.0), x], ("reassoc",))

    def prefetch(self, address):
        """Request a cache line for a later load."""
        integer = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [_BYTE, integer, integer, integer])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        read, near, data = (ir.Constant(integer, code) for code in (0, 2, 1))
        self.builder.call(function, [self.builder.inttoptr(address, _BYTE), read, near, data])

    def integers(self, kind, array, first, count):
        """Load `count` entries of an array of integers, from `first` on."""
        data = self.context.make_array(kind)(self.context, self.builder, array).data
        places = (self.builder.gep(data, [self.builder.add(first, _constant(k))]) for k in range(count))
        return [self.builder.load(place) for place in places]

    def rows_of(self, kind, values, first, count):
        """Compute the addresses of `count` rows of `values` (any, LANES), from `first` on."""
        data = self.context.make_array(kind)(self.context, self.builder, values).data
        width = LANES * self.size
        start = self.builder.add(self.builder.ptrtoint(data, _INT), self.builder.mul(first, _constant(width)))
        return [self.builder.add(start, _constant(k * width)) for k in range(count)]

    def loop(self, first, stop, step):
        """Open a loop; the first item of the pair that it yields is the loop variable, in bytes."""
        return cgutils.for_range_slice(self.builder, _constant(first), _constant(stop), _constant(step))

    def sort_and_store(self, x, network, rows, at):
        """Sort the vectors x, and store them to the rows at byte `at`."""
        self.compare_exchange(x, network)
        for value, row in zip(x, rows, strict=True):
            self.store(value, self.builder.add(row, at))


def _constant(value):
    """Create a 64-bit integer constant."""
    return ir.Constant(_INT, value)


# Intrinsics.


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
            vectors = _Vectors(context, builder, kind)
            first, second = (vectors.integers(signature.args[0], rows, index, _TILE) for index in (i, j))
            first, second = ([builder.add(row, left) for row in group] for group in (first, second))
            if packed:  # With constant distances, LLVM needs only one address for a group.
                first, second = (
                    [builder.add(group[0], _constant(k * _VECTOR)) for k in range(_TILE)] for group in (first, second)
                )
            next_rows = vectors.integers(signature.args[5], upcoming, _constant(0), _TILE)
            totals = [dict.fromkeys(pairs), dict.fromkeys(pairs)]
            for half, total in enumerate(totals):  # Every other vector: shorter sums are more precise.
                for pair in pairs:
                    total[pair] = cgutils.alloca_once_value(builder, vectors.zero)
                with vectors.loop(half * _VECTOR, BLOCK * vectors.size, 2 * _VECTOR) as (at, _):
                    offset = builder.mul(at, _constant(_TILE if packed else 1))
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
                builder.store(wide, builder.gep(data, [_constant(k * _TILE + h)]))
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
        vectors = _Vectors(context, builder, kind)
        sources = [builder.add(row, left) for row in vectors.integers(signature.args[0], rows, first, _TILE)]
        targets = vectors.integers(signature.args[4], packed, first, _TILE)
        with vectors.loop(0, BLOCK * vectors.size, _VECTOR) as (at, _):
            for source, target in zip(sources, targets, strict=True):
                value = vectors.load(builder.add(source, at))
                vectors.store(value, builder.add(target, builder.mul(at, _constant(_TILE))))
        return context.get_dummy_value()

    return types.void(rows, first, left, kind, packed), generate


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
            vectors = _Vectors(context, builder, kind)
            sources = vectors.integers(signature.args[0], rows, first, count)
            targets = vectors.rows_of(signature.args[2], values, first, count)
            probe = cgutils.alloca_once_value(builder, vectors.zero)
            with vectors.loop(0, LANES * vectors.size, _VECTOR) as (at, _):
                x = [vectors.load(builder.add(source, at)) for source in sources]
                for source in sources:
                    vectors.prefetch(builder.add(builder.add(source, at), _constant(_AHEAD)))
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
        vectors = _Vectors(context, builder, signature.args[0].dtype)
        lower = vectors.rows_of(signature.args[0], values, low, _MANY)
        upper = vectors.rows_of(signature.args[0], values, high, _MANY)
        with vectors.loop(0, LANES * vectors.size, _VECTOR) as (at, _):
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
