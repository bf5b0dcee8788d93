"""The p x p Gram matrix, in which every rule decides, and its changes under a right multiplication of the gradients."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64, Int

from fa.kernels import symmetric

Square = Float64[np.ndarray, "p p"]
PerGradient = Float64[np.ndarray, " p"]

LARGEST_NORM = 1e150
"""Multiple of the usual norm to which larger norms are clipped where they are squared."""

LARGEST_EXPONENT = 1000
"""Exponent of two, of the factors by which gradients are scaled; norms below 2^-1000 count as 0."""


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
        n: Number of coordinates of the gradients; None if no rule needs it.
    """

    cosines: Square
    scaled_norms: PerGradient
    D2: Square
    scale: float
    n: int | None = None

    @classmethod
    def from_inner_products(cls, K: Square, exponents: PerGradient | None = None) -> "Gram":
        """Create a Gram matrix from inner products.

        Args:
            K: Inner products (p, p), float64.
            exponents: If K is of the gradients divided by 2^exponents_i, these exponents (p,); None for 0.

        Returns:
            The Gram matrix. Gradients with norms below 2^-1000 count as zero.
        """
        powers = np.zeros(1) if exponents is None else exponents
        logs = log2(K.diagonal()) / 2 + powers
        vanished = logs < -LARGEST_EXPONENT  # Otherwise 1/||g_i|| would overflow.
        if vanished.any():
            logs = np.where(vanished, -np.inf, logs)
            K = np.where(vanished[:, None] | vanished, 0.0, K)
        roots, exponent = np.sqrt(K.diagonal()), usual_exponent(logs)
        factors = np.exp2(np.minimum(np.maximum(powers - exponent, -LARGEST_EXPONENT), LARGEST_EXPONENT))
        quotients, norms = cosines(K, roots), roots * factors
        if (norms > LARGEST_NORM).any():  # Their squares would leave float64.
            clipped = np.minimum(norms, LARGEST_NORM)
            products = quotients * (clipped[:, None] * clipped)
        else:
            inside = np.minimum(factors, LARGEST_NORM)  # Only zero gradients have larger factors.
            products = K * (inside[:, None] * inside)
        return cls(quotients, norms, _distances(products), 2.0**exponent)

    @classmethod
    def unmeasured(cls, p: int) -> "Gram":
        """Create a Gram matrix of NaN, for a rule that needs only the number of gradients.

        Args:
            p: Number of gradients.

        Returns:
            The Gram matrix.
        """
        unknown = np.full((p, p), np.nan)
        return cls(unknown, unknown[0], unknown, 1.0)

    @property
    def p(self) -> int:
        """Return the number of gradients."""
        return len(self.scaled_norms)

    @cached_property
    def norms(self) -> PerGradient:
        """Return the norms ||g_i|| (p,), float64."""
        return self.scale * self.scaled_norms

    @property
    def K(self) -> Square:
        """Return the inner products (p, p) over scale^2, with clipped norms, float64."""
        norms = self.clipped_norms
        products: np.ndarray = self.cosines * (norms[:, None] * norms)
        return products

    @cached_property
    def clipped_norms(self) -> PerGradient:
        """Return the scaled norms (p,), clipped where their squares would overflow, float64."""
        clipped: np.ndarray = np.minimum(self.scaled_norms, LARGEST_NORM)
        return clipped

    def unclipped_weights(self, weights: PerGradient) -> PerGradient:
        """Convert weights of the gradients with clipped norms to weights of the gradients.

        Args:
            weights: Weights (p,) of the gradients whose norms are `clipped_norms`.

        Returns:
            The weights (p,) of the gradients themselves, with the same sum of gradients.
        """
        norms = self.scaled_norms
        ratios = np.divide(self.clipped_norms, norms, out=np.ones(self.p), where=norms > LARGEST_NORM)
        converted: np.ndarray = weights * ratios
        return converted

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

    def check_ratios(self, coefficients: Float64[np.ndarray, "p *k"]) -> None:
        """Check that coefficients of the gradients are finite, which ratios of norms beyond float64 prevent.

        Args:
            coefficients: Coefficients (p,) or (p, k).

        Raises:
            ValueError: A coefficient is not finite.
        """
        if np.isfinite(coefficients).all():
            return
        norms = self.norms[self.norms > 0]
        raise ValueError(
            "G must have norms whose ratios stay within float64's range; they go from "
            f"{norms.min():.0e} to {norms.max():.0e}: set them equal first, as preaggregators=('median_norm',) does"
        )

    def select(self, rows: Int[np.ndarray, " q"]) -> "Gram":
        """Return the Gram matrix of some of the gradients.

        Args:
            rows: Indices (q,) of the gradients, in the new order.

        Returns:
            The Gram matrix (q, q), with the same scale.
        """
        square = np.ix_(rows, rows)
        return Gram(self.cosines[square], self.scaled_norms[rows], self.D2[square], self.scale, self.n)

    def without(self, excluded: Bool[np.ndarray, " p"]) -> "Gram":
        """Return the Gram matrix of the gradients that are not excluded.

        Args:
            excluded: Which gradients are excluded, (p,).

        Returns:
            The Gram matrix; this one if no gradient is excluded.
        """
        return self.select(np.flatnonzero(~excluded)) if excluded.any() else self

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
        scale = 2.0 ** usual_exponent(log2(norms))
        scaled_norms = norms / scale
        a = (factors * (self.scale / scale))[:, None]
        squares = np.square(self.clipped_norms)[:, None]
        plain = replace(self, scaled_norms=scaled_norms).K
        of_products = _distances(plain)
        with np.errstate(over="ignore", invalid="ignore"):  # The comparison below rejects entries that overflow.
            first, second = a * a.T * self.D2, (a - a.T) * (a * squares - (a * squares).T)
            better = np.abs(first) + np.abs(second) < plain.diagonal()[:, None] + plain.diagonal()
            exact = self.scaled_norms <= LARGEST_NORM  # D2 of longer gradients is that of the clipped ones.
            D2 = np.where(better & exact & exact[:, None], np.maximum(first + second, 0.0), of_products)
        return Gram(self.cosines, scaled_norms, D2, scale, self.n)

    def averaged(self, R: Float64[np.ndarray, "p q"]) -> "Gram":
        """Return the Gram matrix of q averages of the gradients, G^T R.

        The squared distance of two averages is -z^T D2 z / 2 with z = r_a - r_b. Their common part cancels before any
        rounding.

        Args:
            R: Weights (p, q); each column sums to 1.

        Returns:
            The Gram matrix (q, q), with the same scale.
        """
        if (self.scaled_norms > LARGEST_NORM).any():  # Divided by powers of two, no product overflows.
            lengths = self.scaled_norms[:, None] * R
            sizes = np.exp2(np.floor(log2(np.abs(lengths).max(axis=0))))
            lengths = np.divide(lengths, sizes, out=np.zeros_like(R), where=sizes > 0)
            K = symmetric(lengths.T @ self.cosines @ lengths)
        else:
            K, sizes = symmetric(R.T @ self.K @ R), np.ones(R.shape[1])
        z = R[:, :, None] - R[:, None, :]
        D2 = symmetric(-0.5 * (z * np.tensordot(self.D2, z, axes=1)).sum(axis=0))
        roots = np.sqrt(np.maximum(np.diag(K), 0.0))
        return Gram(cosines(K, roots), sizes * roots, np.maximum(D2, 0.0), self.scale, self.n)


