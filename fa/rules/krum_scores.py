"""Which gradients have the nearest neighbours: Krum's scores.

Source: Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, NIPS 2017.
"""

import numpy as np
from jaxtyping import Float64, Int

from fa.gradients.gram import Gram, Square


def krum_scores(D2: Square, neighbours: int) -> Float64[np.ndarray, " p"]:
    """Each gradient's sum of squared distances to its nearest `neighbours` others, (p,); p - f - 2 in the paper."""
    others = D2 + np.diag(np.full(D2.shape[0], np.inf))
    scores: np.ndarray = np.sort(others, axis=1)[:, :neighbours].sum(axis=1)
    return scores


def best_scores(gram: Gram, f: int, keep: int) -> Int[np.ndarray, " q"]:
    """The `keep` rows of lowest Krum score in ascending order; of equal scores, the lowest row's."""
    order = np.argsort(krum_scores(gram.D2, max(1, gram.p - f - 2)), kind="stable")
    return np.sort(order[:keep])


def bulyan_selection(gram: Gram, f: int) -> tuple[int, ...]:
    """The p - 2f rows that Krum picks one after another, scoring anew what is left with p' - f - 2 neighbours, at
    least one.

    Source: El Mhamdi, Guerraoui and Rouault, The Hidden Vulnerability of Distributed Learning in Byzantium, ICML 2018.
    """
    left = list(range(gram.p))
    chosen: list[int] = []
    for _ in range(gram.p - 2 * f):
        scores = krum_scores(gram.D2[np.ix_(left, left)], max(1, len(left) - f - 2))
        chosen.append(left.pop(int(np.argmin(scores))))
    return tuple(sorted(chosen))


def released_bulyan_averages(gram: Gram, f: int) -> Float64[np.ndarray, "p q"]:
    """Return the averages that the released code's Bulyan takes the coordinates of, as columns of weights.

    A gradient's score is the sum of its p - f - 2 smallest distances, not squared, and is computed once. Of the
    gradients in ascending order of score, average i (from 0) is the mean of those at places i to p - f - 3. There are
    p - 2f - 2 averages.

    Args:
        gram: The Gram matrix of p gradients.
        f: Number of Byzantine workers to tolerate; p >= 4f + 3.

    Source: aggregators/bulyan.py in the authors' released code, where no score is updated after a selection.
    """
    best = gram.p - f - 2
    order = np.argsort(krum_scores(np.sqrt(gram.D2), best), kind="stable")[:best]
    averages = np.zeros((gram.p, gram.p - 2 * f - 2))
    for i in range(averages.shape[1]):
        averages[order[i:], i] = 1 / (best - i)
    return averages
