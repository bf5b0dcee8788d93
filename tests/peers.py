"""Peers that solve the same problems by other means."""

import numpy as np
import pymanopt
from pymanopt.manifolds import Grassmann
from pymanopt.optimizers import ConjugateGradient


def best_of_pymanopt(G, m, a=2.0, starts=50, seed=0):
    """The lowest value of eq. 5 (lam = 0) that conjugate gradients on the Grassmann manifold find, in span(G)."""
    X = G / np.linalg.norm(G, axis=1, keepdims=True)
    basis = np.linalg.qr(X.T)[0]
    T = basis.T @ X.T  # (r, p)
    manifold = Grassmann(T.shape[0], m)

    def residuals(Y):
        return np.maximum(np.square(T - Y @ (Y.T @ T)).sum(axis=0), 1e-12)

    @pymanopt.function.numpy(manifold)
    def cost(Y):
        return np.sum(residuals(Y) ** (1 / a))

    @pymanopt.function.numpy(manifold)
    def gradient(Y):
        return -2 / a * (T * residuals(Y) ** (1 / a - 1)) @ (T.T @ Y)

    problem = pymanopt.Problem(manifold, cost, euclidean_gradient=gradient)
    optimizer = ConjugateGradient(verbosity=0, max_iterations=300, min_gradient_norm=1e-7)
    generator = np.random.default_rng(seed)
    points = [np.linalg.qr(generator.standard_normal((T.shape[0], m)))[0] for _ in range(starts)]
    return min(optimizer.run(problem, initial_point=point).cost for point in points)


def instance(seed):
    """A small random problem: gradients G (p, n) and m."""
    generator = np.random.default_rng(seed)
    p = int(generator.integers(4, 10))
    n, m = int(generator.integers(p, 30)), int(generator.integers(1, p - 1))
    G = generator.standard_normal((p, n))
    return (G + generator.standard_normal(n), m) if generator.random() < 0.5 else (G, m)
