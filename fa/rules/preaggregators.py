"""Pre-aggregators: transformations of the gradients before a rule, computed in the p x p Gram matrix.

In these formulas gradients are the columns of G. A pre-aggregator multiplies them on the right, G -> G R with R (p, q).
The rule then sees q columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fa import irls
from fa.gradients.gram import LARGEST_NORM, Gram, PerGradient, log2, median_nonzero
from fa.irls.problem import nonzero_eigenpairs
from fa.kernels import symmetric
from fa.rules.krum_scores import lowest_scores
from fa.utils.validation import check, check_one_of

BUCKET_SIZE = 2
"""Gradients in each average of "bucketing", unless its value says otherwise."""

_ENTRIES = 1 << 22  # Number of entries of G that are converted to float64 at a time.

Factor = Float64[np.ndarray, "p q"]


@dataclass(frozen=True)
class MixedGradients:
    """The columns that a rule sees.

    Attributes:
        R: The columns are G R, with R (p, q).
        gram: Their Gram matrix.
    """

    R: Factor
    gram: Gram

    def apply_to(self, G: Float[Tensor, "p n"]) -> Float[Tensor, "q n"]:
        """Compute these columns, as rows, from gradients in memory.

        Args:
            G: The gradients (p, n).

        Returns:
            The columns (q, n), in the gradients' dtype; float32 for half precision, whose range does not hold R. They
            are G itself if nothing changes it.
        """
        dtype = torch.promote_types(G.dtype, torch.float32)
        if np.array_equal(self.R, np.eye(len(G))):
            return G.to(dtype)
        factor = torch.from_numpy(self.R.T).to(G.device)
        if np.abs(self.R).max() < torch.finfo(dtype).max / len(G):
            return factor.to(dtype) @ G.to(dtype)
        columns = G.new_empty(self.R.shape[1], G.shape[1], dtype=dtype)
        width = max(1, _ENTRIES // len(G))
        for left in range(0, G.shape[1], width):
            part = slice(left, left + width)
            columns[:, part] = factor @ G[:, part].double()
        return columns


@dataclass(frozen=True)
class PreaggregatorContext:
    """What a pre-aggregator may depend on besides the Gram matrix.

    Attributes:
        f: Number of Byzantine workers to tolerate.
        seed: Seed of random numbers.
        iteration: Iteration of the training run, which selects the random numbers.
    """

    f: int
    seed: int
    iteration: int


def _all_columns(p: int, f: int) -> int:
    return p


def _best_count(p: int, f: int) -> int:
    return p - f


@dataclass(frozen=True)
class Preaggregator:
    """A pre-aggregator.

    Attributes:
        apply: Computes R (p, q) and the Gram matrix of G R from that of G.
        column_count: Computes q from p and f.
        min_workers: (times, plus): it needs p >= times f + plus.
        least_workers: (times, plus) for a rule with `strict` false.
        keeps_workers: Whether column i remains the gradient of worker i, only scaled or projected.
        keeps_order: Whether column i is the gradient of worker i or an average for it.
        bounds_norms: Whether a column's norm stays bounded however long one gradient is.
    """

    apply: Callable[[Gram, PreaggregatorContext], tuple[Factor, Gram]]
    column_count: Callable[[int, int], int] = _all_columns
    min_workers: tuple[int, int] = (0, 1)
    least_workers: tuple[int, int] = (1, 1)
    keeps_workers: bool = True
    keeps_order: bool = True
    bounds_norms: bool = False


def apply_preaggregators(gram: Gram, names: Sequence[str], context: PreaggregatorContext) -> MixedGradients:
    """Apply pre-aggregators one after another.

    Args:
        gram: Gram matrix of the gradients, as many as every pre-aggregator needs.
        names: Names as in `make_preaggregator`, the first one applied first.
        context: What they depend on besides.

    Returns:
        The columns that the last one makes, as combinations of the gradients, with their Gram matrix.
    """
    mixed = MixedGradients(np.eye(gram.p), gram)
    for name in names:
        factor, mixed_gram = make_preaggregator(name).apply(mixed.gram, context)
        mixed = MixedGradients(mixed.R @ factor, mixed_gram)
    return mixed


def column_counts(names: Sequence[str], p: int, f: int) -> list[int]:
    """Return the number of columns before the first of these pre-aggregators, p, and after each.

    Args:
        names: Names of pre-aggregators.
        p: Number of gradients.
        f: Number of Byzantine workers to tolerate.

    Returns:
        One number more than there are pre-aggregators.
    """
    counts = [p]
    for name in names:
        counts.append(make_preaggregator(name).column_count(counts[-1], f))
    return counts


def _scale(gram: Gram, factors: PerGradient) -> tuple[Factor, Gram]:
    return np.diag(factors), gram.scaled(factors)


def _factors_to_norm(gram: Gram, norm: float) -> PerGradient:
    """norm/||g_i||; 1 for a zero gradient, and for one whose norm has no reciprocal."""
    with np.errstate(over="ignore"):
        factors = np.divide(norm, gram.norms, out=np.ones(gram.p), where=gram.norms > 0)
    return np.where(np.isfinite(factors), factors, 1.0)


def _unit(gram: Gram, _: PreaggregatorContext) -> tuple[Factor, Gram]:
    return _scale(gram, _factors_to_norm(gram, 1.0))


def _median_norm(gram: Gram, _: PreaggregatorContext) -> tuple[Factor, Gram]:
    return _scale(gram, _factors_to_norm(gram, median_nonzero(gram.norms)))


def _clip(gram: Gram, _: PreaggregatorContext, norm: float | None = None) -> tuple[Factor, Gram]:
    """Norms above `norm`, by default the median of the norms, are reduced to it."""
    norm = median_nonzero(gram.norms) if norm is None else norm
    return _scale(gram, np.minimum(1.0, _factors_to_norm(gram, norm)))


def _arc(gram: Gram, context: PreaggregatorContext) -> tuple[Factor, Gram]:
    """Adaptive robust clipping: the k = floor(2 f/p (p - f)) largest norms are clipped to the next one.

    Source: Allouah et al., The Vital Role of Gradient Clipping in Byzantine-Resilient Distributed Learning, 2024.
    """
    k = 2 * context.f * (gram.p - context.f) // gram.p
    return _clip(gram, context, float(np.sort(gram.norms)[gram.p - 1 - k]))


def _krum(gram: Gram, context: PreaggregatorContext) -> tuple[Factor, Gram]:
    """The p - f gradients of lowest Krum score."""
    rows = lowest_scores(gram, context.f, gram.p - context.f)
    return np.eye(gram.p)[:, rows], gram.select(rows)


def _nnm(gram: Gram, context: PreaggregatorContext) -> tuple[Factor, Gram]:
    """Nearest-neighbour mixing: each gradient becomes the mean of the p - f nearest to it, including itself.

    Source: Allouah et al., Fixing by Mixing, AISTATS 2023.
    """
    count = gram.p - context.f
    nearest = np.argsort(gram.D2, axis=1, kind="stable")[:, :count]
    R = np.zeros((gram.p, gram.p))
    R[nearest.T, np.arange(gram.p)] = 1.0 / count
    return R, gram.averaged(R)


def _bucketing(gram: Gram, context: PreaggregatorContext, size: int = BUCKET_SIZE) -> tuple[Factor, Gram]:
    """Means of random buckets of gradients; the last bucket may be smaller.

    Source: Karimireddy, He and Jaggi, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, ICLR 2022.
    """
    order = np.random.default_rng((context.seed, context.iteration)).permutation(gram.p)
    R = np.zeros((gram.p, _bucket_count(gram.p, context.f, size)))
    R[order, np.arange(gram.p) // min(size, gram.p)] = 1.0
    R /= R.sum(axis=0)
    return R, gram.averaged(R)


def _bucket_count(p: int, f: int, size: int = BUCKET_SIZE) -> int:
    return -(-p // max(1, min(size, p)))


def _subspace(gram: Gram, _: PreaggregatorContext) -> tuple[Factor, Gram]:
    """Projection of each gradient onto FA's subspace, the paper's left multiplication, with IRLS' defaults."""
    C = irls.solve_gram(gram).coefficients
    assert C is not None  # With the default regularizer, Y is in the span of G.
    return _project(gram, C)


