"""The norms of Y: their proximal maps, and the solvers of eq. 5 with them."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymanopt.manifolds import Stiefel

from fa import irls, make_rule, objective
from fa.gradients.measurement import measure
from fa.kernels import stiefel
from fa.theory import algorithm1_line5
from tests.peers import lowest


def normal(n, m, seed=0):
    return np.random.default_rng(seed).standard_normal((n, m))


@pytest.mark.parametrize("t", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("name", ["l1", "rows"])
def test_the_proximal_map_is_the_minimiser_that_cvxpy_finds(name, t):
    """Of V = Y T + G^T C, with rows of Y that are 0; and what is returned beside it."""
    G, Y, T, C = normal(4, 9), normal(9, 3, 1), normal(3, 3, 2), normal(4, 3, 3)
    Y[:3], T, C = 0.0, (T + T.T) / 4, C / 4
    V, ours, Z = Y @ T + G.T @ C, np.empty((9, 3)), cp.Variable((9, 3))
    products, squares, moved, _, _ = stiefel.prox(G, Y, T, C, t, name == "rows", ours)
    norm = cp.sum(cp.abs(Z)) if name == "l1" else cp.sum(cp.norm(Z, 2, axis=1))
    cp.Problem(cp.Minimize(cp.sum_squares(Z - V) / 2 + t * norm)).solve(solver="CLARABEL")
    np.testing.assert_allclose(ours, Z.value, atol=1e-5)
    if t == 2.0:
        assert (ours == 0).all(axis=1).any()
    np.testing.assert_allclose(products, Y.T @ ours, atol=1e-12)
    assert (squares, moved) == (pytest.approx(np.sum(ours**2)), pytest.approx(np.sum((ours - Y) ** 2)))


@pytest.mark.parametrize("name", ["l1", "rows"])
def test_its_derivative_is_that_of_finite_differences(name):
    """The second one of ||Z||^2/2 along a symmetric S, from the blocks and the bend."""
    G, Y, T, C, S = normal(4, 9), normal(9, 3, 1), normal(3, 3, 2), normal(4, 3, 3), normal(3, 3, 4)
    T, S, Z = T + T.T, S + S.T, np.empty((9, 3))

    def half(step):
        return stiefel.prox(G, Y, T + step * S, C, 0.7, name == "rows", Z)[1] / 2

    *_, blocks, bend = stiefel.prox(G, Y, T, C, 0.7, name == "rows", Z)
    upper = S[np.triu_indices(3)]
    expected = sum(S[:, j] @ blocks[j] @ S[:, j] for j in range(3)) + upper @ bend @ upper
    assert (half(1e-4) + half(-1e-4) - 2 * half(0.0)) / 1e-8 == pytest.approx(expected, rel=1e-5)
    assert bend.any() == (name == "rows")


def solved(G, name, lam, **options):
    return irls.solve(G, lam=lam, regularizer=name, **options)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 10_000),
    p=st.integers(2, 7),
    n=st.integers(1, 12),
    m=st.integers(1, 4),
    lam=st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
    a=st.sampled_from([1.0, 2.0, 5.0]),
    name=st.sampled_from(["l1", "rows"]),
)
def test_every_step_lowers_the_smoothed_objective(seed, p, n, m, lam, a, name):
    G = normal(p, n, seed)
    solution = solved(G, name, lam, m=min(m, p), a=a, max_iter=12)
    assert (np.diff(solution.history) <= 0).all()
    Y = solution.Y
    np.testing.assert_allclose(Y.T @ Y, np.eye(Y.shape[1]), atol=1e-12)
    assert solution.objective == pytest.approx(
        objective.value(G, Y, lam, name, a), rel=1e-6, abs=solution.objective_error_bound
    )
    np.testing.assert_allclose(solution.values, objective.values(G, Y), atol=1e-9)
    assert solution.objective <= solution.history[-1] + 1e-9
    assert solution.coefficients is None


@pytest.mark.parametrize("name", ["l1", "rows"])
@pytest.mark.parametrize("lam", [0.2, 0.6])
def test_the_best_of_many_starts_is_that_of_a_grid(name, lam):
    """m = 1, n = 3: every direction within a degree of the sphere."""
    for seed in range(2):
        G = normal(5, 3, seed) + 1
        polar, around = np.meshgrid(np.linspace(0, np.pi, 181), np.linspace(0, np.pi, 181))
        y = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)]).reshape(3, -1)
        X = G / np.linalg.norm(G, axis=1, keepdims=True)
        norms = np.abs(y).sum(axis=0)  # of one column, rows are entries
        grid = (np.sqrt(np.maximum(1 - (X @ y) ** 2, 0)).sum(axis=0) + lam * norms).min()
        found = solved(G, name, lam, m=1, max_iter=50, restarts=4).objective
        assert grid - 0.05 <= found <= grid + 1e-9


@pytest.mark.parametrize("name", ["l1", "rows"])
def test_with_restarts_it_reaches_what_pymanopt_finds_with_the_norm_smoothed(name):
    """n = 6, m = 2; the smoothed norm is above the norm, so that the best of pymanopt's starts bounds from above."""
    for seed in range(2):
        G = normal(5, 6, seed)
        X = G / np.linalg.norm(G, axis=1, keepdims=True)

        def lengths(Y):
            return np.sqrt((np.square(Y) if name == "l1" else np.square(Y).sum(axis=1, keepdims=True)) + 1e-8)

        def left(Y, X=X):
            return np.sqrt(np.square(X - X @ Y @ Y.T).sum(axis=1, keepdims=True) + 1e-12)

        def cost(Y, left=left):
            return left(Y).sum() + 0.3 * lengths(Y).sum()

        def gradient(Y, X=X, left=left):  # of left: that of (1 - ||Y^T x||^2)^(1/2), the same on the manifold
            return -X.T @ (X @ Y / left(Y)) + 0.3 * Y / lengths(Y)

        theirs = lowest(Stiefel(6, 2), cost, gradient, starts=4, seed=100 + seed, steps=100)
        ours = solved(G, name, 0.3, m=2, max_iter=100, restarts=8)
        assert ours.objective <= theirs * (1 + 1e-3)


