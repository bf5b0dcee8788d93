"""What the compiled loops do in the processor's vector registers, written in LLVM's terms: products of tiles of rows,
and sorting networks. A loop of numba's would go through memory after every comparison.

They take addresses, of rows whose entries are neighbours, and ask for what comes next in advance: a processor's own
guesses end at each page of memory. (numba's cache knows the file of a loop, not those of what it calls: touch
fa/kernels/cpu.py and order_statistics.py after a change here.)
"""

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fa.kernels.sorting_network import sorting_network

_FEATURES = llvmlite.binding.get_host_cpu_features()
VECTOR = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16  # of a vector register
TILE = 3 if _FEATURES.get("sse2") and not _FEATURES.get("avx512f") else 5  # its square of sums must fit the registers
BLOCK = 2048  # columns that stay in the cache while all pairs of rows are multiplied
LANES = 256  # columns that are sorted together
FEW, MANY = 8, 16  # rows that are sorted within the registers

_AHEAD = 1024  # bytes of a row between what is sorted and what is asked for

_INT, _BYTE = ir.IntType(64), ir.IntType(8).as_pointer()


class _Vectors:
    """Vectors of one type in a function that LLVM builds, and what is done to them."""

    def __init__(self, context, builder, kind):
        self.builder, self.context = builder, context
        self.scalar = context.get_value_type(kind)
        self.size = context.get_abi_sizeof(self.scalar)
        self.lanes = VECTOR // self.size
        self.kind = ir.VectorType(self.scalar, self.lanes)
        self.zero = ir.Constant(self.kind, [0.0] * self.lanes)

    def _call(self, name, result, arguments, fastmath=()):
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(
            self.builder.module, kind, f"llvm.{name}.v{self.lanes}{self.scalar.intrinsic_name}"
        )
        return self.builder.call(function, arguments, fastmath=fastmath)

    def load(self, address):
        return self.builder.load(self.builder.inttoptr(address, self.kind.as_pointer()), align=self.size)

    def store(self, x, address):
        self.builder.store(x, self.builder.inttoptr(address, self.kind.as_pointer()), align=self.size)

    def multiply_add(self, x, y, z):
        return self._call("fmuladd", self.kind, [x, y, z])

    def exchange(self, x, pairs):
        """For each pair in turn, the smaller of x[i] and x[j] to i and the larger to j."""
        for i, j in pairs:
            both = [x[i], x[j]]
            x[i] = self._call("minnum", self.kind, both, fastmath=("nnan", "nsz"))
            x[j] = self._call("maxnum", self.kind, both, fastmath=("nnan", "nsz"))

    def total(self, x):
        return self._call("vector.reduce.fadd", self.scalar, [ir.Constant(self.scalar, -0.0), x], ("reassoc",))

    def prefetch(self, address):
        integer = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [_BYTE, integer, integer, integer])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        read, near, data = (ir.Constant(integer, number) for number in (0, 2, 1))
        self.builder.call(function, [self.builder.inttoptr(address, _BYTE), read, near, data])

    def items(self, kind, array, first, count):
        """`count` items of an array of integers, from the first on."""
        data = self.context.make_array(kind)(self.context, self.builder, array).data
        return [self.builder.load(self.builder.gep(data, [self.builder.add(first, _number(k))])) for k in range(count)]

    def steps(self, first, stop, step):
        """A loop; its variable, in bytes, comes first of the pair that is bound."""
        return cgutils.for_range_slice(self.builder, _number(first), _number(stop), _number(step))


def _number(value):
    return ir.Constant(_INT, value)


def _products(diagonal, packed):
    """The products of TILE rows with TILE others or, on the diagonal, with one another (the upper triangle)."""
    pairs = [(k, h) for k in range(TILE) for h in range(k if diagonal else 0, TILE)]

    @intrinsic
    def products(typing, rows, i, j, left, kind, soon, sums):
        """sums[k, h] = row i + k times row j + h over BLOCK columns from byte `left` on, of the rows at these
        addresses; as much is asked for of the addresses `soon`.
        """

        def generate(context, builder, signature, arguments):
            rows, i, j, left, _, soon, sums = arguments
            vectors = _Vectors(context, builder, kind)
            first, second = (vectors.items(signature.args[0], rows, number, TILE) for number in (i, j))
            first, second = ([builder.add(row, left) for row in group] for group in (first, second))
            if packed:  # told so, LLVM needs one address for all of a group
                first, second = (
                    [builder.add(group[0], _number(k * VECTOR)) for k in range(TILE)] for group in (first, second)
                )
            next_rows = vectors.items(signature.args[5], soon, _number(0), TILE)
            totals = [dict.fromkeys(pairs), dict.fromkeys(pairs)]
            for half, total in enumerate(totals):  # every other vector: sums of half as many are the more precise
                for pair in pairs:
                    total[pair] = cgutils.alloca_once_value(builder, vectors.zero)
                with vectors.steps(half * VECTOR, BLOCK * vectors.size, 2 * VECTOR) as (at, _):
                    here = builder.mul(at, _number(TILE if packed else 1))
                    y = [vectors.load(builder.add(row, here)) for row in second]
                    x = y if diagonal else [vectors.load(builder.add(row, here)) for row in first]
                    for k, h in pairs:
                        s = total[k, h]
                        builder.store(vectors.multiply_add(x[k], y[h], builder.load(s)), s)
                    for row in next_rows:
                        vectors.prefetch(builder.add(row, at))
            data = context.make_array(signature.args[6])(context, builder, sums).data
            for k, h in pairs:
                s = vectors.total(builder.fadd(builder.load(totals[0][k, h]), builder.load(totals[1][k, h])))
                wide = s if vectors.size == 8 else builder.fpext(s, ir.DoubleType())
                builder.store(wide, builder.gep(data, [_number(k * TILE + h)]))
            return context.get_dummy_value()

        return types.void(rows, i, j, left, kind, soon, sums), generate

    return products


