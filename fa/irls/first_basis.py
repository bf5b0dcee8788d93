"""The random first basis of the released code, from which its one step of IRLS has its weights.

There the first Y is a random matrix (n, m), made orthonormal. Its explained variances of p unit gradients depend on Y
only through Q^T Y, with an orthonormal basis Q (n, r) of their span. For a Gaussian matrix Z (n, m),

    Q^T Y = A (A^T A + W)^(-1/2),     A = Q^T Z (r, m) Gaussian,     W = Z^T Z - A^T A Wishart with n - r degrees

so no array of size n is built. v_i has mean m/n and variance of about 2 m/n^2. The weights (1 - v_i)^(-1/2) are
therefore nearly equal for large n.

The released code draws the entries of Z uniformly from [-1/2, 1/2); the distribution of Y differs little from the
Gaussian's, which is uniform over all subspaces.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from fa.irls.problem import Problem
from fa.utils.validation import check

_DIRECT = 200  # Rows of Z outside the span up to which they are drawn themselves, instead of their Wishart matrix.

Square = Float64[np.ndarray, "m m"]


def random_first_basis(n: int, seed: int) -> Callable[[Problem], Float64[np.ndarray, " T"]]:
    """Return the weights of the first step at a random basis, as a start for `fa.irls.solve_gram`.

    Args:
        n: Number of coordinates.
        seed: Seed of the basis.

    Returns:
        A function from the problem to the weights (1 - ||Y^T t_k||^2)^(1/a - 1) of its terms.
    """

    def weights(problem: Problem) -> Float64[np.ndarray, " T"]:
        r = len(problem.terms)
        check("m", problem.m, problem.m <= n, f"at most the {n} coordinates, with a random first basis")
        generator = np.random.default_rng(seed)
        A = generator.standard_normal((r, problem.m))
        moment = A.T @ A + wishart(problem.m, n - r, generator)
        eigenvalues, vectors = np.linalg.eigh(moment)
        inside = A @ (vectors / np.sqrt(eigenvalues)) @ vectors.T
        lengths = np.square(inside.T @ problem.terms).sum(axis=0)
        explained = np.bincount(problem.owner, lengths, minlength=problem.factors.size)
        return problem.weights(1 - explained)

    return weights


def wishart(m: int, degrees: int, generator: np.random.Generator) -> Square:
    """Draw B^T B for a Gaussian matrix B (degrees, m).

    Args:
        m: Number of columns.
        degrees: Number of rows, at least 0.
        generator: Generator to draw from.

    Returns:
        The matrix (m, m). For many rows it is drawn by Bartlett's decomposition.
    """
    if degrees <= max(_DIRECT, m):
        B = generator.standard_normal((degrees, m))
        return np.asarray(B.T @ B)
    factor = np.tril(generator.standard_normal((m, m)), -1)
    factor[np.diag_indices(m)] = np.sqrt(generator.chisquare(degrees - np.arange(m)))
    return np.asarray(factor @ factor.T)
