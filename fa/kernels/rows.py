"""Rows of a gradient matrix in compiled loops: their memory, their factors, and their values that are not finite."""

from typing import Any

import numpy as np

from fa.kernels.cache import jit


def whole_rows(G: np.ndarray) -> np.ndarray:
    """View a matrix as the C-contiguous array that contains it.

    The compiled loops then use the fact that the entries of a row are contiguous. Columns past n may lie outside the
    allocated memory, so the loops do not read them.

    Args:
        G: Matrix (p, n) with contiguous rows.

    Returns:
        A view (p, stride).
    """
    if G.flags.c_contiguous:
        return G
    p, n = G.shape
    stride = G.strides[0] // G.itemsize if p > 1 else n
    return np.lib.stride_tricks.as_strided(G, (p, stride), (stride * G.itemsize, G.itemsize))


def row_factors(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Return factors of rows in the rows' precision, or in float64 where float32 would underflow or overflow.

    Args:
        values: Factors, float64, of any shape.
        dtype: Data type of the rows.

    Returns:
        The factors, of the same shape.
    """
    if dtype == np.float64:
        return values
    sizes = np.abs(values[values != 0])
    narrow = sizes.size == 0 or (sizes.min() > 1e-30 and sizes.max() < 1e30)
    return values.astype(dtype) if narrow else values


@jit
def mark_non_finite(G, rows, lo, hi, not_finite):
    """Set not_finite[i] for each of the rows that holds NaN or Inf in columns lo .. hi - 1.

    Args:
        G: Matrix (p, n).
        rows: Indices of the rows to read.
        lo: First column.
        hi: Index after the last column.
        not_finite: Result (p,) bool; other entries stay.
    """
    for i in rows:
        for c in range(lo, hi):
            if not np.isfinite(G[i, c]):
                not_finite[i] = True
