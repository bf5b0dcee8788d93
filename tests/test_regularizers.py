"""The norms of Y: their proximal maps, and the solvers of eq. 5 with them."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from fa import regularizers


def normal(n, m, seed=0):
    return np.random.default_rng(seed).standard_normal((n, m))


@pytest.mark.parametrize("t", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("name", regularizers.NAMES)
def test_the_proximal_map_is_the_minimiser_that_cvxpy_finds(name, t):
    V = normal(7, 3)
    Z = cp.Variable(V.shape)
    norms = {"l1": cp.sum(cp.abs(Z)), "group": cp.sum(cp.norm(Z, 2, axis=0)), "rows": cp.sum(cp.norm(Z, 2, axis=1))}
    cp.Problem(cp.Minimize(cp.sum_squares(Z - V) / 2 + t * norms[name])).solve(solver="CLARABEL")
    ours = regularizers.prox(name, torch.from_numpy(V), t)
    np.testing.assert_allclose(ours, Z.value, atol=1e-5)
    if t == 2.0:
        assert (ours == 0).any()
    assert not regularizers.prox(name, torch.zeros(2, 3, dtype=torch.float64), t).any()
