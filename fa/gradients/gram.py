"""The p x p Gram matrix, in which every rule decides, and what a right multiplication of the gradients does to it.

The inner products <g_i, g_j> are taken in one quick pass over the coordinates. What that pass cannot give, it can tell:
a row that leaves the arithmetic's range shows on the diagonal, and products whose smallest eigenvalue (on unit columns)
comes near their own error would make distances out of noise. Then, and only then, a pass in float64 follows, and, where
two gradients differ by less than float64 resolves, one over their differences.
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

QUICK_LIMIT = (
    1e-2  # smallest eigenvalue of unit columns that a float32 pass, whose error is about 1e-6, resolves to 1e-4
)
CANCELLED = 1e-10  # squared distance over squared norms below which float64 products do not resolve it
_RANGE = {torch.float32: 1e-28, torch.float64: 1e-280}  # squared norms below may have lost coordinates to underflow
_ORDINARY = (1e-120, 1e120)  # entries between these have squares, and sums of squares, within float64
_LARGEST_EXPONENT = 1000  # of two: norms below 2^-1000 count as 0
_ENTRIES = 1 << 22  # of G that may be copied at a time
_FARTHEST = 1e150  # norms above this times the usual one count as this where they are squared


@dataclass(frozen=True)
class Gram:
    """What p gradients are to one another: cosines (p, p), lengths (p,), squared distances D2 (p, p).

    The norms are scale * lengths and the squared distances scale^2 * D2, with a power of two that brings the usual
    norm near 1: so 1e-200 and 1e200 stay apart from 0 and infinity. Cosines are 0 for a gradient that is 0. D2 is kept
    beside the cosines since it cannot always be had from them: it would cancel where gradients nearly agree.
    """

    cosines: Square
    scaled_norms: PerGradient
    D2: Square
    scale: float

    @classmethod
    def from_inner_products(cls, K: Square, exponents: PerGradient | None = None) -> "Gram":
        """From inner products, of the gradients over 2^exponents_i if given."""
        powers = np.zeros(len(K)) if exponents is None else exponents
        logs = _log2(np.diag(K)) / 2 + powers
        vanished = logs < -_LARGEST_EXPONENT  # 1/||g_i|| would leave the range
        K = np.where(vanished[:, None] | vanished, 0.0, K)
        roots, exponent = np.sqrt(np.diag(K)), _usual_exponent(np.where(vanished, -np.inf, logs))
        factors = np.exp2(np.clip(powers - exponent, -_LARGEST_EXPONENT, _LARGEST_EXPONENT))
        inside = np.minimum(factors, _FARTHEST)
        return cls(_cosines(K, roots), roots * factors, _distances(K * np.outer(inside, inside)), 2.0**exponent)

    @classmethod
    def unmeasured(cls, p: int) -> "Gram":
        """For a rule that decides without looking: only the number of gradients is known."""
        unknown = np.full((p, p), np.nan)
        return cls(unknown, np.diag(unknown), unknown, 1.0)

    @property
    def p(self) -> int:
        """The number of gradients."""
        return len(self.scaled_norms)

    @property
    def norms(self) -> PerGradient:
        """||g_i||, (p,)."""
        return self.scale * self.scaled_norms

    @property
    def K(self) -> Square:
        """Inner products of the gradients over `scale`, (p, p)."""
        products: np.ndarray = self.cosines * np.outer(self.clipped_norms, self.clipped_norms)
        return products

    @property
    def clipped_norms(self) -> PerGradient:
        """The lengths, cut where their squares would leave the range, (p,)."""
        clipped: np.ndarray = np.minimum(self.scaled_norms, _FARTHEST)
        return clipped

    def divide_by_norms(self, numbers: Float64[np.ndarray, "p *k"]) -> Float64[np.ndarray, "p *k"]:
        """Coefficients on the unit gradients as those on the gradients: over ||g_i||, 0 for a gradient that is 0."""
        norms = self.norms.reshape(-1, *[1] * (numbers.ndim - 1))
        divided: np.ndarray = np.divide(numbers, norms, out=np.zeros(numbers.shape), where=norms > 0)
        return divided

    def select(self, rows: Int[np.ndarray, " q"]) -> "Gram":
        """Of the named gradients only, in that order."""
        square = np.ix_(rows, rows)
        return Gram(self.cosines[square], self.scaled_norms[rows], self.D2[square], self.scale)

    def scaled(self, factors: PerGradient) -> "Gram":
        """Of the gradients factors_i g_i.

        ||a x - b y||^2 = a b ||x - y||^2 + (a - b)(a ||x||^2 - b ||y||^2) cancels nothing for equal factors, and
        loses everything for very unequal ones: there the cosines give the distance.
        """
        norms = self.norms * factors
        scale = 2.0 ** _usual_exponent(_log2(norms))
        scaled_norms = norms / scale
        a = (factors * (self.scale / scale))[:, None]
        squares = np.square(self.clipped_norms)[:, None]
        plain = replace(self, scaled_norms=scaled_norms).K
        of_products = _distances(plain)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not taken
            first, second = a * a.T * self.D2, (a - a.T) * (a * squares - (a * squares).T)
            better = np.abs(first) + np.abs(second) < np.add.outer(np.diag(plain), np.diag(plain))
            D2 = np.where(better, np.maximum(first + second, 0.0), of_products)
        return Gram(self.cosines, scaled_norms, D2, scale)

    def averaged(self, R: Float64[np.ndarray, "p q"]) -> "Gram":
        """Of the q averages G^T R, each column of R summing to 1.

        Then -z^T D2 z / 2 is the squared distance of two, z = r_a - r_b: what they share cancels before it is rounded.
        """
        K = symmetric(R.T @ self.K @ R)
        z = R[:, :, None] - R[:, None, :]
        D2 = symmetric(-0.5 * (z * np.tensordot(self.D2, z, axes=1)).sum(axis=0))
        roots = np.sqrt(np.maximum(np.diag(K), 0.0))
        return Gram(_cosines(K, roots), roots, np.maximum(D2, 0.0), self.scale)


class IncrementalGram:
    """K of rows of G (p, n) that land one after another, three rows of it at a time: a pass over three costs what one
    over one does. After the last row at most a third of the work is left, and less the more rows there are.
    """

    def __init__(self, G: Float[Tensor, "p n"]) -> None:
        self._G = G
        self._K = np.full((len(G), len(G)), np.nan)
        self._taken: list[int] = []
        self._waiting: list[int] = []

    def add_row(self, row: int) -> None:
        """That row of G is there, and stays as it is."""
        self._waiting.append(row)
        if len(self._waiting) == 3:
            self._take()

    def matrix(self) -> Square:
        """K, to the bits of one pass over G: NaN in the rows that have not landed."""
        if self._waiting:
            self._take()
        return self._K

    def _take(self) -> None:
        rows, self._waiting = self._waiting, []
        self._taken += rows
        found = kernels.gram_rows(self._G, rows, self._taken)
        self._K[np.ix_(rows, self._taken)] = found
        self._K[np.ix_(self._taken, rows)] = found.T


def measure(G: Float[Tensor, "p n"] | ColumnBlocks, K: Square | None = None) -> tuple[Gram, Bool[np.ndarray, " p"]]:
    """The Gram matrix of the rows of G, and which of them (p,) are finite; it is NaN at those that are not.

    K has the inner products of a quick pass, where they are known already.
    """
    columns = ColumnBlocks((by_rows(G),)) if isinstance(G, Tensor) else G
    K = columns.sum_over_blocks(kernels.gram) if K is None else K.copy()
    finite = _finite_rows(columns, K)
    if not finite.any():
        return Gram.unmeasured(columns.p), finite
    rows = np.flatnonzero(finite)
    exponents = np.zeros(columns.p)
    if not _quick_pass_suffices(K[np.ix_(rows, rows)], columns.dtypes):
        if torch.float64 in columns.dtypes:
            exponents = _exponents(columns, finite)
        K = columns.sum_over_blocks(lambda part: _precise(part, exponents))
    K[~finite], K[:, ~finite] = np.nan, np.nan
    gram = Gram.from_inner_products(K, exponents)
    if _cancelled(gram.select(rows), K[np.ix_(rows, rows)]):
        divide = bool(exponents.any())
        D2 = columns.sum_over_blocks(lambda part: _exact_distances(part, gram.scale, divide))
        gram = replace(gram, D2=np.minimum(D2, _FARTHEST**2))
    return gram, finite


def measure_groups(G: Any) -> tuple[Gradients, tuple[int, ...], Gram]:
    """What solvers work with: `fa.gradients.read_groups` of G, and the Gram matrix of all rows.

    Raises ValueError as that does, and for rows with NaN or Inf.
    """
    gradients, counts = read_groups(G)
    gram, finite = measure(gradients.G)
    check_finite(finite.tolist(), counts)
    return gradients, counts, gram


def median_nonzero(norms: PerGradient) -> float:
    """The median of the norms; where that is 0, of those that are not."""
    median = float(np.median(norms))
    return median if median > 0 or not norms.any() else float(np.median(norms[norms > 0]))


def _log2(numbers: PerGradient) -> PerGradient:
    """-inf where 0."""
    logs: np.ndarray = np.log2(numbers, out=np.full(len(numbers), -np.inf), where=numbers != 0)
    return logs


def _usual_exponent(logs: PerGradient) -> float:
    """The power of two below the usual norm, of their logarithms; gradients that are 0 or not finite do not count."""
    known = logs[np.isfinite(logs)]
    return float(np.clip(np.floor(np.median(known)), -_LARGEST_EXPONENT, _LARGEST_EXPONENT)) if known.size else 0.0


def _cosines(K: Square, roots: PerGradient) -> Square:
    scale = np.divide(1.0, roots, out=np.zeros_like(roots), where=roots != 0)
    cosines: np.ndarray = K * np.outer(scale, scale)
    return cosines


def _distances(K: Square) -> Square:
    squares = np.diag(K)
    D2: np.ndarray = np.maximum(squares[:, None] + squares[None, :] - 2 * K, 0.0)
    np.fill_diagonal(D2, 0.0)
    return D2


def _finite_rows(G: ColumnBlocks, K: Square) -> Bool[np.ndarray, " p"]:
    """Only rows whose square is not finite are looked at again: they may have left float32's range, not the
    numbers'.
    """
    finite = np.isfinite(np.diag(K))
    doubtful = np.flatnonzero(~finite)
    if doubtful.size:
        bad = G.max_over_blocks(lambda part: np.array([not _is_finite(part[row]) for row in doubtful]))
        finite[doubtful] = bad == 0
    return finite


def _is_finite(row: Tensor) -> bool:
    return all(bool(torch.isfinite(piece).all()) for piece in row.split(_ENTRIES))


def _quick_pass_suffices(K: Square, dtypes: set[torch.dtype]) -> bool:
    squares = np.diag(K)
    wide = dtypes == {torch.float64}
    if not np.isfinite(K).all() or squares.min() < _RANGE[torch.float64 if wide else torch.float32]:
        return False
    if wide:
        return True
    return bool(np.linalg.eigvalsh(_cosines(K, np.sqrt(squares)))[0] > QUICK_LIMIT)


def _exponents(G: ColumnBlocks, finite: Bool[np.ndarray, " p"]) -> PerGradient:
    """By which power of two each row must be divided so that its square stays within float64: 0 if all stay so."""
    largest = np.zeros(len(finite))
    rows = np.flatnonzero(finite)
    largest[rows] = G.max_over_blocks(lambda part: np.array([_largest(part[row]) for row in rows]))
    ordinary = (largest == 0) | ((largest > _ORDINARY[0]) & (largest < _ORDINARY[1]))
    return np.zeros(len(largest)) if ordinary.all() else np.frexp(largest)[1].astype(np.float64)


def _largest(row: Tensor) -> float:
    return max((float(piece.abs().max()) for piece in row.split(_ENTRIES) if len(piece)), default=0.0)


def _precise(G: Tensor, exponents: PerGradient) -> Square:
    """The inner products in float64, of row i of G over 2^exponents_i."""
    if not exponents.any():
        return kernels.gram(G, precise=True)
    return sum((kernels.gram(_divided(part, exponents), precise=True) for part in _parts(G)), np.zeros(()))


def _parts(G: Tensor) -> Iterator[Tensor]:
    """G by parts of its columns, small enough to be copied."""
    yield from G.split(max(1, _ENTRIES // len(G)), dim=1)


def _divided(G: Tensor, exponents: PerGradient) -> Tensor:
    """Row i of G over 2^exponents_i, in two steps since one power may leave the range."""
    half = np.floor(exponents / 2)
    for part in (half, exponents - half):
        G = G * torch.from_numpy(np.exp2(-part)).to(G.device)[:, None]
    return G


def _exact_distances(G: Tensor, scale: float, divide: bool) -> Square:
    if divide:
        return sum((kernels.squared_distances(part / scale) for part in _parts(G)), np.zeros(()))
    distances: np.ndarray = kernels.squared_distances(G) * (1 / scale) ** 2
    return distances


def _cancelled(gram: Gram, K: Square) -> bool:
    """Whether two gradients that are not equal, bit for bit as far as K tells, are closer than K resolves."""
    squares = np.square(gram.clipped_norms)
    equal = (np.diag(K)[:, None] == K) & (np.diag(K)[None, :] == K)
    return bool(((gram.D2 < CANCELLED * np.add.outer(squares, squares)) & ~equal).any())
