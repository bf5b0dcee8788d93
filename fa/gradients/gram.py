"""The p x p Gram matrix, in which every rule decides, and its changes under a right multiplication of the gradients.

One quick pass over the coordinates computes the inner products <g_i, g_j>. It also shows where it is not precise
enough:

- A row that leaves the arithmetic's range shows on the diagonal.
- If the smallest eigenvalue of the cosines is near their error, distances would be noise.

Only then, a pass in float64 follows. If two gradients differ by less than float64 resolves, one more pass sums their
squared differences.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from fa import kernels
from fa.gradients.blocks import ColumnBlocks
from fa.gradients.inputs import Gradients, by_rows, check_finite, read_groups
from fa.kernels import symmetric

Square = Float64[np.ndarray, "p p"]
PerGradient = Float64[np.ndarray, " p"]

# Smallest eigenvalue of the cosines that a float32 pass, whose error is about 1e-6, resolves to a fraction of 1e-4.
QUICK_LIMIT = 1e-2
CANCELLED = 1e-10  # Ratio of squared distance to squared norms that float64 products do not resolve.
_RANGE = {torch.float32: 1e-28, torch.float64: 1e-280}  # Below these squared norms, coordinates may have underflowed.
_ORDINARY = (1e-120, 1e120)  # Between these, entries have squares, and sums of squares, within float64.
_LARGEST_EXPONENT = 1000  # Exponent of two: norms below 2^-1000 count as 0, and those above 2^1000 as not finite.
_ENTRIES = 1 << 22  # Number of entries of G that may be copied at a time.
_FARTHEST = 1e150  # Norms above this multiple of the usual norm are clipped to it where they are squared.


@dataclass(frozen=True)
class Gram:
    """Cosines, norms and squared distances of p gradients.

    The norms are `scale` times `scaled_norms`, and the squared distances scale^2 times D2. The power of two brings the
    usual norm near 1, so that norms such as 1e-200 and 1e200 neither underflow nor overflow. D2 is stored beside the
    cosines: computed from them, it would cancel where gradients nearly agree.

    Attributes:
        cosines: Cosines (p, p), float64; 0 for a zero gradient.
        scaled_norms: Norms over `scale`, (p,) float64.
        D2: Squared distances over scale^2, (p, p) float64.
        scale: A power of two.
    """

    cosines: Square
    scaled_norms: PerGradient
    D2: Square
    scale: float

    @classmethod
    def from_inner_products(cls, K: Square, exponents: PerGradient | None = None) -> "Gram":
        """Create a Gram matrix from inner products.

        Args:
            K: Inner products (p, p), float64.
            exponents: If K is of the gradients divided by 2^exponents_i, these exponents (p,); None for 0.

        Returns:
            The Gram matrix. Gradients with norms below 2^-1000 count as zero.
        """
        powers = np.zeros(len(K)) if exponents is None else exponents
        logs = _log2(np.diag(K)) / 2 + powers
        vanished = logs < -_LARGEST_EXPONENT  # Otherwise 1/||g_i|| would overflow.
        K = np.where(vanished[:, None] | vanished, 0.0, K)
        roots, exponent = np.sqrt(np.diag(K)), _usual_exponent(np.where(vanished, -np.inf, logs))
        factors = np.exp2(np.clip(powers - exponent, -_LARGEST_EXPONENT, _LARGEST_EXPONENT))
        inside = np.minimum(factors, _FARTHEST)
        return cls(_cosines(K, roots), roots * factors, _distances(K * np.outer(inside, inside)), 2.0**exponent)

    @classmethod
    def unmeasured(cls, p: int) -> "Gram":
        """Create a Gram matrix of NaN, for a rule that needs only the number of gradients.

        Args:
            p: Number of gradients.

        Returns:
            The Gram matrix.
        """
        unknown = np.full((p, p), np.nan)
        return cls(unknown, np.diag(unknown), unknown, 1.0)

    @property
    def p(self) -> int:
        """Return the number of gradients."""
        return len(self.scaled_norms)

    @property
    def norms(self) -> PerGradient:
        """Return the norms ||g_i|| (p,), float64."""
        return self.scale * self.scaled_norms

    @property
    def K(self) -> Square:
        """Return the inner products (p, p) over scale^2, with clipped norms, float64."""
        products: np.ndarray = self.cosines * np.outer(self.clipped_norms, self.clipped_norms)
        return products

    @property
    def clipped_norms(self) -> PerGradient:
        """Return the scaled norms (p,), clipped where their squares would overflow, float64."""
        clipped: np.ndarray = np.minimum(self.scaled_norms, _FARTHEST)
        return clipped

    def divide_by_norms(self, numbers: Float64[np.ndarray, "p *k"]) -> Float64[np.ndarray, "p *k"]:
        """Convert coefficients on the unit gradients to coefficients on the gradients.

        Args:
            numbers: Coefficients (p,) or (p, k).

        Returns:
            The coefficients over ||g_i||, of the same shape; 0 for a zero gradient.
        """
        norms = self.norms.reshape(-1, *[1] * (numbers.ndim - 1))
        divided: np.ndarray = np.divide(numbers, norms, out=np.zeros(numbers.shape), where=norms > 0)
        return divided

    def select(self, rows: Int[np.ndarray, " q"]) -> "Gram":
        """Return the Gram matrix of some of the gradients.

        Args:
            rows: Indices (q,) of the gradients, in the new order.

        Returns:
            The Gram matrix (q, q), with the same scale.
        """
        square = np.ix_(rows, rows)
        return Gram(self.cosines[square], self.scaled_norms[rows], self.D2[square], self.scale)

    def scaled(self, factors: PerGradient) -> "Gram":
        """Return the Gram matrix of the gradients factors_i g_i.

        For distances, ||a x - b y||^2 = a b ||x - y||^2 + (a - b)(a ||x||^2 - b ||y||^2). For equal factors nothing
        cancels. For very unequal factors everything does, and the cosines give the distance instead.

        Args:
            factors: Factors (p,), at least 0.

        Returns:
            The Gram matrix (p, p), with a new scale.
        """
        norms = self.norms * factors
        scale = 2.0 ** _usual_exponent(_log2(norms))
        scaled_norms = norms / scale
        a = (factors * (self.scale / scale))[:, None]
        squares = np.square(self.clipped_norms)[:, None]
        plain = replace(self, scaled_norms=scaled_norms).K
        of_products = _distances(plain)
        with np.errstate(over="ignore", invalid="ignore"):  # The comparison below rejects entries that overflow.
            first, second = a * a.T * self.D2, (a - a.T) * (a * squares - (a * squares).T)
            better = np.abs(first) + np.abs(second) < np.add.outer(np.diag(plain), np.diag(plain))
            D2 = np.where(better, np.maximum(first + second, 0.0), of_products)
        return Gram(self.cosines, scaled_norms, D2, scale)

    def averaged(self, R: Float64[np.ndarray, "p q"]) -> "Gram":
        """Return the Gram matrix of q averages of the gradients, G^T R.

        The squared distance of two averages is -z^T D2 z / 2 with z = r_a - r_b. Their common part cancels before any
        rounding.

        Args:
            R: Weights (p, q); each column sums to 1.

        Returns:
            The Gram matrix (q, q), with the same scale.
        """
        K = symmetric(R.T @ self.K @ R)
        z = R[:, :, None] - R[:, None, :]
        D2 = symmetric(-0.5 * (z * np.tensordot(self.D2, z, axes=1)).sum(axis=0))
        roots = np.sqrt(np.maximum(np.diag(K), 0.0))
        return Gram(_cosines(K, roots), roots, np.maximum(D2, 0.0), self.scale)


class IncrementalGram:
    """Inner products of rows of G (p, n) that arrive one after another.

    Three rows are multiplied at a time, since a pass over three costs as much as a pass over one. After the last row,
    at most a third of the work remains, and less for more rows.

    Args:
        G: Matrix (p, n), whose rows are filled in any order.
    """

    def __init__(self, G: Float[Tensor, "p n"]) -> None:
        self._G = G
        self._K = np.full((len(G), len(G)), np.nan)
        self._taken: list[int] = []
        self._waiting: list[int] = []

    def add_row(self, row: int) -> None:
        """Add a row that has arrived.

        Args:
            row: Index of the row in G, which does not change any more.
        """
        self._waiting.append(row)
        if len(self._waiting) == 3:
            self._take()

    def matrix(self) -> Square:
        """Return the inner products (p, p), with the bits of one pass over G; NaN in rows that have not arrived."""
        if self._waiting:
            self._take()
        return self._K

    def _take(self) -> None:
        """Multiply the waiting rows with all rows so far."""
        rows, self._waiting = self._waiting, []
        self._taken += rows
        found = kernels.gram_rows(self._G, rows, self._taken)
        self._K[np.ix_(rows, self._taken)] = found
        self._K[np.ix_(self._taken, rows)] = found.T


def measure(G: Float[Tensor, "p n"] | ColumnBlocks, K: Square | None = None) -> tuple[Gram, Bool[np.ndarray, " p"]]:
    """Compute the Gram matrix of the rows of G, in as many passes as its precision needs.

    Args:
        G: Gradients (p, n), or their blocks of columns.
        K: Inner products (p, p) from a quick pass; None to compute them.

    Returns:
        The Gram matrix, NaN at rows that are not finite, and which rows are finite, (p,) bool. A row whose norm is
        above 2^1000 counts as not finite, since sums with it would leave float64; its norm is Inf.
    """
    columns = ColumnBlocks((by_rows(G),)) if isinstance(G, Tensor) else G
    K = columns.sum_over_blocks(kernels.gram) if K is None else K.copy()
    finite = _finite_rows(columns, K)
    if not finite.any():
        return Gram.unmeasured(columns.p), finite
    rows = np.flatnonzero(finite)
    exponents = np.zeros(columns.p)
    # On a GPU the first pass is in float64, whose range holds every product of narrower types.
    final = not columns.on_cpu and torch.float64 not in columns.dtypes
    if not final and not _quick_pass_suffices(K[np.ix_(rows, rows)], columns.dtypes):
        if torch.float64 in columns.dtypes:
            exponents = _exponents(columns, finite)
        K = columns.sum_over_blocks(lambda part: _precise(part, exponents))
    far = finite & (_log2(np.diag(K)) / 2 + exponents > _LARGEST_EXPONENT)
    finite &= ~far
    rows = np.flatnonzero(finite)
    K[~finite], K[:, ~finite] = np.nan, np.nan
    gram = Gram.from_inner_products(K, exponents)
    if _cancelled(gram.select(rows), K[np.ix_(rows, rows)]):
        divide = bool(exponents.any())
        D2 = columns.sum_over_blocks(lambda part: _exact_distances(part, gram.scale, divide))
        gram = replace(gram, D2=np.minimum(D2, _FARTHEST**2))
    return replace(gram, scaled_norms=np.where(far, np.inf, gram.scaled_norms)), finite


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


def median_nonzero(norms: PerGradient) -> float:
    """Return the median of the norms or, if it is 0, the median of the nonzero ones.

    Args:
        norms: Norms (p,), at least 0.

    Returns:
        The median; 0 only if all norms are 0.
    """
    median = float(np.median(norms))
    return median if median > 0 or not norms.any() else float(np.median(norms[norms > 0]))


def _log2(numbers: PerGradient) -> PerGradient:
    """Compute the logarithm to base 2, -inf for 0."""
    logs: np.ndarray = np.log2(numbers, out=np.full(len(numbers), -np.inf), where=numbers != 0)
    return logs


def _usual_exponent(logs: PerGradient) -> float:
    """Return the exponent of two below the median norm; gradients that are 0 or not finite do not count."""
    known = logs[np.isfinite(logs)]
    return float(np.clip(np.floor(np.median(known)), -_LARGEST_EXPONENT, _LARGEST_EXPONENT)) if known.size else 0.0


def _cosines(K: Square, roots: PerGradient) -> Square:
    """Divide inner products by the norms, with 0 for a zero norm."""
    scale = np.divide(1.0, roots, out=np.zeros_like(roots), where=roots != 0)
    cosines: np.ndarray = K * np.outer(scale, scale)
    return cosines


def _distances(K: Square) -> Square:
    """Compute squared distances from inner products."""
    squares = np.diag(K)
    D2: np.ndarray = np.maximum(squares[:, None] + squares[None, :] - 2 * K, 0.0)
    np.fill_diagonal(D2, 0.0)
    return D2


def _finite_rows(G: ColumnBlocks, K: Square) -> Bool[np.ndarray, " p"]:
    """Return which rows are finite; only rows with a non-finite square, which may be an overflow, are read again."""
    finite = np.isfinite(np.diag(K))
    doubtful = np.flatnonzero(~finite)
    if doubtful.size:
        bad = G.max_over_blocks(lambda part: np.array([not _is_finite(part[row]) for row in doubtful]))
        finite[doubtful] = bad == 0
    return finite


def _is_finite(row: Tensor) -> bool:
    """Return True if all entries are finite."""
    return all(bool(torch.isfinite(piece).all()) for piece in row.split(_ENTRIES))


def _quick_pass_suffices(K: Square, dtypes: set[torch.dtype]) -> bool:
    """Return True if the quick pass has neither left its range nor lost small eigenvalues."""
    squares = np.diag(K)
    wide = dtypes == {torch.float64}
    if not np.isfinite(K).all() or squares.min() < _RANGE[torch.float64 if wide else torch.float32]:
        return False
    if wide:
        return True
    return bool(np.linalg.eigvalsh(_cosines(K, np.sqrt(squares)))[0] > QUICK_LIMIT)


def _exponents(G: ColumnBlocks, finite: Bool[np.ndarray, " p"]) -> PerGradient:
    """Return the exponents of two by which rows must be divided, so that squares stay within float64; 0 if all do."""
    largest = np.zeros(len(finite))
    rows = np.flatnonzero(finite)
    largest[rows] = G.max_over_blocks(lambda part: np.array([_largest(part[row]) for row in rows]))
    ordinary = (largest == 0) | ((largest > _ORDINARY[0]) & (largest < _ORDINARY[1]))
    return np.zeros(len(largest)) if ordinary.all() else np.frexp(largest)[1].astype(np.float64)


def _largest(row: Tensor) -> float:
    """Return the largest absolute value of a row."""
    return max((float(piece.abs().max()) for piece in row.split(_ENTRIES) if len(piece)), default=0.0)


def _precise(G: Tensor, exponents: PerGradient) -> Square:
    """Compute the inner products in float64, of row i of G over 2^exponents_i."""
    if not exponents.any():
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
    equal = (np.diag(K)[:, None] == K) & (np.diag(K)[None, :] == K)
    return bool(((gram.D2 < CANCELLED * np.add.outer(squares, squares)) & ~equal).any())
