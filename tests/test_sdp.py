"""The relaxation and the certificate against the n x n program as it is written, and against feasible points."""

import re
import sys
from dataclasses import replace
from itertools import permutations

import cvxpy as cp
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fa import irls, sdp
from fa.gradients.measurement import measure
from fa.sdp import certificate, relaxation
from tests.reference import eq5

GIVEN = {
    "seed": st.integers(0, 10_000),
    "p": st.integers(1, 8),
    "n": st.integers(1, 12),
    "m": st.integers(1, 8),
    "lam": st.sampled_from([0.0, 0.5, 8.0]),
    "a": st.sampled_from([1.0, 1.3, 2.0, 5.0]),
    "kind": st.sampled_from(["plain", "offset", "twins", "zero", "scales", "equal"]),
}


def gradients(p, n, seed=0, kind="plain"):
    generator = np.random.default_rng(seed)
    G = generator.standard_normal((p, n))
    if kind == "offset":
        G += 3 * generator.standard_normal(n)
    if kind == "twins":
        G[p // 2 :] = G[: p - p // 2]
    if kind == "zero":
        G[0] = 0
    if kind == "scales":
        G *= 10.0 ** np.arange(-p, p, 2)[:, None]
    if kind == "equal":
        G[:] = G[0]
    return G


def posed(G, m, lam=0.0, a=2.0):
    return irls.build_problem(measure(torch.from_numpy(G))[0], m, lam, a)


def basis(n, m, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, m)))[0]


def n_by_n(groups, m, lam=0.0, a=2.0):
    """The relaxation in n dimensions, straight from eq. 5: ||(I - Z) X|| for sqrt(1 - tr(Y^T X X^T Y))."""
    p, n = len(groups), groups[0].shape[1]
    Z = cp.Variable((n, n), symmetric=True)

    def term(X):
        return cp.norm((np.eye(n) - Z) @ X.T / np.linalg.norm(X), "fro") ** (2 / a)

    loss = sum(term(X) for X in groups if X.any())
    different = [groups[i] - groups[j] for i, j in permutations(range(p), 2)] if lam else []
    loss += lam / max(p - 1, 1) * sum(term(X) for X in different if X.any())
    program = cp.Problem(cp.Minimize(loss), [Z >> 0, np.eye(n) - Z >> 0, cp.trace(Z) == m])
    return program.solve(solver="CLARABEL")


@pytest.mark.parametrize(
    ("p", "n", "m", "lam", "a", "kind"),
    [
        (5, 9, 2, 0.0, 2.0, "plain"),
        (5, 9, 1, 5.0, 2.0, "plain"),
        (4, 9, 1, 2.0, 2.0, "zero"),
        (6, 4, 2, 0.0, 2.0, "offset"),
        (6, 4, 1, 6.0, 2.0, "offset"),
        (6, 9, 2, 3.0, 2.0, "twins"),
        (5, 8, 2, 0.0, 1.5, "offset"),
        (4, 7, 1, 4.0, 1.25, "plain"),
    ],
)
def test_p_by_p_is_n_by_n(p, n, m, lam, a, kind):
    G = gradients(p, n, kind=kind)
    found = sdp.solve(G, m=m, lam=lam, a=a)
    expected = n_by_n(G[:, None, :], m, lam, a)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.bound >= expected * (1 - 1e-6)
    assert (found.solver, found.status) == ("CLARABEL", "optimal")


def test_several_gradients_a_worker():
    generator = np.random.default_rng(4)
    groups = [generator.standard_normal((k, 8)) for k in (1, 3, 2, 1)]
    solution = irls.solve(groups, m=2, max_iter=300, restarts=5)
    found = sdp.solve(groups, m=2)
    assert found.value == pytest.approx(n_by_n(groups, 2), rel=1e-6)
    assert found.bound == pytest.approx(found.value, rel=1e-6)
    assert found.bound * (1 - 5e-3) <= sdp.certify(groups, solution).bound <= solution.objective


@pytest.mark.parametrize("lam", [0.0, 1.0, 15.0])
@pytest.mark.parametrize(("p", "m", "kind"), [(7, 4, "plain"), (7, 2, "offset"), (15, 8, "offset"), (15, 3, "plain")])
def test_both_solvers_and_the_certificate_agree(p, m, lam, kind):
    G = gradients(p, 60, kind=kind)
    clarabel, scs = (sdp.solve(G, m=m, lam=lam, solver=solver) for solver in relaxation.SOLVERS)
    assert clarabel.bound == pytest.approx(clarabel.value, rel=1e-6)
    assert scs.value == pytest.approx(clarabel.value, rel=1e-5)
    assert scs.bound == pytest.approx(clarabel.bound, rel=1e-5)
    certificate = sdp.certify(G, irls.solve(G, m=m, lam=lam))
    assert clarabel.value * (1 - 5e-3) <= certificate.bound <= clarabel.value * (1 + 1e-7)


