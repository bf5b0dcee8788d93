"""Eq. 5 against its formula, autograd and finite differences; the Beta likelihood against scipy and pymanopt."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from pymanopt.manifolds import Grassmann

from fa import irls, objective
from fa.irls import regularizers
from fa.likelihood import Beta, fit
from tests.peers import lowest

NORMS = regularizers.NAMES


def normal(p, n, seed=0):
    return np.random.default_rng(seed).standard_normal((p, n)) + 0.3


def basis(n, m, seed=0):
    return np.linalg.qr(np.random.default_rng(seed + 99).standard_normal((n, m)))[0]


def formula(G, Y, lam, regularizer, a):
    """Eq. 5 letter by letter, in torch, so that autograd can go through it."""
    p = len(G)
    values = torch.stack([torch.trace(Y.T @ torch.outer(g, g) @ Y) / (g @ g) for g in G])
    norms = {
        "l1": lambda: Y.abs().sum(),
        "group": lambda: torch.stack([torch.linalg.vector_norm(column) for column in Y.T]).sum(),
        "rows": lambda: torch.stack([torch.linalg.vector_norm(row) for row in Y]).sum(),
        "pairwise": lambda: (
            sum(
                (1 - torch.trace(Y.T @ torch.outer(G[i] - G[j], G[i] - G[j]) @ Y) / (G[i] - G[j]).square().sum())
                ** (1 / a)
                for i in range(p)
                for j in range(p)
                if i != j
            )
            / (p - 1)
        ),
    }
    return ((1 - values) ** (1 / a)).sum() + lam * norms[regularizer]()


@pytest.mark.parametrize("a", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("regularizer", ["pairwise", *NORMS])
def test_value_and_gradient_are_the_formulas_and_autograds(regularizer, a):
    G, Y = torch.from_numpy(normal(5, 12)), torch.from_numpy(basis(12, 3)).requires_grad_()
    expected = formula(G, Y, 1.7, regularizer, a)
    (slope,) = torch.autograd.grad(expected, Y)
    assert objective.value(G, Y, 1.7, regularizer, a) == pytest.approx(float(expected.detach()), rel=1e-12)
    found = objective.gradient(G, Y, 1.7, regularizer, a)
    torch.testing.assert_close(found, slope, rtol=1e-10, atol=1e-10)


@given(
    seed=st.integers(0, 1000),
    regularizer=st.sampled_from(["pairwise", *NORMS]),
    a=st.sampled_from([1.0, 2.0, 3.0]),
    counts=st.lists(st.integers(1, 3), min_size=2, max_size=4),
    group_term=st.sampled_from(irls.GROUP_TERMS),
)
def test_the_gradient_is_the_slope_along_the_manifold(seed, regularizer, a, counts, group_term):
    """Central differences of the value along a curve of orthonormal bases, also with several gradients a worker."""
    n, rng = 9, np.random.default_rng(seed)
    G = [normal(k, n, seed + i) for i, k in enumerate(counts)]
    if regularizer == "pairwise":
        G = np.vstack(G)
    Y, turn = basis(n, 3, seed), rng.standard_normal((n, 3))
    turn -= Y @ (Y.T @ turn + turn.T @ Y) / 2  # a tangent of the Stiefel manifold

    def along(t):
        return objective.value(G, np.linalg.qr(Y + t * turn)[0] @ np.diag(signs), *options)

    signs = np.sign(np.diag(np.linalg.qr(Y)[1]))
    h, options = 1e-6, (2.0, regularizer, a, None, group_term)
    slope = np.vdot(objective.gradient(G, Y, *options), turn)
    assert (along(h) - along(-h)) / (2 * h) == pytest.approx(slope, rel=1e-4, abs=1e-4)


@given(
    seed=st.integers(0, 1000),
    lam=st.sampled_from([0.0, 0.5, 9.0]),
    a=st.sampled_from([1.0, 2.0, 4.0]),
    m=st.integers(1, 5),
)
def test_it_is_what_irls_reports(seed, lam, a, m):
    G = normal(5, 14, seed) * np.logspace(-3, 3, 5)[:, None]
    solution = irls.solve(G, m=m, lam=lam, a=a)
    Y = np.linalg.qr(G.T @ solution.coefficients)[0]
    found = objective.value(G, Y, lam, a=a)
    assert abs(found - solution.objective) <= 2 * solution.objective_error_bound + 1e-8
    np.testing.assert_allclose(objective.values(G, Y), solution.values, atol=1e-9)


def test_values_of_several_gradients_a_worker():
    G, Y = [normal(k, 10, k) for k in (1, 3, 2)], basis(10, 4)
    scaled = [g / np.linalg.norm(g) for g in G]
    expected = [np.trace(Y.T @ x.T @ x @ Y) for x in scaled]
    np.testing.assert_allclose(objective.values(G, Y), expected, rtol=1e-12)
    assert objective.value(G, Y) == pytest.approx(np.sqrt(1 - np.array(expected)).sum(), rel=1e-12)
    with pytest.raises(ValueError, match=r"^lam must be .*\b0\b.*\b1\.0\b"):
        objective.value(G, Y, lam=1.0)


def test_a_zero_gradient_and_an_equal_pair_add_nothing():
    G, Y = normal(4, 10), basis(10, 2)
    G[1], G[3] = 0.0, G[2]
    assert objective.values(G, Y)[1] == 1.0
    left = np.sqrt(1 - objective.values(G, Y))
    pairs = [G[0] - G[1], G[0] - G[2], G[0] - G[3], G[1] - G[2], G[1] - G[3]]
    apart = sum(np.sqrt(1 - objective.values(pair[None], Y)[0]) for pair in pairs)
    assert objective.value(G, Y, lam=3.0) == pytest.approx(left.sum() + 2 * apart, rel=1e-12)
    assert np.isfinite(objective.gradient(G, Y, lam=3.0)).all()


def test_no_square_leaves_the_range():
    G, Y = normal(3, 10), basis(10, 2)
    scaled = G * np.array([1e-200, 1.0, 1e200])[:, None]
    np.testing.assert_allclose(objective.values(scaled, Y), objective.values(G, Y), rtol=1e-12)
    assert np.isfinite(objective.value(scaled, Y, lam=1.0))


@pytest.mark.parametrize("term", irls.GROUP_TERMS)
@pytest.mark.parametrize("factors", [(1.0, 1e-7), (1e-165, 1e-165), (1e160, 1e140)])
def test_the_solver_agrees_for_several_gradients_of_any_norms(term, factors):
    G = [normal(2, 40) * np.array(factors)[:, None], *normal(6, 40, 1)]
    solution = irls.solve(G, group_term=term, max_iter=50)
    assert objective.value(G, solution.basis(), group_term=term) == pytest.approx(solution.objective, rel=1e-7)
    np.testing.assert_allclose(objective.values(G, solution.basis(), term), solution.values, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("distance", [1e-3, 1e-5, 6e-6, 3e-6, 2e-6, 1.6e-6, 1e-6, 3e-7, 0.0])
@pytest.mark.parametrize("p", [4, 15])
def test_two_gradients_that_nearly_agree_are_within_the_error_bound(p, distance, dtype):
    """The direction of their difference leaves the basis before their distance counts as 0."""
    G = 3 * normal(1, 40) + 0.05 * normal(p, 40, 1)
    across = normal(1, 40, 2)[0]
    across -= across @ G[0] / (G[0] @ G[0]) * G[0]
    G[1] = G[0] + distance * np.linalg.norm(G[0]) / np.linalg.norm(across) * across
    G = G.astype(dtype)
    solution = irls.solve(G, m=2, lam=float(p), max_iter=50)
    found = objective.value(G.astype(np.float64), solution.basis(G.astype(np.float64)), lam=float(p))
    assert abs(found - solution.objective) <= solution.objective_error_bound + 1e-7
    if distance > 1.5e-6:
        assert solution.objective_error_bound < 0.02 * p


def test_a_basis_of_float32_gradients_is_as_accurate_as_float32():
    G = (normal(1, 2000) + 1e-5 * normal(8, 2000, 1)).astype(np.float32)
    solution = irls.solve(G)
    exact = np.linalg.qr(G.T.astype(np.float64) @ solution.coefficients)[0]
    np.testing.assert_allclose(solution.basis(), exact, atol=1e-6)
    G = normal(6, 30).astype(np.float32)
    G[0] *= np.float32(1e-41)
    assert np.isfinite(irls.solve(G).basis()).all()


def test_what_is_reproduced_has_no_residual():
    """1 less a rounded v would leave sqrt(1e-16) of each gradient."""
    G = normal(3, 50)
    Y = np.linalg.qr(G.T)[0]
    assert objective.value(G, Y, lam=3.0) < 1e-13


@pytest.mark.parametrize(
    ("G", "Y", "options", "message"),
    [
        (normal(3, 5), 1.1 * basis(5, 2), {}, r"^Y must .*\b2\.1e-01\b"),
        (normal(3, 5), basis(6, 2), {}, r"^Y must be .*\(5, m\).*\(6, 2\)"),
        (normal(3, 5) * np.nan, basis(5, 2), {}, r"^G must be .*\b0, 1, 2\b"),
        (normal(3, 5), basis(5, 2), {"a": 0.0}, r"^a must be .*\b0\.0\b"),
        (normal(3, 5), basis(5, 2), {"lam": -1.0}, r"^lam must be .*-1\.0\b"),
        (normal(3, 5), basis(5, 2), {"regularizer": "pairs"}, r"^regularizer must be .*\bpairwise, .*'pairs'"),
    ],
)
def test_refused_arguments_are_named(G, Y, options, message):
    with pytest.raises(ValueError, match=message):
        objective.value(G, Y, **options)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.5), (1.0, 1.0), (2.0, 5.0), (0.5, 0.5), (3.5, 0.7)])
def test_the_density_is_scipys(alpha, beta):
    v = np.linspace(0.001, 0.999, 101)
    law = scipy.stats.beta(alpha, beta)
    np.testing.assert_allclose(Beta(alpha, beta).density(v), law.pdf(v), rtol=1e-12)
    exact = -law.logpdf(v).sum() - len(v) * scipy.special.betaln(alpha, beta)
    assert Beta(alpha, beta).negative_log_likelihood(v) == pytest.approx(exact, rel=1e-12)


def test_eq_3_and_4_and_the_flag_median():
    """alpha = 1, beta = 1/2: eq. 3 exactly, eq. 4 for any a, and with a = 2 eq. 5 less the constant p."""
    v = np.random.default_rng(0).random(9)
    assert Beta().negative_log_likelihood(v) == pytest.approx(0.5 * np.log(1 - v).sum(), rel=1e-14)
    for a in (1.0, 2.0, 3.0, 10.0):
        eq4 = 0.5 * (a * (1 - v) ** (1 / a) - a).sum()
        assert Beta(a=a).negative_log_likelihood(v) == pytest.approx(eq4, rel=1e-12)
    G, Y = normal(7, 20), basis(20, 3)
    median = Beta(a=2.0).negative_log_likelihood(objective.values(G, Y))
    assert median == pytest.approx(objective.value(G, Y) - 7, rel=1e-12)


def test_eq_4_tends_to_the_logarithm_from_above():
    v = np.linspace(0.01, 0.99, 50)
    errors = [Beta(a=a).negative_log_likelihood(v) - Beta().negative_log_likelihood(v) for a in (1, 2, 9, 99, 999)]
    assert np.all(np.diff(errors) < 0)
    assert 0 < errors[-1] < 0.1


def test_the_exact_likelihood_has_no_bound_and_eq_4_has():
    assert Beta().negative_log_likelihood(np.array([0.5, 1.0])) == -np.inf
    assert Beta(a=2.0).negative_log_likelihood(np.ones(4)) == -4.0


@pytest.mark.parametrize("law", [Beta(2, 3), Beta(2, 0.5, 2.0), Beta(0.5, 3, 5.0)], ids=str)
@pytest.mark.parametrize("v", [0.3, 0.9, 1 - irls.FLOOR / 2, irls.FLOOR / 2])
def test_slopes_are_those_of_the_smoothed_likelihood(law, v):
    """Central differences, also where 1 - v or v is below the floor."""
    v, rest = (v, 1 - v) if v < 0.5 else (v, max(1 - v, irls.FLOOR / 2))
    h = 1e-3 * min(v, rest)
    ends = [law.smoothed(np.array([v + t]), np.array([rest - t])) for t in (-h, h)]
    slope = law.slopes(np.array([v]), np.array([rest]))
    np.testing.assert_allclose((ends[1] - ends[0]) / (2 * h), slope, rtol=1e-4)


def test_gradients_of_zeros_have_the_value_of_their_solution():
    zeros = np.zeros((3, 4))
    solution = irls.solve(zeros)
    for group_term in irls.GROUP_TERMS:
        assert objective.value(zeros, solution.basis(), group_term=group_term) == solution.objective == 0.0


def test_a_basis_of_no_columns_explains_nothing():
    G, none = normal(3, 5), np.empty((5, 0))
    for group_term in irls.GROUP_TERMS:
        np.testing.assert_allclose(objective.values(G, none, group_term), 0.0, atol=1e-15)
    assert objective.value(G, none) == pytest.approx(3.0)


def pymanopts_best(G, law, m, starts=4):
    """The lowest value of the smoothed likelihood that is found in n x m."""
    X = G / np.linalg.norm(G, axis=1, keepdims=True)

    def explained(Y):
        inside = X @ Y
        return np.square(inside).sum(axis=1), np.square(X - inside @ Y.T).sum(axis=1)

    def cost(Y):
        return law.smoothed(*explained(Y)).sum()

    def gradient(Y):
        return 2 * X.T @ (law.slopes(*explained(Y))[:, None] * (X @ Y))

    return lowest(Grassmann(G.shape[1], m), cost, gradient, starts, steps=100)


@pytest.mark.parametrize(
    "law",
    [Beta(1, 0.5, 2.0), Beta(2, 0.5, 2.0), Beta(2, 3), Beta(2, 2, 3.0), Beta(0.5, 2, 2.0), Beta(3, 0.5, 5.0)],
    ids=str,
)
def test_fit_finds_no_worse_a_basis_than_pymanopt(law):
    G = normal(6, 9)
    found = fit(G, law, m=2, restarts=4)
    assert found.objective <= pymanopts_best(G, law, 2) + 1e-5
    assert (np.diff(found.history) <= 0).all()
    np.testing.assert_allclose(found.Y.T @ found.Y, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(objective.values(G, found.Y), found.values, atol=1e-9)
    assert found.at_floor or found.objective == pytest.approx(law.negative_log_likelihood(found.values), rel=1e-9)


def test_the_most_likely_basis_may_lie_outside_the_span():
    """With beta > 1 and alpha = 1 the best v is 0: a basis across all gradients."""
    found = fit(normal(3, 9), Beta(1, 2), m=2)
    np.testing.assert_allclose(found.values, 0.0, atol=1e-9)
    assert found.objective == pytest.approx(0.0, abs=1e-9)


def test_no_lam_bounds_the_exact_likelihood():
    """It is minus infinity wherever a gradient is reproduced, and there eq. 5's pairwise term is at most lam p."""
    G = normal(6, 9)
    assert fit(G, Beta(), m=2, restarts=2).at_floor
    Y = np.linalg.qr(G[:2].T)[0]
    assert Beta().negative_log_likelihood(np.round(objective.values(G, Y), 12)) == -np.inf
    assert objective.value(G, Y, lam=600.0) - objective.value(G, Y) <= 600 * 6