def test_a_large_weight_leaves_columns_of_one_entry():
    """sum_i |Y_ij| >= sqrt(sum_i Y_ij^2) = 1, with equality for unit vectors alone: R >= m."""
    solution = solved(normal(6, 30), "l1", 100.0, m=3, max_iter=100)
    assert (solution.Y != 0).sum(axis=0).tolist() == [1, 1, 1]
    assert np.abs(solution.Y).sum() == pytest.approx(3, abs=1e-12)


@pytest.mark.parametrize("name", ["l1", "rows"])
def test_a_small_weight_leaves_the_plain_solution(name):
    G = normal(6, 30)
    plain = irls.solve(G, m=3, max_iter=50)
    assert solved(G, name, 0.0, m=3, max_iter=50).coefficients is not None
    assert solved(G, name, 1e-7, m=3, max_iter=50).objective == pytest.approx(plain.objective, abs=1e-4)


def test_columns_norms_are_constant():
    G = normal(6, 30)
    plain, group = irls.solve(G, m=3), solved(G, "group", 2.0, m=3)
    assert group.objective == pytest.approx(plain.objective + 6.0)
    np.testing.assert_array_equal(group.coefficients, plain.coefficients)
    Y = G.T @ group.coefficients
    assert group.objective == pytest.approx(objective.value(G, Y, 2.0, "group"))


@pytest.mark.parametrize("name", ["l1", "rows"])
def test_a_gradient_near_nothing_counts_by_its_direction(name):
    """Its square is 0 in float64, its cosines are not."""
    G = np.random.default_rng(0).standard_normal((4, 10))
    G[0] *= 1e-200
    solution = irls.solve(G, m=2, lam=0.05, regularizer=name, max_iter=10)
    assert solution.objective == pytest.approx(
        objective.value(G, solution.Y, 0.05, name), abs=solution.objective_error_bound
    )
    assert solution.values[0] == pytest.approx(objective.values(G, solution.Y)[0])


