"""The right multiplication with full n x p matrices, first and second order against pymanopt and finite differences."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pymanopt.manifolds import Grassmann

from fa import irls
from fa.gradients.measurement import measure
from fa.rules.krum_scores import bulyan_selection
from fa.theory import optimality
from tests import reference


def shifted(p, n, seed=0, shift=0.4):
    return np.random.default_rng(seed).standard_normal((p, n)) + shift


def converged(G, **options):
    return irls.solve(G, **({"tol": 1e-15, "max_iter": 5000} | options))


def terms(G, lam):
    """Eq. 5's factors and unit vectors, as it stands in the paper: each pair twice."""
    p = len(G)
    pairs = list(itertools.permutations(range(p), 2)) if lam else []
    vectors = [*G, *(G[i] - G[j] for i, j in pairs)]
    return np.array([1.0] * p + [lam / (p - 1)] * len(pairs)), np.array([v / np.linalg.norm(v) for v in vectors])


def derivatives(G, lam, a):
    """The Euclidean gradient at Y and Hessian along D of sum_k c_k (1 - ||Y^T t_k||^2)^(1/a)."""
    c, T = terms(G, lam)

    def left(Y):
        return 1 - np.square(T @ Y).sum(axis=1)

    def gradient(Y):
        return -2 / a * T.T @ ((c * left(Y) ** (1 / a - 1))[:, None] * (T @ Y))

    def hessian(Y, D):
        change = -2 * ((T @ Y) * (T @ D)).sum(axis=1)
        bent = c * (1 / a - 1) * left(Y) ** (1 / a - 2) * change
        straight = c * left(Y) ** (1 / a - 1)
        return -2 / a * T.T @ (bent[:, None] * (T @ Y) + straight[:, None] * (T @ D))

    return gradient, hessian