@pytest.mark.parametrize(("m", "lam"), [(4, 0.0), (6, 0.0), (8, 0.0), (7, 1.0)])
def test_the_certificate_holds_where_the_optimum_is_far_below_the_number_of_terms(m, lam):
    """Gradients in five clusters, a thousandth apart: every step's dual vectors are too long by more than the value."""
    generator = np.random.default_rng(7)
    G = gradients(5, 30)[[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]] + 1e-3 * generator.standard_normal((10, 30))
    exact = sdp.solve(G, m=m, lam=lam)
    assert exact.bound == pytest.approx(exact.value, rel=1e-3)
    found = sdp.certify(G, irls.solve(G, m=m, lam=lam, max_iter=200))
    assert exact.bound * (1 - 5e-3) <= found.bound <= exact.value * (1 + 1e-3)


@pytest.mark.parametrize(
    "alpha", [[1, 2, 3, 4], [1e-9, 1e-9, 1, 1e9], [-1e-20, -1e-25, -1e-26, 0.0, 1e-20, 7], [5, 5, 5]]
)
def test_the_water_level_makes_the_trace_right(alpha):
    """Also where rounding has made eigenvalues negative; against a search for the level."""
    alpha = np.array(alpha, dtype=float)
    for total in range(1, alpha.size):
        filled = certificate._water_fill(alpha, total)
        assert filled.sum() == pytest.approx(total, rel=1e-12)
        assert ((filled >= 0) & (filled <= 1)).all()
        low, high = -80.0, 40.0
        for _ in range(200):
            middle = (low + high) / 2
            short = np.minimum(1, np.exp(middle) / np.maximum(alpha, 1e-30 * alpha[-1])).sum() < total
            low, high = (middle, high) if short else (low, middle)
        np.testing.assert_allclose(filled, np.minimum(1, np.exp(low) / np.maximum(alpha, 1e-30 * alpha[-1])), atol=1e-9)


def test_z_is_feasible_and_its_basis_orthonormal():
    G = gradients(6, 30, kind="scales")
    found = sdp.solve(G, m=3, lam=6.0)
    Q = G.T @ found.basis
    np.testing.assert_allclose(Q.T @ Q, np.eye(6), atol=1e-10)
    eigenvalues = np.linalg.eigvalsh(found.Z)
    assert eigenvalues.min() > -1e-6
    assert eigenvalues.max() < 1 + 1e-6
    assert np.trace(found.Z) == pytest.approx(3, abs=1e-6)
    Y = Q @ np.linalg.eigh(found.Z)[1][:, -3:]
    assert found.rounded_objective == pytest.approx(eq5(G, Y, lam=6.0), rel=1e-8)
    polished = eq5(G, G.T @ found.coefficients, lam=6.0)
    assert found.polished_objective == pytest.approx(polished, rel=1e-8)
    assert found.bound <= found.polished_objective <= found.rounded_objective


@given(**GIVEN)
@settings(max_examples=200)
def test_no_subspace_is_below_the_certificate(seed, p, n, m, lam, a, kind):
    G = gradients(p, n, seed, kind)
    m = min(m, p)
    solution = irls.solve(G, m=m, lam=lam, a=a, max_iter=50)
    found = sdp.certify(G, solution)
    assert found.bound <= found.objective == solution.objective
    assert 0 <= found.gap <= 1
    for k in range(5):
        Y = basis(n, min(m, n), seed + k)
        assert found.bound <= eq5(G, Y, lam=lam, a=a)


@given(**GIVEN)
def test_any_u_gives_a_bound(seed, p, n, m, lam, a, kind):
    """Weak duality: of u that have nothing to do with the problem, and however long."""
    G = gradients(p, n, seed, kind)
    m = min(m, p, n)
    problem = posed(G, m, lam, a)
    generator = np.random.default_rng(seed)
    U = problem.terms * generator.random(problem.owner.size) * 2 + 0.1 * generator.standard_normal(problem.terms.shape)
    bound = certificate.lower_bound(problem, U * 10.0 ** generator.integers(-2, 3))
    assert bound <= eq5(G, basis(n, m, seed), lam=lam, a=a)
    assert bound <= irls.solve(G, m=m, lam=lam, a=a, max_iter=50).objective


