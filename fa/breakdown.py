"""When FA can be fooled: a tight minority against a loose majority.

The model: h honest unit gradients with mutual cosine c, f faulty ones with mutual cosine r, the two groups orthogonal,
and eq. 5 without pairs. Its optimum is sought among the subspaces that hold some members of a group entirely, with or
without the mean direction of the group's others. With m = 1 a group of k with cosine c offers its mean, which explains
(1 + (k - 1) c)/k of each, and one member, which explains all of itself and c^2 of each other. Directions that mix the
groups do not help: 1 - (1 - v)^(1/a) is convex in v.

What the objective prefers, IRLS need not find: from equal weights it starts at the principal components (a = 1), whose
threshold on c is lower, and mostly stays with the group they choose.
"""

from collections.abc import Collection, Iterator
from itertools import product

import numpy as np
from jaxtyping import Float64

from fa.checks import check_integer, check_real, require
from fa.gram import Gram, Square
from fa.irls import Options, Problem, pose

_ABSENT = 1e-6  # length of a unit gradient's part in a subspace below which it has no direction there

Vectors = Float64[np.ndarray, "r k"]


def two_groups(h: int, f: int, c: float, r: float) -> Gram:
    """The model's Gram matrix, the f faulty gradients first as everywhere; c and r in [0, 1]."""
    check_integer("h", h, 1)
    check_integer("f", f, 0)
    for name, cosine in (("c", c), ("r", r)):
        check_real(name, cosine, 0)
        require(bool(cosine <= 1), name, cosine, "at most 1")
    K = np.zeros((f + h, f + h))
    K[:f, :f], K[f:, f:] = r, c
    np.fill_diagonal(K, 1.0)
    return Gram.of(K)


def faulty_columns(h: int, f: int, c: float, r: float, m: int = 1, a: float = 2.0) -> int:
    """How many of Y's m columns eq. 5 gives to the faulty group: of equally good choices, the fewest."""
    return _best(h, f, c, r, m, a)[1]


def threshold(h: int, f: int, r: float, a: float = 2.0) -> float:
    """The honest cosine c above which eq. 5 with m = 1 picks the honest group; 1 where none is enough. Needs scipy."""
    from scipy.optimize import brentq

    def lead(c: float) -> float:
        values = {faulty: value for value, faulty in _choices(h, f, c, r, 1, a)}
        return values[1] - values[0]

    if lead(1.0) <= 0:
        return 1.0
    return 0.0 if lead(0.0) > 0 else float(brentq(lead, 0.0, 1.0, xtol=1e-10))


def krum_threshold(h: int, f: int, r: float) -> float:
    """The honest cosine above which Krum picks an honest gradient: its p - f - 2 neighbours are honest then.

    An honest score is (p - f - 2) 2 (1 - c), a faulty one (f - 1) 2 (1 - r) + (p - 2f - 1) 2.
    """
    neighbours = h - 2
    return max(0.0, 1 - ((f - 1) * (1 - r) + neighbours - f + 1) / neighbours)


def breakdown_margin(K: Square, suspected: Collection[int], m: int = 1, a: float = 2.0) -> float:
    """By how much eq. 5 grows if one of the m columns is given to the suspected gradients rather than to the others.

    K (p, p) are inner products of real gradients. Both alternatives are found by IRLS from several starts: m columns in
    the span of the others, against one in the span of the suspected and m - 1 in the span of the others. Above 0 eq. 5
    has no reason to follow the suspected; below 0 it prefers them. Raises ValueError where either group is empty.
    """
    gram = Gram.of(np.asarray(K, dtype=np.float64))
    Options(m, a=a)  # checks them
    rows = np.zeros(gram.p, dtype=bool)
    rows[list(suspected)] = True
    require(0 < int(rows.sum()) < gram.p, "suspected", sorted(suspected), f"some, and not all, of {gram.p} gradients")
    problem = pose(gram, m, 0.0, a)
    theirs, others = (_orthonormal(problem.terms[:, : gram.p][:, group]) for group in (rows, ~rows))
    first = _descend(problem, theirs, 1)
    with_them = np.hstack([first, _descend(problem, _orthonormal(others - first @ (first.T @ others)), m - 1, first)])
    without = _descend(problem, others, m)
    return _value(problem, with_them) - _value(problem, without)


