"""When FA can be fooled: a tight minority against a loose majority.

The model: h honest unit gradients with mutual cosine c, f faulty ones with mutual cosine r, the groups orthogonal. What
eq. 5 then prefers, at power 1/a:

Without pairs (lam = 0) the objective is a concave function of Z = Y Y^T, and reflecting one group changes no value. So
it is no higher at some projector that does not mix the groups, for any m and a: each of the m columns belongs to a
group, and the groups add. Within a group of k with cosine c, what j columns cost has two candidates: j members held
entirely, or j - 1 of them and the mean of the other s = k - j + 1. They leave each other member

    1 - v = (1 - c)(1 + j c)/(1 + (j - 1) c)     and     1 - v = (1 - c)(1 - 1/s),

so the mean is the better one exactly where (1 + j c)/(1 + (j - 1) c) > (s/(s - 1))^(a - 1). For m = 1 the Lagrange
conditions leave only directions whose value is the same for all members, or for all but one. That between these two
the ends are best, and the whole statement for m > 1, is verified and not proved: in 1,200 random cases (h <= 8, f <= 4,
m <= 4; a = 1, 2, 2.5, 3, 4, 5; cosines up to 0.95) IRLS from 30 starts found nothing lower. For 1 < a < 2 it is wrong:
a direction between a member and the mean is better, and such an a is refused here.

With pairs (lam > 0) the sign of one group against the other counts, and the optimum mixes them; see `direction`.

What the objective prefers, IRLS need not find: from equal weights it starts at the principal components (a = 1), whose
threshold on c is lower, and mostly stays with the group they choose.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from fa.gradients.gram import Gram, Square
from fa.irls import Options, Problem, build_problem
from fa.irls.problem import complement
from fa.utils.validation import check, check_integer, check_real

_ANGLES, _ROUNDS = 181, 5  # of the search for the angle: to 1e-8 of a turn
_STEPS = 200  # of IRLS, at most
_ABSENT = 1e-6  # length of a unit gradient's part in a subspace below which it has no direction there

KINDS = ("mean", "honest", "faulty", "cross")
Cosines = float | Float64[np.ndarray, "..."]
Vectors = Float64[np.ndarray, "r k"]


@dataclass(frozen=True)
class Direction:
    """A direction, m = 1: its `kind` (in the means' plane, one honest or faulty member, a cross pair's difference), eq.
    5's `objective` there, and the explained variances of the `honest` and of the `faulty` mean. `angle`, in degrees, is
    that of its parts along the two: 0 is the honest mean, -90 the faulty one.
    """

    kind: str
    objective: float
    honest: float
    faulty: float
    angle: float


def two_groups(h: int, f: int, c: float, r: float) -> Gram:
    """The model's Gram matrix, the f faulty gradients first; c and r in [0, 1]."""
    _check(h, f, c, r)
    K = np.zeros((f + h, f + h))
    K[:f, :f], K[f:, f:] = r, c
    np.fill_diagonal(K, 1.0)
    return Gram.from_inner_products(K)


def gradients(gram: Gram, n: int, seed: int) -> Float64[np.ndarray, "p n"]:
    """Gradients with these inner products, in directions drawn from `seed`; for large n nearly Gaussian coordinates."""
    check_integer("n", n, gram.p)
    lengths, vectors = np.linalg.eigh(gram.K)
    axes = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, gram.p)))[0]
    G: np.ndarray = vectors * (gram.scale * np.sqrt(np.maximum(lengths, 0.0))) @ axes.T
    return G


def faulty_weight(d: Float[np.ndarray, " n"], G: Float[np.ndarray, "p n"], f: int) -> float:
    """The share of the first f gradients in d, of the weights sum_i w_i on all: 0 none, f/p as in the mean, 1 all.

    By the parts of d along the two groups' means, for gradients of the model, where a rule treats a group's alike.
    """
    faulty, honest = (float(d @ mean / (mean @ mean)) for mean in (G[:f].mean(axis=0), G[f:].mean(axis=0)))
    return faulty / (faulty + honest)


