"""What may be done to the gradients before a rule sees them: right multiplications G -> G R, decided and composed in
p x p.

In these formulas gradients are columns, so that step after step multiplies R (p, q) on the right; the rule after it
sees q columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fa import irls
from fa.gradients.gram import Gram, PerGradient, median_nonzero
from fa.kernels import symmetric
from fa.rules.krum_scores import best_scores
from fa.utils.validation import check_one_of

BUCKET = 2  # gradients that "bucketing" averages together

Factor = Float64[np.ndarray, "p q"]


@dataclass(frozen=True)
class Mixture:
    """The columns G R that a rule sees, as R (p, q) and their Gram matrix."""

    R: Factor
    gram: Gram

    def of(self, G: Float[Tensor, "p n"]) -> Float[Tensor, "q n"]:
        """Those columns themselves, as rows, of gradients that are in memory."""
        return torch.from_numpy(self.R.T).to(G) @ G


@dataclass(frozen=True)
class Situation:
    """What a step may know besides the Gram matrix: f, and the random numbers of this iteration."""

    f: int
    seed: int
    iteration: int


@dataclass(frozen=True)
class Step:
    """One step: what it does, how many columns it leaves of p, and p >= times f + plus, the condition it needs."""

    apply: Callable[[Gram, Situation], tuple[Factor, Gram]]
    columns: Callable[[int, int], int] = lambda p, f: p
    condition: tuple[int, int] = (0, 1)


def mix(gram: Gram, preaggregators: Sequence[str], situation: Situation) -> Mixture:
    """The named steps, the first one first; their conditions hold."""
    mixture = Mixture(np.eye(gram.p), gram)
    for name in preaggregators:
        factor, mixed = step(name).apply(mixture.gram, situation)
        mixture = Mixture(mixture.R @ factor, mixed)
    return mixture


def step(name: str) -> Step:
    """The step of that name, of STEPS."""
    check_one_of("preaggregators", name, tuple(STEPS))
    return STEPS[name]


def columns(preaggregators: Sequence[str], p: int, f: int) -> list[int]:
    """How many columns there are before the first of these steps, p, and after each."""
    counts = [p]
    for name in preaggregators:
        counts.append(step(name).columns(counts[-1], f))
    return counts


def _scale(gram: Gram, factors: PerGradient) -> tuple[Factor, Gram]:
    return np.diag(factors), gram.scaled(factors)


def _over_norms(gram: Gram, length: float) -> PerGradient:
    """length/||g_i||; 1 for a gradient that is 0 and stays so, as one does whose norm has no reciprocal."""
    with np.errstate(over="ignore"):
        factors = np.divide(length, gram.norms, out=np.ones(gram.p), where=gram.norms > 0)
    return np.where(np.isfinite(factors), factors, 1.0)


def _unit(gram: Gram, _: Situation) -> tuple[Factor, Gram]:
    return _scale(gram, _over_norms(gram, 1.0))


def _median_norm(gram: Gram, _: Situation) -> tuple[Factor, Gram]:
    return _scale(gram, _over_norms(gram, median_nonzero(gram.norms)))


def _clip(gram: Gram, _: Situation) -> tuple[Factor, Gram]:
    return _clipped(gram, median_nonzero(gram.norms))


def _clipped(gram: Gram, length: float) -> tuple[Factor, Gram]:
    return _scale(gram, np.minimum(1.0, _over_norms(gram, length)))


def _arc(gram: Gram, situation: Situation) -> tuple[Factor, Gram]:
    """Adaptive robust clipping: the k = floor(2 f/p (p - f)) largest norms are clipped to the next one.

    Source: Allouah et al., The Vital Role of Gradient Clipping in Byzantine-Resilient Distributed Learning, 2024.
    """
    k = 2 * situation.f * (gram.p - situation.f) // gram.p
    return _clipped(gram, float(np.sort(gram.norms)[gram.p - 1 - k]))


def _krum(gram: Gram, situation: Situation) -> tuple[Factor, Gram]:
    """The p - f gradients of best score."""
    rows = best_scores(gram, situation.f, gram.p - situation.f)
    return np.eye(gram.p)[:, rows], gram.select(rows)


def _nnm(gram: Gram, situation: Situation) -> tuple[Factor, Gram]:
    """Each gradient replaced by the mean of the p - f nearest to it, itself among them.

    Source: Allouah et al., Fixing by Mixing, AISTATS 2023.
    """
    keep = gram.p - situation.f
    nearest = np.argsort(gram.D2, axis=1, kind="stable")[:, :keep]
    R = np.zeros((gram.p, gram.p))
    R[nearest.T, np.arange(gram.p)] = 1.0 / keep
    return R, gram.averaged(R)


def _bucketing(gram: Gram, situation: Situation) -> tuple[Factor, Gram]:
    """Means of two gradients each, paired at random; the last alone where p is odd.

    Source: Karimireddy, He and Jaggi, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, ICLR 2022.
    """
    order = np.random.default_rng((situation.seed, situation.iteration)).permutation(gram.p)
    R = np.zeros((gram.p, _buckets(gram.p, situation.f)))
    R[order, np.arange(gram.p) // BUCKET] = 1.0
    R /= R.sum(axis=0)
    return R, gram.averaged(R)


def _buckets(p: int, f: int) -> int:
    return -(-p // BUCKET)


def _subspace(gram: Gram, _: Situation) -> tuple[Factor, Gram]:
    """Each gradient projected onto FA's subspace, Y Y^T g_i with IRLS' defaults: the paper's left multiplication.

    Y = G C, so that Y Y^T G = G (C P) with P = Y^T G (m, p), whose columns also give the distances, exactly.
    """
    C = irls.solve_gram(gram).coefficients
    assert C is not None  # as without l1 and rows Y stays in the span of G
    lengths = gram.norms[:, None]
    P = (lengths * (gram.cosines @ (lengths * C))).T / gram.scale
    D2 = np.square(P[:, :, None] - P[:, None, :]).sum(axis=0)
    roots = np.linalg.norm(P, axis=0)
    units = np.divide(P, roots, out=np.zeros_like(P), where=roots != 0)
    return C @ (gram.scale * P), Gram(symmetric(units.T @ units), roots, D2, gram.scale)


STEPS: dict[str, Step] = {
    "unit": Step(_unit),
    "median_norm": Step(_median_norm),
    "clip": Step(_clip),
    "arc": Step(_arc, condition=(1, 1)),
    "krum": Step(_krum, columns=lambda p, f: p - f, condition=(2, 3)),
    "nnm": Step(_nnm, condition=(2, 1)),
    "bucketing": Step(_bucketing, columns=_buckets),
    "subspace": Step(_subspace),
}