def median_nonzero(norms: PerGradient) -> float:
    """Return the median of the norms or, if it is 0, the median of the nonzero ones.

    Args:
        norms: Norms (p,), at least 0.

    Returns:
        The median; 0 only if all norms are 0.
    """
    middle = median(norms)
    return middle if middle > 0 or not norms.any() else median(norms[norms > 0])


def median(numbers: PerGradient) -> float:
    """Return the median of some numbers, in a tenth of the time that np.median takes for few of them.

    Args:
        numbers: Numbers (p,).

    Returns:
        The median; NaN if one of the numbers is.
    """
    p, ordered = len(numbers), np.sort(numbers)
    return float((ordered[(p - 1) // 2] + ordered[p // 2]) / 2) if ordered[-1] == ordered[-1] else np.nan


def log2(numbers: PerGradient) -> PerGradient:
    """Compute the logarithm to base 2.

    Args:
        numbers: Numbers (p,), at least 0.

    Returns:
        The logarithms (p,), -inf for 0.
    """
    logs: np.ndarray = np.log2(numbers, out=np.full(len(numbers), -np.inf), where=numbers != 0)
    return logs


def usual_exponent(logs: PerGradient) -> float:
    """Return the exponent of two below the median norm; gradients that are 0 or not finite do not count.

    Args:
        logs: Logarithms (p,) of the norms, to base 2.

    Returns:
        The exponent, from -1000 to 1000.
    """
    known = logs[np.isfinite(logs)]
    return float(min(max(math.floor(median(known)), -LARGEST_EXPONENT), LARGEST_EXPONENT)) if known.size else 0.0


def cosines(K: Square, roots: PerGradient) -> Square:
    """Divide inner products by the norms.

    Args:
        K: Inner products (p, p).
        roots: Norms (p,).

    Returns:
        The cosines (p, p), 0 for a zero norm.
    """
    scale = np.divide(1.0, roots, out=np.zeros(len(roots)), where=roots != 0)
    quotients: np.ndarray = K * (scale[:, None] * scale)
    return quotients


def _distances(K: Square) -> Square:
    """Compute squared distances from inner products."""
    squares = K.diagonal()
    D2: np.ndarray = np.maximum(squares[:, None] + squares - 2 * K, 0.0)
    np.fill_diagonal(D2, 0.0)
    return D2
