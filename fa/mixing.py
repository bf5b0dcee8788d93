"""What may be done to the gradients before a rule sees them: right multiplications G -> G R, decided and composed in
p x p.

In these formulas gradients are columns, so that step after step multiplies R (p, q) on the right; the rule after it
sees q columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

from fa.gram import Gram, Square

BUCKET = 2  # gradients that "bucketing" averages together


@dataclass(frozen=True)
class Mixture:
    """The columns G R that a rule sees, as R (p, q) and their Gram matrix."""

    R: Float64[np.ndarray, "p q"]
    gram: Gram


@dataclass(frozen=True)
class Situation:
    """What a step may know besides the Gram matrix: f, and the random numbers of this iteration."""

    f: int
    seed: int
    iteration: int


def mix(gram: Gram, before: Sequence[str], situation: Situation) -> Mixture:
    """The named steps, the first one first. Raises ValueError where a step needs more gradients than there are."""
    mixture = Mixture(np.eye(gram.p), gram)
    for name in before:
        factor, mixed = STEPS[name](mixture.gram, situation)
        mixture = Mixture(mixture.R @ factor, mixed)
    return mixture


def krum_scores(D2: Square, neighbours: int) -> Float64[np.ndarray, " p"]:
    """Each gradient's sum of squared distances to its nearest `neighbours` others, (p,).

    Source: Blanchard et al., Machine Learning with Adversaries, NIPS 2017, section 4, with p - f - 2 neighbours.
    """
    others = D2 + np.diag(np.full(D2.shape[0], np.inf))
    scores: np.ndarray = np.sort(others, axis=1)[:, :neighbours].sum(axis=1)
    return scores


def best_scores(gram: Gram, f: int, keep: int) -> Int[np.ndarray, " q"]:
    """The `keep` rows of lowest Krum score in ascending order; of equal scores, the lowest row's."""
    order = np.argsort(krum_scores(gram.D2, max(1, gram.p - f - 2)), kind="stable")
    return np.sort(order[:keep])


def check_condition(name: str, p: int, f: int, times: int, plus: int, remark: str = "") -> None:
    """Raise ValueError unless p >= times f + plus."""
    if p >= times * f + plus:
        return
    needed = f"p >= {times}f + {plus}" if plus != 1 else f"p > {times}f"
    raise ValueError(
        f"{name} needs {needed}; here p = {p} gradients and f = {f}{remark}: take more workers or a smaller f"
    )


Step = Callable[[Gram, Situation], tuple[Float64[np.ndarray, "p q"], Gram]]


def _scale(gram: Gram, factors: Float64[np.ndarray, " p"]) -> tuple[Float64[np.ndarray, "p p"], Gram]:
    return np.diag(factors), gram.scaled(factors)


def _over_norms(gram: Gram, length: float) -> Float64[np.ndarray, " p"]:
    """length/||g_i||; 1 for a gradient that is 0 and stays so."""
    norms = gram.norms
    factors: np.ndarray = np.divide(length, norms, out=np.ones_like(norms), where=norms > 0)
    return factors


def _unit(gram: Gram, _: Situation) -> tuple[Float64[np.ndarray, "p p"], Gram]:
    return _scale(gram, _over_norms(gram, 1.0))


def _median_norm(gram: Gram, _: Situation) -> tuple[Float64[np.ndarray, "p p"], Gram]:
    return _scale(gram, _over_norms(gram, float(np.median(gram.norms))))


def _clip(gram: Gram, _: Situation) -> tuple[Float64[np.ndarray, "p p"], Gram]:
    return _scale(gram, np.minimum(1.0, _over_norms(gram, float(np.median(gram.norms)))))


def _krum(gram: Gram, situation: Situation) -> tuple[Float64[np.ndarray, "p q"], Gram]:
    """The p - f gradients of best score."""
    check_condition('before="krum"', gram.p, situation.f, 2, 3)
    rows = best_scores(gram, situation.f, gram.p - situation.f)
    return np.eye(gram.p)[:, rows], gram.select(rows)


def _nnm(gram: Gram, situation: Situation) -> tuple[Float64[np.ndarray, "p p"], Gram]:
    """Each gradient replaced by the mean of the p - f nearest to it, itself among them.

    Source: Allouah et al., Fixing by Mixing, AISTATS 2023.
    """
    check_condition('before="nnm"', gram.p, situation.f, 2, 1)
    keep = gram.p - situation.f
    nearest = np.argsort(gram.D2, axis=1, kind="stable")[:, :keep]
    R = np.zeros((gram.p, gram.p))
    R[nearest.T, np.arange(gram.p)] = 1.0 / keep
    return R, gram.averaged(R)


def _bucketing(gram: Gram, situation: Situation) -> tuple[Float64[np.ndarray, "p q"], Gram]:
    """Means of two gradients each, paired at random; the last alone where p is odd.

    Source: Karimireddy, He and Jaggi, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, ICLR 2022.
    """
    order = np.random.default_rng((situation.seed, situation.iteration)).permutation(gram.p)
    R = np.zeros((gram.p, -(-gram.p // BUCKET)))
    R[order, np.arange(gram.p) // BUCKET] = 1.0
    R /= R.sum(axis=0)
    return R, gram.averaged(R)


STEPS: dict[str, Step] = {
    "unit": _unit,
    "median_norm": _median_norm,
    "clip": _clip,
    "krum": _krum,
    "nnm": _nnm,
    "bucketing": _bucketing,
}