@given(seed=st.integers(0, 10_000), r=st.integers(2, 6), scale=st.sampled_from([1e-8, 1.0, 1e8]))
@settings(max_examples=20)
def test_the_bound_is_below_what_fifty_digits_give(seed, r, scale):
    """The allowance for rounding covers the rounding."""
    generator = np.random.default_rng(seed)
    problem = posed(generator.standard_normal((r, 9)), int(generator.integers(1, r)), lam=float(r))
    U = scale * generator.standard_normal(problem.terms.shape)
    with mpmath.workdps(50):
        S = mpmath.zeros(r, r)
        for k, c in enumerate(problem.factors):
            u, t = mpmath.matrix(U[:, k].tolist()), mpmath.matrix(problem.terms[:, k].tolist())
            S += u * min(mpmath.mpf(1), c / mpmath.norm(u)) * t.T
        eigenvalues = sorted(mpmath.eigsy((S + S.T) / 2, eigvals_only=True))
        exact = sum(eigenvalues[: r - problem.m])
    assert certificate.lower_bound(problem, U) <= max(exact, 0)
    assert certificate.lower_bound(problem, U) == pytest.approx(float(max(exact, 0)), abs=1e-10)


def test_where_the_relaxation_is_exact_so_is_the_bound():
    """Orthonormal gradients: eq. 5 is p - m at best, and at Z = (m/p) I the relaxation is p - m too."""
    G = np.eye(9, 20)
    solution = irls.solve(G, m=4)
    for bound in (sdp.certify(G, solution).bound, sdp.solve(G, m=4).bound):
        assert bound <= 5
        assert bound == pytest.approx(5, abs=1e-6)


@pytest.mark.parametrize("a", [1.0, 1.2, 1.6, 2.0, 3.0, 10.0])
def test_what_is_certified_for_every_a(a):
    G = gradients(6, 20, kind="offset")
    found = sdp.certify(G, irls.solve(G, m=2, a=a, max_iter=200))
    exact = sdp.solve(G, m=2, a=a)
    X = G / np.linalg.norm(G, axis=1, keepdims=True)
    principal = np.linalg.eigvalsh(X @ X.T)[:-2].sum()
    assert found.certifies == exact.certifies
    assert exact.bound == pytest.approx(max(exact.value, principal), rel=1e-6)
    assert exact.bound * (1 - 5e-3) <= found.bound <= exact.bound * (1 + 1e-6)
    if a == 1:
        assert found.bound == pytest.approx(found.objective, rel=1e-10)
    if a > 2:
        assert re.findall(r"a = ([\d.]+\d|\d)", found.certifies) == ["2", f"{a:g}"]
        assert exact.value == pytest.approx(sdp.solve(G, m=2).value, rel=1e-9)
    else:
        assert re.findall(r"a = ([\d.]+\d|\d)", found.certifies) == [f"{a:g}"]


@pytest.mark.parametrize("lam", [0.0, 7.0])
def test_the_smooth_form_tends_to_the_exact_one_from_above(lam):
    G = gradients(7, 30)
    exact = sdp.solve(G, m=3, lam=lam)
    terms = 7 + lam * 7
    before = np.inf
    for eps in (1e-1, 1e-2, 1e-3, 1e-4):
        smooth = sdp.solve(G, m=3, lam=lam, eps=eps)
        assert exact.value * (1 - 1e-7) <= smooth.value <= exact.value + eps * terms
        assert exact.bound - eps * terms <= smooth.bound <= exact.value * (1 + 1e-7)
        assert smooth.value < before
        before = smooth.value


@pytest.mark.parametrize("lam", [0.0, 5.0])
def test_rotating_the_gradients_changes_nothing(lam):
    G = gradients(5, 12, kind="offset")
    turned = G @ basis(12, 12, seed=3)
    for first, second in [
        (sdp.solve(G, m=2, lam=lam).bound, sdp.solve(turned, m=2, lam=lam).bound),
        (
            sdp.certify(G, irls.solve(G, m=2, lam=lam)).bound,
            sdp.certify(turned, irls.solve(turned, m=2, lam=lam)).bound,
        ),
    ]:
        assert first == pytest.approx(second, rel=1e-6)


@pytest.mark.parametrize("lam", [0.0, 4.0])
@pytest.mark.parametrize(
    ("G", "m"),
    [
        (np.ones((1, 6)), 1),
        (np.zeros((4, 6)), 2),
        (np.ones((5, 6)), 1),
        (gradients(6, 3), 3),
        (gradients(6, 20, kind="twins"), 4),
        (gradients(3, 1), 2),
    ],
    ids=["one", "zeros", "equal", "rank", "twins", "line"],
)
def test_where_y_can_hold_every_gradient_the_bound_is_zero(G, m, lam):
    """And cvxpy is not asked."""
    solution = irls.solve(G, m=m, lam=lam)
    found = sdp.solve(G, m=m, lam=lam)
    assert (found.bound, found.rounded_objective, found.polished_objective) == (0, 0, 0)
    assert (found.solver, found.status) == ("none needed", "optimal")
    certified = sdp.certify(G, solution)
    assert (certified.bound, certified.gap) == (0, 0)