@pytest.mark.parametrize("a", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("lam", [0.0, 7.0])
def test_reconstruction_is_a_right_multiplication(a, lam):
    G = shifted(7, 40) * np.logspace(-2, 2, 7)[:, None]
    solution = converged(G, lam=lam, a=a)
    found = optimality.right_multiplication(solution)
    Y = G.T @ solution.coefficients
    assert found.violation < 1e-6
    np.testing.assert_allclose(Y @ (Y.T @ G.T), G.T @ found.R, rtol=0, atol=1e-6 * np.abs(G).max())
    np.testing.assert_allclose(found.R.sum(axis=1) / 7, solution.weights(), rtol=0, atol=1e-6 * np.abs(found.R).max())


@pytest.mark.parametrize("lam", [0.0, 7.0])
def test_r_is_made_of_the_multipliers(lam):
    """R = M G Y Lambda^-1 Y^T G^T, M = diag(w_i/||g_i||^2) + a Laplacian, all of it from the n x p matrix."""
    G, a = shifted(7, 40), 1.5
    solution = converged(G, m=3, lam=lam, a=a)
    Y = np.linalg.qr(G.T @ solution.coefficients)[0]
    c, T = terms(G, lam)
    left = T - (T @ Y) @ Y.T
    weights = c * np.square(left).sum(axis=1) ** (1 / a - 1)
    M = np.diag(weights[:7] / np.square(G).sum(axis=1))
    for (i, j), weight in zip(itertools.permutations(range(7), 2), weights[7:], strict=bool(lam)):
        apart = np.eye(7)[i] - np.eye(7)[j]
        M += weight / np.square(G[i] - G[j]).sum() * np.outer(apart, apart)
    Lambda = Y.T @ G.T @ M @ G @ Y
    R = M @ G @ Y @ np.linalg.inv(Lambda) @ Y.T @ G.T
    found = optimality.right_multiplication(solution)
    np.testing.assert_allclose(found.R, R, rtol=0, atol=1e-8 * np.abs(R).max())
    np.testing.assert_allclose(np.linalg.eigvalsh(found.Lambda), np.linalg.eigvalsh(Lambda), rtol=1e-8)


def test_a_constant_regularizer_is_no_pair():
    G = shifted(7, 40)
    plain, group = converged(G, m=3), converged(G, m=3, lam=5.0, regularizer="group")
    np.testing.assert_array_equal(optimality.right_multiplication(group).R, optimality.right_multiplication(plain).R)
    np.testing.assert_array_equal(
        optimality.second_order(group).eigenvalues, optimality.second_order(plain).eigenvalues
    )


def test_the_identity_fails_where_y_is_not_stationary():
    G = shifted(7, 40)
    assert optimality.right_multiplication(irls.solve(G, m=3, a=3.0, max_iter=1)).violation > 1e-2


def test_the_identity_with_several_gradients_a_worker_and_with_zeros():
    G = [shifted(2, 20), np.zeros((1, 20)), shifted(3, 20, 1), shifted(1, 20, 2)]
    solution = converged(G, m=2)
    rows = np.vstack(G)
    Y = rows.T @ solution.coefficients
    found = optimality.right_multiplication(solution)
    assert found.violation < 1e-6
    np.testing.assert_allclose(Y @ (Y.T @ rows.T), rows.T @ found.R, atol=1e-6)


def test_selection_is_a_right_multiplication():
    """Bulyan's second half on the columns of G^T S is the rule; the plain one has chosen the same."""
    G = shifted(11, 20)
    S = np.eye(11)[:, list(bulyan_selection(measure(torch.from_numpy(G))[0], 2))]
    assert S.shape == (11, 7)
    chosen = (G.T @ S).T
    np.testing.assert_allclose(reference.around(chosen, np.median(chosen, axis=0), 3), reference.bulyan(G, 2))
    assert not np.allclose(reference.around(G[:7], np.median(G[:7], axis=0), 3), reference.bulyan(G, 2))


@pytest.mark.parametrize("max_iter", [1, 5000], ids=["nowhere", "limit"])
@pytest.mark.parametrize(("m", "lam", "a"), [(1, 0.0, 2.0), (2, 0.0, 1.5), (2, 3.0, 1.5), (3, 0.0, 1.2)])
def test_the_spectrum_of_the_hessian_is_pymanopts(m, lam, a, max_iter):
    """All (n - m) m eigenvalues of the Hessian of the n x m problem, those outside span(G) too, wherever Y is."""
    p, n = 5, 8
    G = shifted(p, n, 3, shift=1.0)
    solution = converged(G, m=m, lam=lam, a=a, max_iter=max_iter)
    assert (1 - solution.values).min() > 1e-6  # nothing is smoothed
    ours = optimality.second_order(solution)
    Y = np.linalg.qr(G.T @ solution.coefficients)[0]
    gradient, hessian = derivatives(G, lam, a)
    manifold = Grassmann(n, m)
    Z = np.linalg.svd(Y)[0][:, m:]
    steps = [np.outer(Z[:, i], np.eye(m)[j]) for i in range(n - m) for j in range(m)]
    turned = [manifold.euclidean_to_riemannian_hessian(Y, gradient(Y), hessian(Y, step), step) for step in steps]
    matrix = np.array([[np.vdot(step, other) for other in turned] for step in steps])
    expected = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    found = np.sort(np.concatenate([ours.eigenvalues, np.tile(ours.outside, n - p)]))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    slope = manifold.euclidean_to_riemannian_gradient(Y, gradient(Y))
    assert ours.gradient_norm == pytest.approx(np.linalg.norm(slope), rel=1e-6, abs=1e-6)


@given(
    seed=st.integers(0, 1000),
    p=st.integers(2, 6),
    n=st.integers(2, 8),
    lam=st.sampled_from([0.0, 2.0]),
    a=st.sampled_from([1.5, 2.0, 3.0]),
)
def test_the_curvature_is_that_of_the_objective_along_geodesics(seed, p, n, lam, a):
    """Second differences of IRLS' own smoothed objective at its first step, in every direction at once."""
    G = shifted(p, n, seed)
    solution = irls.solve(G, m=1, lam=lam, a=a, max_iter=1)
    problem = irls.build_problem(solution.gram, 1, lam, a)
    ours = optimality.second_order(solution)
    unit = problem.basis.T @ solution.gram.cosines
    Y = np.linalg.qr(unit @ (solution.gram.norms[:, None] * solution.coefficients))[0]
    Z = np.linalg.svd(Y)[0][:, 1:]
    assume(problem.residuals(Z).min() > 1e-2)  # nearer to a term, the power bends faster than h resolves

    def objective(angle, direction):
        turned = np.cos(angle) * Y + np.sin(angle) * direction[:, None]
        return problem.smoothed_objective(problem.residuals(np.linalg.svd(turned)[0][:, 1:]))

    h = 1e-4
    second = sum((objective(h, z) + objective(-h, z) - 2 * objective(0.0, z)) / h**2 for z in Z.T)
    assert second == pytest.approx(ours.eigenvalues.sum(), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("seed", range(20))
def test_the_limit_is_a_second_order_point_of_random_problems(seed):
    p = 3 + seed % 5
    found = optimality.second_order(converged(shifted(p, 30, seed), m=1 + seed % ((p + 1) // 2)))
    assert found.gradient_norm < 1e-5 * found.eigenvalues[-1]
    assert found.smallest > -1e-6 * found.eigenvalues[-1]


def test_the_limit_need_not_be_a_second_order_point():
    """Two gradients at 30 degrees on either side of a line, a third across: equal weights lead to the line between the
    two, where IRLS stays, and which every turn towards one of them betters; it is no minimum at any a > 1.
    """
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    G = np.array([[c, s, 0, 0], [c, -s, 0, 0], [0, 0, 1, 0]])
    stuck = converged(G)
    found = optimality.second_order(stuck)
    assert stuck.converged
    assert stuck.objective == pytest.approx(1.0, abs=1e-12)
    assert found.gradient_norm < 1e-10
    assert found.smallest == pytest.approx(-1.0, abs=1e-6)
    assert irls.solve(G, restarts=20, max_iter=200).objective == pytest.approx(np.sin(np.pi / 3), abs=1e-5)


def test_where_y_is_all_of_the_span_only_the_outside_is_left():
    found = optimality.second_order(irls.solve(shifted(3, 9), m=3))
    assert found.eigenvalues.size == 0
    assert found.smallest == found.outside[0] > 0


@pytest.mark.parametrize("factor", [0.2, 0.9])
def test_the_rate_of_a_geometric_history(factor):
    assert optimality.rate([3 + factor**t for t in range(30)]) == pytest.approx(factor, rel=1e-3)
    for history in ([1.0, 1.0, 1.0], [1.0], []):
        assert np.isnan(optimality.rate(history))


def test_gradients_that_are_all_zero_have_no_eigenvalues():
    assert optimality.second_order(irls.solve(np.zeros((3, 4)))).smallest == 0