def test_what_leaves_the_objective_as_it_is():
    """l1: permutations of the coordinates and their signs, not rotations of Y; rows: rotations of Y as well."""
    G, Y = normal(6, 9), np.linalg.qr(normal(9, 3))[0]
    order, signs = np.random.default_rng(1).permutation(9), np.sign(normal(9, 1))
    turned = Y @ np.linalg.qr(normal(3, 3))[0]
    for name in ("l1", "rows"):
        given = objective.value(G, Y, 1.0, name)
        assert objective.value((G * signs.T)[:, order], (Y * signs)[order], 1.0, name) == pytest.approx(given)
        assert (objective.value(G, turned, 1.0, name) == pytest.approx(given)) == (name == "rows")


@pytest.mark.parametrize("name", ["l1", "rows"])
def test_the_rule_takes_arrays_and_tensors_of_every_dtype(name):
    G = normal(7, 40)
    rule = make_rule("fa", m=3, lam=0.3, regularizer=name, preaggregators=(), max_iter=8)
    result = rule.aggregate(G)
    solution = solved(G, name, 0.3, m=3, max_iter=8)
    np.testing.assert_allclose(result.direction, solution.Y @ (solution.Y.T @ G.mean(axis=0)), atol=1e-12)
    np.testing.assert_allclose(result.decision.values, solution.values, atol=1e-9)
    assert result.decision.weights is None
    for dtype, digits in ((torch.float64, 1e-9), (torch.float32, 1e-4), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)):
        tensor = torch.from_numpy(G).to(dtype)
        d = rule(tensor)
        assert d.dtype == dtype
        exact = rule(tensor.double())
        np.testing.assert_allclose(d.double(), exact, rtol=0, atol=digits * float(exact.abs().max()))
    single = solved(G.astype(np.float32), name, 0.3, m=3)
    assert single.Y.dtype == single.direction().dtype == np.float32
    bad = np.vstack([G, np.full((1, 40), np.nan)])
    left = rule.aggregate(bad)
    np.testing.assert_allclose(left.direction, result.direction, atol=1e-12)
    assert np.isnan(left.decision.values[7])


def test_a_start_is_the_basis_to_begin_with():
    G = normal(6, 30)
    Y = solved(G, "l1", 0.5, m=3, max_iter=100).Y
    again = solved(G, "l1", 0.5, m=3, max_iter=1, start=Y)
    assert again.objective <= objective.value(G, Y, 0.5, "l1") + 1e-12
    with torch.device("meta"):  # the default device of new tensors
        np.testing.assert_array_equal(solved(G, "l1", 0.5, m=3, max_iter=1, start=Y).Y, again.Y)
    with pytest.raises(ValueError, match=r"^start must be .*\(30, 3\).*\(30, 2\)"):
        solved(G, "l1", 0.5, m=3, start=Y[:, :2])
    gram, _ = measure(torch.from_numpy(G))
    with pytest.raises(ValueError, match=r"^regularizer must be .*'rows'"):
        irls.solve_gram(gram, irls.Options(lam=1.0, regularizer="rows"))
    with pytest.raises(ValueError, match=r"\bl1\b"):
        again.weights()
    assert solved(np.zeros((3, 4)), "l1", 1.0).objective == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_line_5_of_the_paper_is_no_descent(sign):
    """Either sign: eq. 5 rises in some step, and the end is above the monotone solver's."""
    G = normal(8, 60)
    printed = algorithm1_line5.path(G, "l1", 0.3, m=3, steps=10, sign=sign)
    assert printed.rises > 0
    assert solved(G, "l1", 0.3, m=3, max_iter=30).objective < printed.objectives[-1]


def test_line_5_takes_what_the_solver_takes():
    with pytest.raises(ValueError, match=r"^G must be .*\bfloat16\b.*\bint64\b"):
        algorithm1_line5.path(np.ones((3, 4), dtype=int), "l1", 0.1)