def _random_span(gram: Gram, context: PreaggregatorContext) -> tuple[Factor, Gram]:
    """Projection of each gradient onto the span of m gradients drawn at random, as many as FA has columns by default.

    A control for "subspace": a subspace of the same dimension that is not optimized.
    """
    rng = np.random.default_rng((context.seed, context.iteration))
    drawn = rng.permutation(gram.p)[: irls.default_m(gram.p)]
    eigenvalues, vectors = nonzero_eigenpairs(gram.cosines[np.ix_(drawn, drawn)], 1.0)
    C = np.zeros((gram.p, eigenvalues.size))
    C[drawn] = vectors / np.sqrt(eigenvalues)
    return _project(gram, gram.divide_by_norms(C))


def _project(gram: Gram, C: Float64[np.ndarray, "p m"]) -> tuple[Factor, Gram]:
    """Projection of each gradient onto the span of the orthonormal columns Y = G C.

    Y Y^T G = G (C P) with P = Y^T G (m, p). The columns of P also give the exact distances.
    """
    norms = gram.norms[:, None]
    P = (norms * (gram.cosines @ (norms * C))).T / gram.scale
    powers = np.exp2(np.floor(log2(np.abs(P).max(axis=0, initial=0.0))))  # They keep squares within float64.
    shapes = np.divide(P, powers, out=np.zeros_like(P), where=powers != 0)
    roots = np.linalg.norm(shapes, axis=0)
    units = np.divide(shapes, roots, out=np.zeros_like(P), where=roots != 0)
    lengths = powers * roots
    clipped = P * np.minimum(1.0, np.divide(LARGEST_NORM, lengths, out=np.ones(gram.p), where=lengths > LARGEST_NORM))
    D2 = np.square(clipped[:, :, None] - clipped[:, None, :]).sum(axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        R = C @ (gram.scale * P)
    gram.check_ratios(R)
    return R, Gram(symmetric(units.T @ units), lengths, D2, gram.scale, gram.n)


PREAGGREGATORS: dict[str, Preaggregator] = {
    "unit": Preaggregator(_unit, bounds_norms=True),
    "median_norm": Preaggregator(_median_norm, bounds_norms=True),
    "clip": Preaggregator(_clip, bounds_norms=True),
    "arc": Preaggregator(_arc, min_workers=(1, 1), bounds_norms=True),
    "krum": Preaggregator(_krum, column_count=_best_count, min_workers=(2, 3), keeps_workers=False, keeps_order=False),
    "nnm": Preaggregator(_nnm, min_workers=(2, 1), keeps_workers=False),
    "bucketing": Preaggregator(_bucketing, column_count=_bucket_count, keeps_workers=False, keeps_order=False),
    "subspace": Preaggregator(_subspace),
    "random_span": Preaggregator(_random_span),
}
"""Every pre-aggregator by its name."""


def make_preaggregator(text: str) -> Preaggregator:
    """Return a pre-aggregator.

    Args:
        text: A name in `PREAGGREGATORS`, or a name and a value: "clip:2.0" clips norms at 2, "bucketing:3" averages
            three gradients.

    Raises:
        ValueError: Unknown name, or invalid value.

    Example:
        >>> make_preaggregator("bucketing:3").column_count(15, 2)
        5
    """
    name, colon, value = text.partition(":") if isinstance(text, str) else (text, "", "")
    check_one_of("preaggregators", name, tuple(PREAGGREGATORS), "or clip:NORM, bucketing:SIZE")
    if not colon:
        return PREAGGREGATORS[name]
    number = _number(value)
    if name == "clip":
        check("preaggregators", text, 0 < number < np.inf, "clip:NORM with a number greater than 0")
        return Preaggregator(partial(_clip, norm=number), bounds_norms=True)
    whole = name == "bucketing" and number >= 1 and number.is_integer()
    check("preaggregators", text, whole, "bucketing:SIZE with an integer of at least 1, or a name without a value")
    size = int(number)
    return Preaggregator(
        partial(_bucketing, size=size), partial(_bucket_count, size=size), keeps_workers=False, keeps_order=False
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan
