"""The rules, and eq. 5, written plainly, from their papers, in float64 and without the Gram matrix."""

from itertools import combinations, permutations

import numpy as np


def mean(G, f):
    return G.mean(axis=0)


def median(G, f):
    return np.median(G, axis=0)


def trimmed_mean(G, f):
    return np.sort(G, axis=0)[f : len(G) - f].mean(axis=0)


def nearest_mean(column, centre, keep):
    """The mean of the `keep` numbers nearest the centre, the smaller first among equally near ones."""
    return np.mean(sorted(sorted(column), key=lambda x: abs(x - centre))[:keep])


def around(G, centre, keep):
    return np.array([nearest_mean(G[:, c], centre[c], keep) for c in range(G.shape[1])])


def meamed(G, f):
    return around(G, median(G, f), len(G) - f)


def phocas(G, f):
    return around(G, trimmed_mean(G, f), len(G) - f)


def krum_order(G, f, neighbours):
    """Rows by Krum score, the lowest row first among equal ones."""
    scores = []
    for i in range(len(G)):
        distances = sorted(np.sum((G[i] - G[j]) ** 2) for j in range(len(G)) if j != i)
        scores.append(sum(distances[:neighbours]))
    return sorted(range(len(G)), key=lambda i: scores[i])


def krum(G, f):
    return G[krum_order(G, f, len(G) - f - 2)[0]]


def multi_krum(G, f):
    return G[sorted(krum_order(G, f, len(G) - f - 2)[: len(G) - f - 2])].mean(axis=0)


def bulyan_selection(G, f):
    left, chosen = list(range(len(G))), []
    while len(chosen) < len(G) - 2 * f:
        best = krum_order(G[left], f, max(1, len(left) - f - 2))[0]
        chosen.append(left.pop(best))
    return sorted(chosen)


def bulyan(G, f):
    S = G[bulyan_selection(G, f)]
    return around(S, np.median(S, axis=0), len(S) - 2 * f)


def geometric_median(G, f, nu=None, steps=2000):
    """Weiszfeld's iteration from 0; nu is 1e-9 of the smallest radius of a majority unless it is given."""
    radii = [sorted(np.linalg.norm(x - y) for y in G)[len(G) // 2] for x in G]
    if nu is None and min(radii) == 0:
        return G[np.argmin(radii)]
    nu, z = 1e-9 * min(radii) if nu is None else nu, np.zeros(G.shape[1])
    for _ in range(steps):
        weights = 1 / np.maximum(np.linalg.norm(G - z, axis=1), nu)
        z = weights @ G / weights.sum()
    return z


def centered_clipping(G, f, tau=None, steps=10, start=None):
    v = np.zeros(G.shape[1]) if start is None else start
    for _ in range(steps):
        lengths = np.linalg.norm(G - v, axis=1)
        radius = np.median(lengths) if tau is None else tau
        v = v + np.mean([(g - v) * min(1.0, radius / d if d else 1.0) for g, d in zip(G, lengths, strict=True)], axis=0)
    return v


def minimum_diameter_averaging(G, f):
    distances = np.square(G[:, None] - G[None]).sum(axis=2)
    sets = combinations(range(len(G)), len(G) - f)
    return G[list(min(sets, key=lambda rows: distances[np.ix_(rows, rows)].max()))].mean(axis=0)


def caf(G, f, maximum="remaining"):
    c, best, least = np.ones(len(G)), G.mean(axis=0), np.inf
    while c.sum() > len(G) - 2 * f:
        mean = c @ G / c.sum()
        covariance = (G - mean).T @ np.diag(c / c.sum()) @ (G - mean)
        values, vectors = np.linalg.eigh(covariance)
        if values[-1] < least:
            best, least = mean, values[-1]
        tau = np.square((G - mean) @ vectors[:, -1])
        top = tau[c > 0].max() if maximum == "remaining" else tau.max()
        if top == 0:
            break
        c = c * np.maximum(1 - tau / top, 0)
    return best


def monna(G, f, reference=-1):
    distances = np.linalg.norm(G - G[reference], axis=1)
    return G[sorted(range(len(G)), key=lambda i: (distances[i], i))[: len(G) - f]].mean(axis=0)


def eq5(G, Y, lam=0.0, a=2.0):
    """Eq. 5 as it stands, (1 - v)^(1/a) for the square root, by the lengths of what Y leaves."""

    def term(x):
        x = x / max(np.linalg.norm(x), 1e-300)
        return np.linalg.norm(x - Y @ (Y.T @ x)) ** (2 / a)

    pairs = sum(term(x - y) for x, y in permutations(G, 2)) if lam else 0.0
    return sum(term(g) for g in G) + lam / max(len(G) - 1, 1) * pairs


def flag_median(G, m, lam, a, steps):
    """FlagIRLS on the (n, N) matrix of weighted terms itself, by singular value decompositions."""
    p = len(G)
    terms = [g / np.linalg.norm(g) for g in G]
    factors = [1.0] * p
    for i, j in combinations(range(p), 2) if lam else []:
        terms.append((G[i] - G[j]) / np.linalg.norm(G[i] - G[j]))
        factors.append(2 * lam / (p - 1))
    terms, factors = np.array(terms).T, np.array(factors)
    weights = np.ones(len(factors))
    for _ in range(steps):
        Y = np.linalg.svd(terms * np.sqrt(factors * weights), full_matrices=False)[0][:, :m]
        residuals = np.maximum(np.sum((terms - Y @ (Y.T @ terms)) ** 2, axis=0), 1e-12)
        weights = residuals ** (1 / a - 1)
    return Y


def fa_paper(G, m, lam=0.0, a=2.0, steps=5):
    Y = flag_median(G, m, lam, a, steps)
    return Y @ (Y.T @ G.sum(axis=0)) / len(G)


def released_basis(X, m, lam=0.0):
    """The released code's first step: columns x_i and lam/(p(p-1)) (x_i - x_j) for all i != j, unweighted."""
    p = X.shape[1]
    columns = [X] + [lam / (p * (p - 1)) * (X[:, [i]] - X[:, [j]]) for i in range(p) for j in range(p) if i != j]
    return np.linalg.svd(np.hstack(columns), full_matrices=False)[0][:, :m]


def fa_released(G, m, lam=0.0):
    X = (G / np.linalg.norm(G, axis=1, keepdims=True)).T
    Y = released_basis(X, m, lam)
    return (Y @ (Y.T @ X)).sum(axis=1) / m


RULES = {
    "mean": mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "meamed": meamed,
    "phocas": phocas,
    "krum": krum,
    "multi_krum": multi_krum,
    "bulyan": bulyan,
    "geometric_median": geometric_median,
    "centered_clipping": centered_clipping,
    "minimum_diameter_averaging": minimum_diameter_averaging,
    "caf": caf,
    "monna": monna,
}