def _best(h: int, f: int, c: float, r: float, m: int, a: float) -> tuple[float, int]:
    choices = sorted(_choices(h, f, c, r, m, a), key=lambda choice: (round(choice[0], 12), choice[1]))
    return choices[0]


def _choices(h: int, f: int, c: float, r: float, m: int, a: float) -> Iterator[tuple[float, int]]:
    """The objective of the best candidate for each number of columns that the faulty group may get, and the number."""
    problem = pose(two_groups(h, f, c, r), m, 0.0, a)
    members = problem.terms[:, : f + h]
    for faulty in range(max(0, m - h), min(m, f) + 1):
        pairs = product(_within(members[:, :f], faulty), _within(members[:, f:], m - faulty))
        yield min(_value(problem, _orthonormal(np.hstack(pair))) for pair in pairs), faulty


def _within(group: Vectors, columns: int) -> Iterator[np.ndarray]:
    """`columns` members, or one fewer and the mean of the others."""
    yield group[:, :columns]
    if 0 < columns < group.shape[1]:
        yield np.hstack([group[:, : columns - 1], group[:, columns - 1 :].sum(axis=1, keepdims=True)])


def _descend(
    problem: Problem, span: Vectors, m: int, first: np.ndarray | None = None, steps: int = 200
) -> Float64[np.ndarray, "r m"]:
    """The best m columns in `span`, beside the column that is there already, of IRLS from several starts.

    Besides equal weights it starts at each worker's own direction: with a > 1 that may be the optimum, of which IRLS
    from equal weights knows nothing.
    """
    there = np.zeros((len(span), 0)) if first is None else first
    if m == 0:
        return np.zeros((len(span), 0))
    inside = span.T @ problem.terms
    starts = [np.ones_like(problem.factors)]
    for own in inside.T[np.linalg.norm(inside, axis=0) > _ABSENT]:
        direction = (span @ own / np.linalg.norm(own))[:, None]
        starts.append(problem.weights(problem.residuals(_complement(np.hstack([there, direction])))))
    found = [_iterate(problem, span, m, there, weights, steps) for weights in starts]
    return min(found, key=lambda Y: _value(problem, np.hstack([there, Y])))


def _iterate(
    problem: Problem, span: Vectors, m: int, there: np.ndarray, weights: np.ndarray, steps: int
) -> Float64[np.ndarray, "r m"]:
    inside = span.T @ problem.terms
    for _ in range(steps):
        _, vectors = np.linalg.eigh((inside * (problem.factors * weights)) @ inside.T)
        Y: np.ndarray = span @ vectors[:, -m:]
        before, weights = weights, problem.weights(problem.residuals(_complement(np.hstack([there, Y]))))
        if np.allclose(weights, before, rtol=1e-12, atol=0.0):
            break
    return Y


def _value(problem: Problem, Y: Vectors) -> float:
    return problem.objective(problem.residuals(_complement(Y)))


def _orthonormal(vectors: Vectors) -> Float64[np.ndarray, "r s"]:
    left, sizes, _ = np.linalg.svd(vectors, full_matrices=False)
    spanning: np.ndarray = left[:, sizes > 1e-9 * sizes.max(initial=0.0)]
    return spanning


def _complement(Y: Vectors) -> Float64[np.ndarray, "r s"]:
    complement: np.ndarray = np.linalg.svd(Y, full_matrices=True)[0][:, Y.shape[1] :] if Y.shape[1] else np.eye(len(Y))
    return complement
