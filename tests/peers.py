"""Peers that solve the same problems by other means."""

import numpy as np
import pymanopt
from pymanopt.manifolds import Grassmann, Stiefel
from pymanopt.optimizers import ConjugateGradient


def lowest(manifold, cost, gradient, starts, seed=0, steps=300):
    """The lowest cost that conjugate gradients find on a manifold of bases, from random ones; a Euclidean gradient."""
    cost, gradient = (pymanopt.function.numpy(manifold)(function) for function in (cost, gradient))
    problem = pymanopt.Problem(manifold, cost, euclidean_gradient=gradient)
    optimizer = ConjugateGradient(verbosity=0, max_iterations=steps, min_gradient_norm=1e-7)
    generator = np.random.default_rng(seed)
    points = [np.linalg.qr(generator.standard_normal(manifold.zero_vector(None).shape))[0] for _ in range(starts)]
    return min(optimizer.run(problem, initial_point=point).cost for point in points)


def unit_in_span(G):
    """The unit gradients in an orthonormal basis of their span, (r, p)."""
    X = (G / np.linalg.norm(G, axis=1, keepdims=True)).T
    return np.linalg.qr(X)[0].T @ X


def best_of_pymanopt(G, dims, a=2.0, starts=50, seed=0):
    """The lowest value of eq. 5 (lam = 0) found in span(G), summed over the levels of a flag of these dimensions."""
    T = unit_in_span(G)

    def left(Y, m):
        return np.maximum(np.square(T - Y[:, :m] @ (Y[:, :m].T @ T)).sum(axis=0), 1e-12)

    def cost(Y):
        return sum(np.sum(left(Y, m) ** (1 / a)) for m in dims)

    def gradient(Y):
        total = np.zeros_like(Y)
        for m in dims:
            total[:, :m] -= 2 / a * (T * left(Y, m) ** (1 / a - 1)) @ (T.T @ Y[:, :m])
        return total

    manifold = (Grassmann if len(dims) == 1 else Stiefel)(len(T), dims[-1])
    return lowest(manifold, cost, gradient, starts, seed)


def instance(seed):
    """A small random problem: gradients G (p, n) and m."""
    generator = np.random.default_rng(seed)
    p = int(generator.integers(4, 10))
    n, m = int(generator.integers(p, 30)), int(generator.integers(1, p - 1))
    G = generator.standard_normal((p, n))
    return (G + generator.standard_normal(n), m) if generator.random() < 0.5 else (G, m)
