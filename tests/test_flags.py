"""Nested subspaces against IRLS, pymanopt and polar steps, and what must always hold."""

import numpy as np
import pytest

from fa import flags, irls


def normal(p, n, seed=0):
    return np.random.default_rng(seed).standard_normal((p, n))


def nested(G, Y, dims, lam=0.0, a=2.0):
    """The objective as it stands, of a basis Y (n, m_K)."""
    from fa import objective

    return sum(objective.value(G, Y[:, :m], lam=lam, a=a) for m in dims)


@pytest.mark.parametrize("a", [1.5, 2.0, 4.0])
@pytest.mark.parametrize("lam", [0.0, 3.0])
def test_one_level_is_irls(a, lam):
    G = normal(7, 40) + 0.5
    flag = flags.solve(G, (3,), lam=lam, a=a, max_iter=300)
    solution = irls.solve(G, m=3, lam=lam, a=a, max_iter=600)
    assert flag.objective == pytest.approx(solution.objective, rel=1e-6)
    assert flag.objective == pytest.approx(nested(G, G.T @ flag.coefficients, (3,), lam, a), rel=1e-9)
    np.testing.assert_allclose(flag.direction(), solution.direction(), atol=1e-5)