def faulty_columns(h: int, f: int, c: Cosines, r: Cosines, m: int = 1, a: float = 2.0) -> Int[np.ndarray, "..."]:
    """How many of Y's m columns eq. 5 without pairs gives to the faulty group: of equally good choices, the fewest.

    c and r are numbers in [0, 1] or arrays of them, which broadcast. a is 1 or at least 2.
    """
    return np.asarray(np.round(_choices(h, f, c, r, m, a), 12).argmin(axis=0) + max(0, m - h))


def threshold(h: int, f: int, r: float, a: float = 2.0) -> float:
    """The honest cosine c above which eq. 5 with m = 1 and no pairs picks the honest group.

    Either honest direction must cost less than h - f + group_cost(f, r, 1, a). a = 1 is the principal component; with a
    -> infinity, the logarithm of eq. 3, the threshold tends to the square root of 1 - (1 - r^2)^((f - 1)/(h - 1)).
    """
    _check(h, f, 0.0, r)
    left = h - f + float(group_cost(f, r, 1, a)) if f else float(h)
    if left <= 0:
        return 1.0
    others = max(h - 1, 1)
    mean = 1 - left / others * (left / h) ** (a - 1)
    member = 1 - (left / others) ** a
    return float(min(max(mean, 0.0), np.sqrt(max(member, 0.0))))


def group_cost(k: int, c: Cosines, j: int, a: float = 2.0) -> Float64[np.ndarray, "..."]:
    """What a group of k with mutual cosine c leaves of eq. 5, sum_i (1 - v_i)^(1/a), at the best j columns in it."""
    check("a", a, a == 1 or a >= 2, "1 or at least 2, since between these neither a member nor the mean is best")
    c = np.asarray(c, dtype=np.float64)
    if j == 0 or j >= k:
        return np.full(c.shape, 0.0 if j else float(k))
    s = k - j + 1
    members = (k - j) * ((1 - c) * (1 + j * c) / (1 + (j - 1) * c)) ** (1 / a)
    mean = s * ((1 - c) * (1 - 1 / s)) ** (1 / a)
    return np.asarray(np.minimum(members, mean))


