"""Batch normalisation on the CPU: compiled loops over a matrix (N, C), pixels of all images by channels.

Sums over the N rows are float32 within groups of rows and float64 over the groups. Groups and chunks have fixed sizes,
so that a result does not depend on the number of threads.
"""

import numpy as np

from fa.kernels.cache import jit
from fa.kernels.threads import run_on_threads

_GROUP = 16  # Number of rows that are added in float32.
_CHUNK = 64 * _GROUP  # Number of rows that a thread processes at a time.


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean and the variance of each column.

    Args:
        x: Matrix (N, C), float32.

    Returns:
        Mean (C,) and variance (C,), divided by N, float64.
    """
    shift = x[0].copy()  # A shift near the mean prevents cancellation in the variance.
    sums = _sums(x, x, shift, True) / len(x)
    return shift + sums[0], np.maximum(sums[1] - sums[0] ** 2, 0)


def product_sums(x: np.ndarray, y: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Sum y and y (x - shift) over the rows.

    Args:
        x: Matrix (N, C), float32.
        y: Matrix (N, C), float32.
        shift: Vector (C,), float32.

    Returns:
        Both sums, (2, C) float64.
    """
    return _sums(x, y, shift, False)


def affine(x: np.ndarray, shift: np.ndarray, scale: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
    """Write (x - shift) scale + bias to `out`.

    Args:
        x: Matrix (N, C), float32.
        shift: Vector (C,), float32.
        scale: Vector (C,), float32.
        bias: Vector (C,), float32.
        out: Result (N, C), float32.
    """
    run_on_threads(lambda thread, threads: _affine(x, shift, scale, bias, out, thread, threads), x.size)


def affine_pair(
    y: np.ndarray,
    scale: np.ndarray,
    x: np.ndarray,
    shift: np.ndarray,
    slope: np.ndarray,
    bias: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write y scale + (x - shift) slope + bias to `out`.

    Args:
        y: Matrix (N, C), float32.
        scale: Vector (C,), float32.
        x: Matrix (N, C), float32.
        shift: Vector (C,), float32.
        slope: Vector (C,), float32.
        bias: Vector (C,), float32.
        out: Result (N, C), float32.
    """
    run_on_threads(lambda thread, threads: _affine_pair(y, scale, x, shift, slope, bias, out, thread, threads), x.size)


def _sums(x: np.ndarray, y: np.ndarray, shift: np.ndarray, square: bool) -> np.ndarray:
    """Sum, over the rows, x - shift and its square if `square`, else y and y (x - shift)."""
    parts = np.zeros((-(-len(x) // _CHUNK), 2, x.shape[1]))
    loop = _square_chunks if square else _product_chunks
    run_on_threads(lambda thread, threads: loop(x, y, shift, parts, thread, threads), x.size)
    total: np.ndarray = parts.sum(axis=0)
    return total


@jit
def _square_chunks(x, y, shift, parts, thread, threads):
    """Sum x - shift and its square over the rows of every `threads`-th chunk."""
    N, C = x.shape
    first, second = np.empty(C, np.float32), np.empty(C, np.float32)
    for chunk in range(thread, len(parts), threads):
        for start in range(chunk * _CHUNK, min(N, (chunk + 1) * _CHUNK), _GROUP):
            first[:] = 0
            second[:] = 0
            for i in range(start, min(N, start + _GROUP)):
                for c in range(C):
                    difference = x[i, c] - shift[c]
                    first[c] += difference
                    second[c] += difference * difference
            for c in range(C):
                parts[chunk, 0, c] += first[c]
                parts[chunk, 1, c] += second[c]


@jit
def _product_chunks(x, y, shift, parts, thread, threads):
    """Sum y and y (x - shift) over the rows of every `threads`-th chunk."""
    N, C = x.shape
    first, second = np.empty(C, np.float32), np.empty(C, np.float32)
    for chunk in range(thread, len(parts), threads):
        for start in range(chunk * _CHUNK, min(N, (chunk + 1) * _CHUNK), _GROUP):
            first[:] = 0
            second[:] = 0
            for i in range(start, min(N, start + _GROUP)):
                for c in range(C):
                    first[c] += y[i, c]
                    second[c] += y[i, c] * (x[i, c] - shift[c])
            for c in range(C):
                parts[chunk, 0, c] += first[c]
                parts[chunk, 1, c] += second[c]


@jit
def _affine(x, shift, scale, bias, out, thread, threads):
    """Write every `threads`-th chunk of `affine`."""
    N, C = x.shape
    for chunk in range(thread, -(-N // _CHUNK), threads):
        for i in range(chunk * _CHUNK, min(N, (chunk + 1) * _CHUNK)):
            for c in range(C):
                out[i, c] = (x[i, c] - shift[c]) * scale[c] + bias[c]


@jit
def _affine_pair(y, scale, x, shift, slope, bias, out, thread, threads):
    """Write every `threads`-th chunk of `affine_pair`."""
    N, C = x.shape
    for chunk in range(thread, -(-N // _CHUNK), threads):
        for i in range(chunk * _CHUNK, min(N, (chunk + 1) * _CHUNK)):
            for c in range(C):
                out[i, c] = y[i, c] * scale[c] + (x[i, c] - shift[c]) * slope[c] + bias[c]
