"""Measure the Gram matrix of gradients, in as many passes over the coordinates as its precision needs.

One quick pass computes the inner products <g_i, g_j>. It also shows where it is not precise enough:

- A row that leaves the arithmetic's range shows on the diagonal.
- If the smallest eigenvalue of the cosines is near their error, distances would be noise.

Only then, a pass in float64 follows. If two gradients differ by less than float64 resolves, one more pass sums their
squared differences.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from fa import kernels
from fa.gradients.blocks import ColumnBlocks
from fa.gradients.gram import LARGEST_EXPONENT, LARGEST_NORM, Gram, PerGradient, Square, cosines, log2, usual_exponent
from fa.gradients.inputs import Gradients, check_finite, read_groups
from fa.utils.validation import check

# Smallest eigenvalue of the cosines that a float32 pass, whose error is about 1e-6, resolves to a fraction of 1e-4.
QUICK_LIMIT = 1e-2
CANCELLED = 1e-10  # Ratio of squared distance to squared norms that float64 products do not resolve.
_RANGE = {torch.float32: 1e-28, torch.float64: 1e-280}  # Below these squared norms, coordinates may have underflowed.
_ORDINARY = (1e-120, 1e120)  # Between these, entries have squares, and sums of squares, within float64.
_OUT_OF_RANGE = 1004  # Exponent of two: sums with rows of larger norms would leave float64.
_ENTRIES = 1 << 22  # Number of entries of G that may be copied at a time.


def measure(G: Float[Tensor, "p n"] | ColumnBlocks, K: Square | None = None) -> tuple[Gram, Bool[np.ndarray, " p"]]:
    """Compute the Gram matrix of the rows of G, in as many passes as its precision needs.

    Args:
        G: Gradients (p, n), or their blocks of columns.
        K: Inner products (p, p) from a quick pass; None to compute them.

    Returns:
        The Gram matrix, NaN at rows that are not finite, and which rows are finite, (p,) bool. A row whose norm is
        above 2^1004, or above 2^1000 times the median norm, counts as not finite, since sums with it would leave
        float64; its norm is Inf.

    Raises:
        ValueError: K is not a float64 array (p, p).
    """
    columns = ColumnBlocks((G,)) if isinstance(G, Tensor) else G
    if K is not None:
        fits = isinstance(K, np.ndarray) and K.dtype == np.float64 and K.shape == (columns.p, columns.p)
        found = f"{K.dtype} {K.shape}" if isinstance(K, np.ndarray) else type(K).__name__
        check("inner_products", found, fits, f"a float64 array ({columns.p}, {columns.p})")
    K = columns.sum_over_blocks(kernels.gram) if K is None else K.copy()
    finite = _finite_rows(columns, K)
    if not finite.any():
        return Gram.unmeasured(columns.p), finite
    exponents: PerGradient | None = None
    # On a GPU the first pass is in float64, whose range holds every product of narrower types.
    final = not columns.on_cpu and torch.float64 not in columns.dtypes
    if not final and not _quick_pass_suffices(_among(K, finite), columns.dtypes):
        if torch.float64 in columns.dtypes:
            exponents = _exponents(columns, finite)
        K = columns.sum_over_blocks(lambda part: _precise(part, exponents))
    # Without exponents, a row so long has an infinite square, and counts as not finite already.
    far = np.zeros_like(finite) if exponents is None else _out_of_range(K, exponents, finite)
    finite &= ~far
    if not finite.all():
        K[~finite], K[:, ~finite] = np.nan, np.nan
    gram = Gram.from_inner_products(K, exponents)
    if _cancelled(gram.without(~finite), _among(K, finite)):
        D2 = columns.sum_over_blocks(lambda part: _exact_distances(part, gram.scale, exponents is not None))
        gram = replace(gram, D2=np.minimum(D2, LARGEST_NORM**2))
    return replace(gram, scaled_norms=np.where(far, np.inf, gram.scaled_norms)) if far.any() else gram, finite


def _among(K: Square, rows: Bool[np.ndarray, " p"]) -> Float64[np.ndarray, "q q"]:
    """Return the inner products of some rows with each other."""
    products: np.ndarray = K if rows.all() else K[np.ix_(rows, rows)]
    return products


def measure_groups(G: Any) -> tuple[Gradients, tuple[int, ...], Gram]:
    """Read gradients and compute the Gram matrix of all rows, for a solver.

    Args:
        G: Gradients, as for `fa.gradients.read_groups`.

    Returns:
        The gradients, the number of gradients of each worker, and the Gram matrix.

    Raises:
        ValueError: G is invalid, as for `fa.gradients.read_groups`, or a row has NaN or Inf.
    """
    gradients, counts = read_groups(G)
    gram, finite = measure(gradients.G)
    check_finite(finite.tolist(), counts)
    return gradients, counts, gram


def _finite_rows(G: ColumnBlocks, K: Square) -> Bool[np.ndarray, " p"]:
    """Return which rows are finite; only rows with a non-finite square, which may be an overflow, are read again."""
    finite: np.ndarray = np.isfinite(K.diagonal())
    if not finite.all():
        doubtful = np.flatnonzero(~finite)
        bad = G.max_over_blocks(lambda part: np.array([not _is_finite(part[row]) for row in doubtful]))
        finite[doubtful] = bad == 0
    return finite


def _is_finite(row: Tensor) -> bool:
    """Return True if all entries are finite."""
    return all(bool(torch.isfinite(piece).all()) for piece in row.split(_ENTRIES))


def _quick_pass_suffices(K: Square, dtypes: set[torch.dtype]) -> bool:
    """Return True if the quick pass has neither left its range nor lost small eigenvalues."""
    squares = K.diagonal()
    wide = dtypes == {torch.float64}
    if not np.isfinite(K).all() or squares.min() < _RANGE[torch.float64 if wide else torch.float32]:
        return False
    if wide:
        return True
    return bool(np.linalg.eigvalsh(cosines(K, np.sqrt(squares)))[0] > QUICK_LIMIT)


def _out_of_range(K: Square, exponents: PerGradient, finite: Bool[np.ndarray, " p"]) -> Bool[np.ndarray, " p"]:
    """Return which finite rows have norms with which sums, or ratios to the usual norm, would leave float64."""
    logs = np.where(finite, log2(K.diagonal()) / 2 + exponents, np.nan)
    logs[logs < -LARGEST_EXPONENT] = -np.inf  # They count as 0.
    far: np.ndarray = logs > min(_OUT_OF_RANGE, usual_exponent(logs) + LARGEST_EXPONENT)
    return far


def _exponents(G: ColumnBlocks, finite: Bool[np.ndarray, " p"]) -> PerGradient | None:
    """Return the exponents of two by which rows must be divided, so that squares stay in float64; None if they do."""
    largest = np.zeros(len(finite))
    rows = np.flatnonzero(finite)
    largest[rows] = G.max_over_blocks(lambda part: np.array([_largest(part[row]) for row in rows]))
    ordinary = (largest == 0) | ((largest > _ORDINARY[0]) & (largest < _ORDINARY[1]))
    return None if ordinary.all() else np.frexp(largest)[1].astype(np.float64)


def _largest(row: Tensor) -> float:
    """Return the largest absolute value of a row."""
    return max((float(piece.abs().max()) for piece in row.split(_ENTRIES) if len(piece)), default=0.0)


def _precise(G: Tensor, exponents: PerGradient | None) -> Square:
    """Compute the inner products in float64, of row i of G over 2^exponents_i."""
    if exponents is None:
        return kernels.gram(G, precise=True)
    return sum((kernels.gram(_divided(part, exponents), precise=True) for part in _parts(G)), np.zeros(()))


def _parts(G: Tensor) -> Iterator[Tensor]:
    """Yield parts of the columns of G that are small enough to copy."""
    yield from G.split(max(1, _ENTRIES // len(G)), dim=1)


def _divided(G: Tensor, exponents: PerGradient) -> Tensor:
    """Divide row i of G by 2^exponents_i, in two steps since one power may overflow."""
    half = np.floor(exponents / 2)
    for part in (half, exponents - half):
        G = G * torch.from_numpy(np.exp2(-part)).to(G.device)[:, None]
    return G


def _exact_distances(G: Tensor, scale: float, divide: bool) -> Square:
    """Compute squared distances over scale^2 from differences in float64."""
    if divide:
        return sum((kernels.squared_distances(part / scale) for part in _parts(G)), np.zeros(()))
    distances: np.ndarray = kernels.squared_distances(G) * (1 / scale) ** 2
    return distances


def _cancelled(gram: Gram, K: Square) -> bool:
    """Return True if two gradients are closer than K resolves; pairs that K shows as equal do not count."""
    squares = np.square(gram.clipped_norms)
    near = gram.D2 < CANCELLED * (squares[:, None] + squares)
    if near.sum() == near.diagonal().sum():  # Each is near itself alone.
        return False
    equal = (K.diagonal()[:, None] == K) & (K.diagonal() == K)
    return bool((near & ~equal).any())