def direction(h: int, f: int, c: float, r: float, lam: float = 0.0, a: float = 2.0) -> Direction:
    """The best of these for m = 1: the plane of the two means, one member, the difference of two from either group.

    At equal norms g_i - g_j is orthogonal to g_i + g_j, so no pair gains from what its two gradients share: the pairs
    of a group give nothing to u = cos t u_H + sin t u_F, where with R_k = (1 + (k - 1) cosine)/k

        data  = h (1 - cos^2 t R_h)^(1/a) + f (1 - sin^2 t R_f)^(1/a)
        pairs = lam/(p - 1) [h(h-1) + f(f-1) + 2hf (1 - (cos t sqrt R_h - sin t sqrt R_f)^2/2)^(1/a)]

    With lam -> infinity u is the difference of the means, tan^2 t = R_f/R_h, and explains R_h/(R_h + R_f) of the honest
    mean: the less, the looser the honest. In about 300 random cases (f <= 5, h <= 12, lam up to 60, a = 1, 2, 4) IRLS
    from 41 starts found a lower direction in 7, six of them near this plane with one faulty member ahead of its group.
    """
    check_integer("f", f, 1)
    Options(1, lam=lam, a=a)  # checks them
    problem = build_problem(two_groups(h, f, c, r), 1, lam, a)
    faulty, honest = problem.terms[:, :f], problem.terms[:, f : f + h]
    means = np.column_stack([group.mean(axis=1) / np.linalg.norm(group.mean(axis=1)) for group in (honest, faulty)])

    def objectives(U: Vectors) -> Float64[np.ndarray, " k"]:
        values: np.ndarray = problem.factors @ np.maximum(1 - (problem.terms.T @ U) ** 2, 0.0) ** (1 / a)
        return values

    low, high = -np.pi / 2, 0.0  # the pairs want the means apart, and the data do not mind
    for _ in range(_ROUNDS):
        angles = np.linspace(low, high, _ANGLES)
        plane = means @ np.stack([np.cos(angles), np.sin(angles)])
        t = int(objectives(plane).argmin())
        low, high = angles[max(t - 1, 0)], angles[min(t + 1, _ANGLES - 1)]
    U = np.column_stack([plane[:, t], honest[:, -1], faulty[:, 0], honest[:, -1] - faulty[:, 0]])
    U /= np.linalg.norm(U, axis=0)
    costs = objectives(U)
    best = int(costs.argmin())
    x, y = means.T @ U[:, best]
    return Direction(KINDS[best], float(costs[best]), float(x**2), float(y**2), float(np.degrees(np.arctan2(y, x))))


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
    has no reason to follow the suspected; below 0 it prefers them. For lam = 0 only: with pairs the best columns are
    differences of the two groups, and belong to neither. Raises ValueError where either group is empty.
    """
    gram = Gram.from_inner_products(np.asarray(K, dtype=np.float64))
    Options(m, a=a)  # checks them
    rows = np.zeros(gram.p, dtype=bool)
    rows[list(suspected)] = True
    check("suspected", sorted(suspected), 0 < int(rows.sum()) < gram.p, f"some, and not all, of {gram.p} gradients")
    problem = build_problem(gram, m, 0.0, a)
    theirs, others = (_orthonormal(problem.terms[:, : gram.p][:, group]) for group in (rows, ~rows))
    first = _descend(problem, theirs, 1, theirs[:, :0])
    with_them = np.hstack([first, _descend(problem, _orthonormal(others - first @ (first.T @ others)), m - 1, first)])
    without = _descend(problem, others, m, others[:, :0])
    return _value(problem, with_them) - _value(problem, without)


def _choices(h: int, f: int, c: Cosines, r: Cosines, m: int, a: float) -> Float64[np.ndarray, "choice ..."]:
    """Eq. 5 for each number of columns that the faulty group may get, from max(0, m - h) to min(m, f)."""
    _check(h, f, c, r)
    check_integer("m", m, 1)
    check("m", m, m <= h + f, f"at most h + f = {h + f}")
    counts = range(max(0, m - h), min(m, f) + 1)
    return np.stack([np.add(*np.broadcast_arrays(group_cost(f, r, j, a), group_cost(h, c, m - j, a))) for j in counts])


def _check(h: int, f: int, c: Cosines, r: Cosines) -> None:
    check_integer("h", h, 1)
    check_integer("f", f, 0)
    for name, cosines in (("c", c), ("r", r)):
        check_real(name, np.min(cosines), 0)
        check(name, float(np.max(cosines)), bool(np.max(cosines) <= 1), "at most 1")


def _descend(problem: Problem, span: Vectors, m: int, there: np.ndarray) -> Float64[np.ndarray, "r m"]:
    """The best m columns in `span`, beside those that are `there`, of IRLS from equal weights and from each worker's
    own direction: with a > 1 that may be the optimum, of which IRLS from equal weights knows nothing.
    """
    if m == 0:
        return span[:, :0]
    inside = span.T @ problem.terms

    def weights(Y: Vectors) -> Float64[np.ndarray, " T"]:
        return problem.weights(problem.residuals(complement(np.hstack([there, Y]))))

    def limit(start: Float64[np.ndarray, " T"]) -> Float64[np.ndarray, "r m"]:
        for _ in range(_STEPS):
            Y: np.ndarray = span @ np.linalg.eigh((inside * (problem.factors * start)) @ inside.T)[1][:, -m:]
            before, start = start, weights(Y)
            if np.allclose(start, before, rtol=1e-12, atol=0.0):
                break
        return Y

    own = inside[:, np.linalg.norm(inside, axis=0) > _ABSENT]
    starts = [np.ones_like(problem.factors), *(weights(_orthonormal(span @ part[:, None])) for part in own.T)]
    return min((limit(start) for start in starts), key=lambda Y: _value(problem, np.hstack([there, Y])))


def _value(problem: Problem, Y: Vectors) -> float:
    return problem.objective(problem.residuals(complement(Y)))


def _orthonormal(vectors: Vectors) -> Float64[np.ndarray, "r s"]:
    left, sizes, _ = np.linalg.svd(vectors, full_matrices=False)
    spanning: np.ndarray = left[:, sizes > 1e-9 * sizes.max(initial=0.0)]
    return spanning