@given(seed=st.integers(0, 500), alpha=st.sampled_from([0.5, 1.0, 3.0]), beta=st.sampled_from([0.5, 1.0, 2.0]))
def test_fit_never_rises(seed, alpha, beta):
    law = Beta(alpha, beta, 2.0)
    found = fit(normal(4, 6, seed), law, m=2, lam=1.0, restarts=0, max_iter=10)
    assert (np.diff(found.history) <= 0).all()


def test_fit_with_lam_is_eq_5():
    G = normal(4, 9)
    found = fit(G, Beta(a=2.0), m=2, lam=3.0, restarts=2)
    assert found.objective == pytest.approx(objective.value(G, found.Y, lam=3.0) - 4, abs=1e-4)
    assert found.objective <= irls.solve(G, m=2, lam=3.0, max_iter=200).objective - 4 + 1e-4


@pytest.mark.parametrize(
    ("name", "options"), [("alpha", {"alpha": 0.0}), ("beta", {"beta": -1.0}), ("a", {"a": np.nan})]
)
def test_a_law_that_is_none_is_refused(name, options):
    with pytest.raises(ValueError, match=f"^{name} must be .*"):
        Beta(**options)


@pytest.mark.parametrize(
    ("G", "options", "message"),
    [
        (normal(3, 5) * np.nan, {}, r"^G must be .*\b0, 1, 2\b"),
        (normal(3, 5), {"m": 4}, r"^m must be .*\b3\b.*\b4\b"),
        (normal(3, 5), {"restarts": -1}, r"^restarts must be .*-1\b"),
    ],
)
def test_fit_refuses_as_irls_does(G, options, message):
    with pytest.raises(ValueError, match=message):
        fit(G, Beta(), **options)
