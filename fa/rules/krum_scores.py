"""Krum's scores, and what rules select by them.

Source: Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, NIPS 2017.
"""

import numpy as np
from jaxtyping import Float64, Int

from fa.gradients.gram import Gram, Square

NEIGHBOURS = ("p-f-2", "p-f-1")
DISTANCES = ("squared", "plain")


def krum_scores(D2: Square, neighbours: int) -> Float64[np.ndarray, " p"]:
    """Compute each gradient's sum of squared distances to its nearest neighbours.

    Args:
        D2: Squared distances of p gradients, (p, p).
        neighbours: Number of neighbours; p - f - 2 in the paper.

    Returns:
        The scores, (p,).
    """
    others = D2 + np.diag(np.full(D2.shape[0], np.inf))
    scores: np.ndarray = np.sort(others, axis=1)[:, :neighbours].sum(axis=1)
    return scores


def _scores(D2: Square, f: int, neighbours: str, distance: str) -> Float64[np.ndarray, " p"]:
    """Compute the scores by the definition that `lowest_scores` describes."""
    count = len(D2) - f - (2 if neighbours == "p-f-2" else 1)
    return krum_scores(D2 if distance == "squared" else np.sqrt(D2), max(1, count))


def lowest_scores(
    gram: Gram, f: int, count: int, neighbours: str = "p-f-2", distance: str = "squared"
) -> Int[np.ndarray, " q"]:
    """Select the rows of lowest score. Of equal scores, the first row's is taken.

    Args:
        gram: Gram matrix of p gradients.
        f: Number of Byzantine workers to tolerate.
        count: Number of rows to select.
        neighbours: Number of neighbours in a score, "p-f-2" or "p-f-1"; at least one.
        distance: "squared" for scores that are sums of squared distances, "plain" for sums of distances.

    Returns:
        The rows in ascending order.
    """
    order = np.argsort(_scores(gram.D2, f, neighbours, distance), kind="stable")
    return np.sort(order[:count])


def bulyan_selection(gram: Gram, f: int, neighbours: str = "p-f-2", distance: str = "squared") -> tuple[int, ...]:
    """Select p - 2f rows with Krum, one after another.

    Each selection scores the p' rows that remain by their p' - f - 2 nearest neighbours, at least one.

    Args:
        gram: Gram matrix of p gradients.
        f: Number of Byzantine workers to tolerate.
        neighbours: As for `lowest_scores`, with p' instead of p.
        distance: As for `lowest_scores`.

    Returns:
        The rows in ascending order.

    Source: El Mhamdi, Guerraoui and Rouault, The Hidden Vulnerability of Distributed Learning in Byzantium, ICML 2018.
    """
    remaining = list(range(gram.p))
    selected: list[int] = []
    for _ in range(gram.p - 2 * f):
        scores = _scores(gram.D2[np.ix_(remaining, remaining)], f, neighbours, distance)
        selected.append(remaining.pop(int(np.argmin(scores))))
    return tuple(sorted(selected))


def released_bulyan_averages(gram: Gram, f: int) -> Float64[np.ndarray, "p q"]:
    """Compute the averages whose coordinates the released code's Bulyan aggregates.

    A gradient's score is the sum of its p - f - 2 smallest distances, not squared, and is computed once. Of the
    gradients in ascending order of score, average i (from 0) is the mean of those at places i to p - f - 3.

    Args:
        gram: Gram matrix of p gradients.
        f: Number of Byzantine workers to tolerate; p >= 4f + 3.

    Returns:
        The p - 2f - 2 averages, as columns of weights.

    Source: aggregators/bulyan.py in the authors' released code, where no score is updated after a selection.
    """
    best = gram.p - f - 2
    order = np.argsort(krum_scores(np.sqrt(gram.D2), best), kind="stable")[:best]
    averages = np.zeros((gram.p, gram.p - 2 * f - 2))
    for i in range(averages.shape[1]):
        averages[order[i:], i] = 1 / (best - i)
    return averages