def test_float32_gradients_and_a_sequence():
    G = gradients(7, 500, kind="offset")
    solution = irls.solve(G, m=3)
    bound = sdp.certify(G, solution).bound
    assert sdp.certify(G.astype(np.float32), solution).bound == pytest.approx(bound, rel=1e-6)
    assert sdp.certify(list(G), irls.solve(list(G), m=3)).bound == bound


def test_other_regularizers_are_refused_unless_they_weigh_nothing():
    G = gradients(5, 20)
    solution = irls.solve(G, m=2)
    assert sdp.certify(G, replace(solution, regularizer="l1")).bound > 0
    for regularizer in ("l1", "group", "rows"):
        with pytest.raises(ValueError, match=f"^solution must be .*'{regularizer}'"):
            sdp.certify(G, replace(solution, regularizer=regularizer, lam=1.0))


def test_other_gradients_than_the_solutions_are_refused():
    G = gradients(5, 20)
    solution = irls.solve(G, m=2)
    with pytest.raises(ValueError, match=r"^G must be .*\b5\b.*\(1, 1, 1, 1, 1\).*\(1, 1, 1, 1\)"):
        sdp.certify(G[:4], solution)
    longer = G * np.array([1, 1, 1, 1, 2])[:, None]
    for others in (gradients(5, 20, seed=1), G[[1, 0, 2, 3, 4]], longer):
        with pytest.raises(ValueError, match=r"^G must be (?!.*\(1, 1).*\bsolution\b"):
            sdp.certify(others, solution)
    G[3, 2] = np.nan
    for call in (lambda: sdp.certify(G, solution), lambda: sdp.solve(G)):
        with pytest.raises(ValueError, match=r"^G must be .*\b3\b"):
            call()


def test_the_released_codes_pairs_are_not_certified_as_the_papers():
    G = gradients(5, 20)
    for lam in (0.0, 2.0):
        solution = irls.solve_gram(measure(torch.from_numpy(G))[0], irls.Options(lam=lam, max_iter=1), None, "released")
        if lam == 0:
            assert sdp.certify(G, solution).bound > 0
        else:
            with pytest.raises(ValueError, match=r"\bformulation must be .*'released'"):
                sdp.certify(G, solution)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"m": 6}, r"^m must be .*\b5\b.*\b6\b"),
        ({"eps": -1.0}, r"^eps must be .*-1\.0\b"),
        ({"solver": "SCX"}, r"^solver must be .*\bCLARABEL, SCS\b.*'SCX'.*'SCS'"),
        ({"a": 0.5}, r"^a must be .*\b0\.5\b"),
        ({"lam": -1.0}, r"^lam must be .*-1\.0\b"),
    ],
)
def test_values_out_of_range(options, match):
    with pytest.raises(ValueError, match=match):
        sdp.solve(gradients(5, 9), **options)


def test_without_cvxpy_the_certificate_is_there_and_the_program_says_what_to_install(monkeypatch):
    """That the module can be imported without it is a test in test_wheel.py."""
    for name in {"cvxpy", "scipy", *(name for name in sys.modules if name.partition(".")[0] in ("cvxpy", "scipy"))}:
        monkeypatch.setitem(sys.modules, name, None)
    G = gradients(5, 9)
    assert sdp.certify(G, irls.solve(G)).bound > 0
    with pytest.raises(ImportError, match=r"cvxpy.*pip install .*\[theory\]"):
        sdp.solve(G)


def test_a_solver_that_gives_up_is_an_error(monkeypatch):
    def give_up(self, **_):
        raise cp.error.SolverError("no")

    monkeypatch.setattr(cp.Problem, "solve", give_up)
    with pytest.raises(RuntimeError, match=r"\bSCS\b.*\bNone\b"):
        sdp.solve(gradients(5, 9), m=2, solver="SCS")


def test_where_one_solver_gives_up_the_other_is_asked(monkeypatch):
    solve, asked = cp.Problem.solve, []

    def clarabel_gives_up(self, solver, **options):
        asked.append(solver)
        if solver == "CLARABEL":
            raise cp.error.SolverError("no")
        return solve(self, solver=solver, **options)

    monkeypatch.setattr(cp.Problem, "solve", clarabel_gives_up)
    found = sdp.solve(gradients(5, 9), m=2)
    assert asked == ["CLARABEL", "SCS"]
    assert found.solver == "SCS"
    assert found.bound == pytest.approx(found.value, rel=1e-5)