@intrinsic
def pack(typing, rows, first, left, kind, packed):
    """Copy BLOCK columns from byte `left` on of TILE rows, from `first` on, to where packed[first] is: a vector of each
    in turn.
    """

    def generate(context, builder, signature, arguments):
        rows, first, left, _, packed = arguments
        vectors = _Vectors(context, builder, kind)
        sources = [builder.add(row, left) for row in vectors.items(signature.args[0], rows, first, TILE)]
        targets = vectors.items(signature.args[4], packed, first, TILE)
        with vectors.steps(0, BLOCK * vectors.size, VECTOR) as (at, _):
            for source, target in zip(sources, targets, strict=True):
                value = vectors.load(builder.add(source, at))
                vectors.store(value, builder.add(target, builder.mul(at, _number(TILE))))
        return context.get_dummy_value()

    return types.void(rows, first, left, kind, packed), generate


square, triangle = _products(diagonal=False, packed=False), _products(diagonal=True, packed=False)
packed_square, packed_triangle = _products(diagonal=False, packed=True), _products(diagonal=True, packed=True)


def _sort(count):
    """Sorting `count` rows."""
    network = sorting_network(count).tolist()

    @intrinsic
    def sort(typing, rows, first, values):
        """values[first : first + count] = LANES columns of the rows at these addresses, sorted; what is returned is 0
        if all is finite, and NaN if not.
        """
        kind = values.dtype

        def generate(context, builder, signature, arguments):
            rows, first, values = arguments
            vectors = _Vectors(context, builder, kind)
            sources = vectors.items(signature.args[0], rows, first, count)
            targets = _rows_of(vectors, signature.args[2], values, first, count)
            nought = cgutils.alloca_once_value(builder, vectors.zero)
            with vectors.steps(0, LANES * vectors.size, VECTOR) as (at, _):
                x = [vectors.load(builder.add(source, at)) for source in sources]
                for source in sources:
                    vectors.prefetch(builder.add(builder.add(source, at), _number(_AHEAD)))
                for value in x:
                    builder.store(vectors.multiply_add(value, vectors.zero, builder.load(nought)), nought)
                _sort_and_store(vectors, x, network, targets, at)
            return vectors.total(builder.load(nought))

        return kind(rows, first, values), generate

    return sort


sort_few, sort_many = _sort(FEW), _sort(MANY)


@intrinsic
def merge(typing, values, low, high):
    """Of two groups of MANY sorted rows of `values`, at low and at high, the first becomes the lower half and the other
    the upper, sorted again.

    One upwards and the other downwards, the rows first compared are the lower half and the upper, each rising and then
    falling (or the reverse): four rounds sort such a sequence. Source: K. E. Batcher (1968), bitonic sorters.
    """
    rounds = [(i, i + distance) for distance in (8, 4, 2, 1) for i in range(MANY) if not i & distance]

    def generate(context, builder, signature, arguments):
        values, low, high = arguments
        vectors = _Vectors(context, builder, signature.args[0].dtype)
        lower = _rows_of(vectors, signature.args[0], values, low, MANY)
        upper = _rows_of(vectors, signature.args[0], values, high, MANY)
        with vectors.steps(0, LANES * vectors.size, VECTOR) as (at, _):
            x = []
            for row, other in zip(lower, reversed(upper), strict=True):
                pair = [vectors.load(builder.add(row, at)), vectors.load(builder.add(other, at))]
                vectors.exchange(pair, [(0, 1)])
                x.append(pair[0])
                vectors.store(pair[1], builder.add(other, at))
            _sort_and_store(vectors, x, rounds, lower, at)
            x = [vectors.load(builder.add(row, at)) for row in upper]
            _sort_and_store(vectors, x, rounds, upper, at)
        return context.get_dummy_value()

    return types.void(values, low, high), generate


def _sort_and_store(vectors, x, network, rows, at):
    vectors.exchange(x, network)
    for value, row in zip(x, rows, strict=True):
        vectors.store(value, vectors.builder.add(row, at))


def _rows_of(vectors, kind, values, first, count):
    """The addresses of `count` rows of `values`, (any, LANES), from the first on."""
    builder = vectors.builder
    data = vectors.context.make_array(kind)(vectors.context, builder, values).data
    start = builder.add(builder.ptrtoint(data, _INT), builder.mul(first, _number(LANES * vectors.size)))
    return [builder.add(start, _number(k * LANES * vectors.size)) for k in range(count)]
