"""Instructions on vectors, with which compiled loops use the processor's registers.

numba compiles Python by translating it to LLVM's intermediate language. `numba.extending.intrinsic` lets a function
emit that language directly. Such a function has two stages:

- At compile time, `generate` runs in Python and appends instructions through llvmlite's `builder`. A Python loop over
  rows is thereby unrolled.
- At run time, only the appended instructions run.

An intrinsic is called from compiled functions only, and numba supplies its first argument. A register holds a vector of
up to 16 float32.

`vectors`, `products`, `sorting` and `sums` use `numba.extending.intrinsic` and the low-level builder functions
`numba.core.cgutils`. Of a numba context, they use `make_array`, `get_value_type` and `get_abi_sizeof`. Tested with
numba 0.61 to 0.68 and llvmlite 0.44 to 0.50.
"""

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba.core import cgutils

FEATURES = llvmlite.binding.get_host_cpu_features()
"""Features of this processor."""

VECTOR = 64 if FEATURES.get("avx512f") else 32 if FEATURES.get("avx") else 16
"""Bytes of a register."""

INT, BYTE = ir.IntType(64), ir.IntType(8).as_pointer()
"""Types of integers and of addresses."""


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


class Vectors:
    """Builder of instructions on vectors of one type of coordinates."""

    def __init__(self, context, builder, kind, lanes=None):
        self.builder, self.context = builder, context
        self.scalar = context.get_value_type(kind)
        self.size = context.get_abi_sizeof(self.scalar)
        self.lanes = lanes or VECTOR // self.size
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
        """Load a vector.

        Args:
            address: Address of the first entry, a 64-bit integer. It need only be aligned to one entry.

        Returns:
            The vector.
        """
        return self.builder.load(self.builder.inttoptr(address, self.kind.as_pointer()), align=self.size)

    def store(self, x, address):
        """Store a vector.

        Args:
            x: The vector.
            address: Address of the first entry, a 64-bit integer. It need only be aligned to one entry.
        """
        self.builder.store(x, self.builder.inttoptr(address, self.kind.as_pointer()), align=self.size)

    def multiply_add(self, x, y, z):
        """Compute x y + z, entry by entry; LLVM may fuse both operations.

        Args:
            x: A vector.
            y: A vector.
            z: A vector.

        Returns:
            The vector of results.
        """
        return self._call("fmuladd", self.kind, [x, y, z])

    def compare_exchange(self, x, pairs):
        """Move the smaller of x[i] and x[j] to i and the larger to j, for each pair in turn.

        Args:
            x: List of vectors, which is changed. Entries must not be NaN.
            pairs: Pairs (i, j) of indices, such as a `sorting_network`.
        """
        for i, j in pairs:
            both = [x[i], x[j]]
            x[i] = self._call("minnum", self.kind, both, fastmath=("nnan", "nsz"))
            x[j] = self._call("maxnum", self.kind, both, fastmath=("nnan", "nsz"))

    def sum(self, x):
        """Sum the entries of a vector, in any order.

        Args:
            x: The vector.

        Returns:
            The sum, a scalar of the vector's type.
        """
        return self._call("vector.reduce.fadd", self.scalar, [ir.Constant(self.scalar, -0.0), x], ("reassoc",))

    def prefetch(self, address):
        """Request a cache line for a later load. An invalid address does no harm.

        Args:
            address: Address in the line, a 64-bit integer.
        """
        integer = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [BYTE, integer, integer, integer])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        read, near, data = (ir.Constant(integer, code) for code in (0, 2, 1))
        self.builder.call(function, [self.builder.inttoptr(address, BYTE), read, near, data])

    def broadcast(self, value):
        """Return a vector whose entries equal a number.

        Args:
            value: A scalar of the vector's type.

        Returns:
            The vector.
        """
        undefined, integer = ir.Constant(self.kind, ir.Undefined), ir.IntType(32)
        single = self.builder.insert_element(undefined, value, ir.Constant(integer, 0))
        return self.builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(integer, self.lanes), None))

    def entries(self, kind, array, first, count):
        """Load consecutive entries of an array.

        Args:
            kind: numba's type of the array.
            array: The array (any,), contiguous.
            first: Index of the first entry, a 64-bit integer at run time.
            count: Number of entries, at compile time.

        Returns:
            List of `count` scalars.
        """
        data = self.context.make_array(kind)(self.context, self.builder, array).data
        places = (self.builder.gep(data, [self.builder.add(first, constant(k))]) for k in range(count))
        return [self.builder.load(place) for place in places]

    def rows_of(self, kind, values, first, count, columns):
        """Compute the addresses of consecutive rows of a matrix.

        Args:
            kind: numba's type of the matrix.
            values: The matrix (any, columns), contiguous.
            first: Index of the first row, a 64-bit integer at run time.
            count: Number of rows, at compile time.
            columns: Number of columns, at compile time.

        Returns:
            List of `count` addresses, 64-bit integers.
        """
        data = self.context.make_array(kind)(self.context, self.builder, values).data
        width = columns * self.size
        start = self.builder.add(self.builder.ptrtoint(data, INT), self.builder.mul(first, constant(width)))
        return [self.builder.add(start, constant(k * width)) for k in range(count)]

    def loop(self, first, stop, step):
        """Open a loop, whose bounds are at compile time.

        Args:
            first: First value of the loop variable, in bytes.
            stop: Bound of the loop variable, which is not reached.
            step: Increment of the loop variable.

        Returns:
            A context manager; instructions of its block are the loop's. It yields the loop variable and the iteration's
            number.
        """
        return cgutils.for_range_slice(self.builder, constant(first), constant(stop), constant(step))

    def sort_and_store(self, x, network, rows, at):
        """Sort vectors entry by entry, and store them.

        Args:
            x: List of vectors, which is sorted in place. Entries must not be NaN.
            network: Pairs (i, j) of a sorting network.
            rows: Address of the row of each vector.
            at: Distance in bytes that is added to each address.
        """
        self.compare_exchange(x, network)
        for value, row in zip(x, rows, strict=True):
            self.store(value, self.builder.add(row, at))


def constant(value):
    """Create a 64-bit integer constant.

    Args:
        value: A Python integer, at compile time.

    Returns:
        The constant.
    """
    return ir.Constant(INT, value)
