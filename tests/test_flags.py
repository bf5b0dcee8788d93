"""Nested subspaces against IRLS, pymanopt and polar steps, what workers name, and what must always hold."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fa import flags, irls, objective
from fa.gradients.measurement import measure
from fa.rules import RULES, make_rule
from fa.sdp import certify
from tests import tensors
from tests.peers import best_of_pymanopt, unit_in_span


def normal(p, n, seed=0):
    return np.random.default_rng(seed).standard_normal((p, n))


def nested(G, flag, lam=0.0, a=2.0):
    """The objective as it stands, of a basis Y (n, m_K)."""
    Y = basis(G, flag)
    return sum(objective.value(G, Y[:, :m], lam=lam, a=a) for m in flag.dims)


def basis(G, solution):
    return np.vstack(G).T @ solution.coefficients


def polar_steps(G, dims, a, Y, steps):
    """The plain majorisation: linear in Y, whose minimiser is a polar factor. Y (r, m_K); the objective at the end."""
    T = unit_in_span(G)

    def left(Y, m):
        return np.maximum(np.square(T - Y[:, :m] @ (Y[:, :m].T @ T)).sum(axis=0), irls.FLOOR)

    for _ in range(steps):
        pull = np.zeros_like(Y)
        for m in dims:
            pull[:, :m] += (T * left(Y, m) ** (1 / a - 1)) @ (T.T @ Y[:, :m])
        U, _, Vt = np.linalg.svd(pull, full_matrices=False)
        Y = U @ Vt
    return sum(np.sum(left(Y, m) ** (1 / a)) for m in dims)


@pytest.mark.parametrize("a", [1.5, 2.0, 4.0])
@pytest.mark.parametrize("lam", [0.0, 3.0])
def test_one_level_is_irls(a, lam):
    G = normal(7, 40) + 0.5
    flag = flags.solve(G, (3,), lam=lam, a=a, max_iter=300)
    solution = irls.solve(G, m=3, lam=lam, a=a, max_iter=600)
    assert flag.objective == pytest.approx(solution.objective, rel=1e-6)
    np.testing.assert_allclose(flag.values, [solution.values], atol=1e-5)
    np.testing.assert_allclose(flag.direction(), solution.direction(), atol=1e-5)


def test_a_levels_resolution_is_that_of_its_own_terms():
    """Three of five gradients are reproduced: each may hide sqrt(1e-12), once; a close pair hides its term."""
    G = np.diag([1.0, 2, 3, 4, 5]) @ np.eye(5, 20)
    inner, outer = flags.solve(G, (1, 3)).levels
    assert inner.objective_error_bound == pytest.approx(1e-6)
    assert outer.objective_error_bound == pytest.approx(irls.solve(G, m=3).objective_error_bound) == pytest.approx(3e-6)
    G = normal(5, 20)
    G[1] = G[0] + 1e-8 * normal(1, 20, seed=1)[0]
    (level,) = flags.solve(G, (1,), lam=2.0).levels
    assert level.objective_error_bound == pytest.approx(2 * 2.0 / 4, rel=1e-5)


def test_one_level_takes_the_steps_of_irls():
    gram, _ = measure(torch.from_numpy(normal(6, 20) + 0.3))
    problem = irls.build_problem(gram, 2, 1.0, 3.0)
    Y = np.linalg.qr(normal(6, 6, seed=1))[0]
    ours = flags.step(problem, (2,), Y)[:, :2]
    theirs = irls.step(problem, problem.weights(problem.residuals(Y[:, 2:]))).Y
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-9)


@pytest.mark.parametrize("a", [1.0, 2.0, 5.0])
def test_every_step_lowers_the_objective_from_wherever_it_starts(a):
    """Whatever random flag it starts at; the steps from IRLS's end, where little is left to gain, could hide a rise."""
    dims = (1, 2, 4, 6)
    for seed in range(5):
        problem = irls.build_problem(measure(torch.from_numpy(normal(8, 12, seed)))[0], dims[-1], 0.0, a)
        Y = np.linalg.qr(normal(8, 8, seed=seed + 100))[0]
        smoothed = []
        for _ in range(20):
            smoothed.append(sum(problem.smoothed_objective(problem.residuals(Y[:, m:])) for m in dims))
            Y = flags.step(problem, dims, Y)
        assert (np.diff(smoothed) <= 1e-10 * smoothed[0]).all()
        assert smoothed[-1] < smoothed[0] - 0.5


@given(
    seed=st.integers(0, 10_000),
    p=st.integers(2, 8),
    n=st.integers(1, 12),
    dims=st.sets(st.integers(1, 8), min_size=1, max_size=4).map(sorted),
    lam=st.sampled_from([0.0, 0.5, 9.0]),
    a=st.sampled_from([1.0, 1.3, 2.0, 5.0, 10.0]),
)
def test_what_must_always_hold(seed, p, n, dims, lam, a):
    """Also where n < p, where the outermost level is all of span(G), and where gradients are reproduced exactly."""
    G = normal(p, n, seed)
    dims = [m for m in dims if m <= min(p, n)] or [1]
    flag = flags.solve(G, dims, lam=lam, a=a, tol=0.0, max_iter=15)
    assert len(flag.history) == 15
    assert (np.diff(flag.history) <= 1e-10 * (1 + flag.history[0])).all()
    assert flag.dims == tuple(dims)
    assert (np.diff(flag.values, axis=0) >= -1e-12).all()  # an inner level explains no more than an outer one
    Y = basis(G, flag)
    np.testing.assert_allclose(Y.T @ Y, np.eye(dims[-1]), atol=1e-9)
    for level, m in zip(flag.levels, dims, strict=True):
        np.testing.assert_allclose(level.values, objective.values(G, Y[:, :m]), atol=1e-9)
        assert level.objective == pytest.approx(
            objective.value(G, Y[:, :m], lam=lam, a=a), abs=3 * level.objective_error_bound + 1e-7
        )


@given(seed=st.integers(0, 10_000), a=st.sampled_from([1.5, 2.0, 4.0]))
def test_order_lengths_and_rotations_do_not_matter(seed, a):
    G, generator = normal(5, 8, seed), np.random.default_rng(seed + 1)
    flag = flags.solve(G, (1, 3), a=a, max_iter=10)
    order, lengths = generator.permutation(5), np.exp(generator.standard_normal(5))
    rotation = np.linalg.qr(generator.standard_normal((8, 8)))[0]
    other = flags.solve((lengths[:, None] * G)[order] @ rotation, (1, 3), a=a, max_iter=10)
    np.testing.assert_allclose(other.values, flag.values[:, order], atol=1e-6)
    assert other.objective == pytest.approx(flag.objective, abs=1e-6)


@pytest.mark.parametrize(("dims", "a"), [((1, 2), 2.0), ((1, 3, 5), 1.5), ((2, 4), 3.0)])
def test_it_finds_what_pymanopt_finds(dims, a):
    G = normal(7, 20, seed=dims[-1]) + 0.7 * normal(1, 20)
    flag = flags.solve(G, dims, a=a, max_iter=200, restarts=4)
    assert flag.objective <= best_of_pymanopt(G, dims, a, starts=3) * (1 + 1e-5)
    assert flag.objective == pytest.approx(nested(G, flag, a=a), rel=1e-9)


def test_polar_steps_from_its_end_gain_nothing():
    G = normal(7, 20)
    flag = flags.solve(G, (1, 3), max_iter=1000, tol=1e-13)
    X = (G / np.linalg.norm(G, axis=1, keepdims=True)).T
    end = np.linalg.qr(X)[0].T @ basis(G, flag)  # in the basis of unit_in_span
    before, after = (polar_steps(G, (1, 3), 2.0, end, steps) for steps in (0, 200))
    assert before == pytest.approx(flag.objective, abs=sum(level.objective_error_bound for level in flag.levels))
    assert after >= before - 1e-9


def test_each_level_is_a_solution_that_can_be_certified():
    """The levels' bounds add up to one for the nested problem, whose feasible set is smaller."""
    G = normal(6, 30) + 0.4
    flag = flags.solve(G, (1, 3))
    bounds = [certify(G, level).bound for level in flag.levels]
    alone = [irls.solve(G, m=m, max_iter=300, restarts=5).objective for m in flag.dims]
    assert sum(bounds) <= sum(alone) + 1e-6
    assert sum(alone) <= flag.objective + 1e-6
    for k, m in enumerate(flag.dims):
        Y = basis(G, flag)[:, :m]
        np.testing.assert_allclose(flag.direction(k), (G @ Y @ Y.T).mean(axis=0), atol=1e-12)
        unit = G / np.linalg.norm(G, axis=1, keepdims=True)
        np.testing.assert_allclose(flag.direction(k, "released"), (unit @ Y @ Y.T).sum(axis=0) / m, atol=1e-12)


def test_workers_with_several_gradients():
    G = [normal(k, 20, seed=k) for k in (1, 2, 4, 3)]
    flag = flags.solve(G, (1, 2, 6), max_iter=20)
    Y = basis(G, flag)
    for m, values in zip(flag.dims, flag.values, strict=True):
        plain = [np.linalg.norm(Y[:, :m].T @ (g / np.linalg.norm(g)).T) ** 2 for g in G]
        np.testing.assert_allclose(values, plain, atol=1e-10)
    assert flag.objective == pytest.approx(nested(G, flag), rel=1e-9)


def test_restarts_are_seeded_and_never_worse():
    G = normal(8, 20)
    once, more, again = (flags.solve(G, (1, 4), restarts=k, seed=3) for k in (0, 4, 4))
    assert more.objective <= once.objective
    assert more.history == again.history


@pytest.mark.parametrize("max_iter", [2, 500])
def test_each_level_has_converged_if_the_flag_has(max_iter):
    """The first level's own IRLS converges before the flag does."""
    flag = flags.solve(normal(9, 12), (1, 3, 5), max_iter=max_iter, tol=1e-4)
    assert flag.converged is (max_iter > 2)
    assert [level.converged for level in flag.levels] == [flag.converged] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_and_arrays_of_either_precision(dtype):
    G = tensors.normal(6, 40, dtype=dtype)
    flag, wide = flags.solve(G, (1, 3)), flags.solve(G.double().cpu().numpy(), (1, 3))
    np.testing.assert_allclose(flag.values, wide.values, atol=1e-5)
    assert (flag.direction(0).dtype, flag.direction(0).device) == (dtype, G.device)
    assert isinstance(wide.direction(0), np.ndarray)
    h = tensors.normal(40, 2, seed=1)
    relevant = [[1, 2, 39], None, h, np.arange(5), h.float(), torch.tensor([7], device=G.device)]
    for function in (flags.restrict, flags.hints):
        ours = function(G, relevant)
        theirs = function(G.double().cpu().numpy(), [e.cpu().numpy() if torch.is_tensor(e) else e for e in relevant])
        assert (ours.dtype, ours.device, theirs.dtype) == (dtype, G.device, np.float64)
        np.testing.assert_allclose(ours.double().abs().cpu(), np.abs(theirs), atol=1e-4)
    assert irls.solve(G, m=2, start=flags.hints(G, relevant, 2)).coefficients.shape == (6, 2)


@pytest.mark.parametrize(
    ("dims", "value"),
    [
        ((), r"\(\)"),
        (3, r"\b3\b"),
        ((0, 2), r"\b0\b"),
        ((1, 2.0), r"\b2\.0\b"),
        ((2, 2), r"\(2, 2\)"),
        ((3, 1), r"\(3, 1\)"),
        ((1, 5), r"\bp = 4\b.*\b5\b"),
        ((1, 4), r"\b3\b.*\b4\b"),
    ],
)
def test_dims_that_no_flag_has(dims, value):
    G = normal(4, 20)
    G[3] = G[0] + G[1]
    with pytest.raises(ValueError, match=rf"\bdims must be .*{value}"):
        flags.solve(G, dims)


def test_dims_may_be_an_array():
    G = normal(4, 20)
    assert flags.solve(G, np.array([1, 3])).dims == flags.solve(G, [1, 3]).dims == (1, 3)


def test_gradients_and_options_that_cannot_be():
    G = normal(4, 20)
    for (name, value), shown in {("restarts", -1): "-1", ("a", 0.5): r"0\.5", ("start", "none"): "'none'"}.items():
        with pytest.raises(ValueError, match=rf"^{name} must be .*{shown}"):
            flags.solve(G, (1, 2), **{name: value})
    G[2, 3] = np.nan
    for call in (lambda: flags.solve(G, (1, 2)), lambda: flags.hints(G, [[0]] * 4)):
        with pytest.raises(ValueError, match=r"^G must be .*\b2\b"):
            call()


def projector(entry, n):
    if entry is None:
        return np.eye(n)
    E = np.eye(n)[:, entry] if np.ndim(entry) == 1 else entry
    return E @ np.linalg.pinv(E)


RELEVANT = [[0, 3, 5], None, normal(12, 2, seed=5), [3, 3, 11], np.outer(normal(1, 12)[0], [1e-9, 1e9])]


def test_restricting_projects_each_worker_on_what_it_names():
    G = normal(5, 12)
    expected = np.array([projector(entry, 12) @ g for entry, g in zip(RELEVANT, G, strict=True)])
    np.testing.assert_allclose(flags.restrict(G, RELEVANT), expected, atol=1e-12)
    groups = [G[:2], G[2:3], G[3:]]
    for ours, rows, entry in zip(flags.restrict(groups, RELEVANT[:3]), groups, RELEVANT[:3], strict=True):
        np.testing.assert_allclose(ours, rows @ projector(entry, 12), atol=1e-12)
    for lone in ([g[None] for g in G], [G[0], *(g[None] for g in G[1:])]):
        ours = flags.restrict(lone, RELEVANT)
        assert [g.shape for g in ours] == [g.shape for g in lone]
        np.testing.assert_allclose(np.vstack(ours), expected, atol=1e-12)
    alone = flags.restrict([torch.from_numpy(g) for g in G], RELEVANT)
    np.testing.assert_allclose(torch.stack(alone), expected, atol=1e-12)
    layers = flags.restrict([{"w": g[:8].reshape(2, 4), "b": g[8:]} for g in G], RELEVANT)
    np.testing.assert_allclose(layers[2]["b"], expected[2, 8:], atol=1e-12)


def test_the_restricted_problem():
    """v_i = ||Y^T P_i g_i||^2/||P_i g_i||^2; what nobody names is left alone; the input is not written to."""
    G = normal(5, 12)
    kept = G.copy()
    relevant = [[0, 1, 2], [2, 3], [0, 5], [1], [6, 7, 0]]
    solution = irls.solve(flags.restrict(G, relevant), m=2, max_iter=20)
    Y = flags.restrict(G, relevant).T @ solution.coefficients
    for v, g, entry in zip(solution.values, G, relevant, strict=True):
        assert v == pytest.approx(np.sum((Y.T @ projector(entry, 12) @ g) ** 2) / np.sum(g[entry] ** 2))
    assert not solution.direction()[[4, 8, 9, 10, 11]].any()
    np.testing.assert_array_equal(G, kept)
    nothing = irls.solve(flags.restrict(np.eye(5, 12), [[9]] + [None] * 4), m=2)
    assert nothing.values[0] == 1  # a worker with nothing left is a zero gradient


@pytest.mark.parametrize("name", RULES)
def test_every_rule_takes_restricted_gradients(name):
    d = make_rule(name, f=0)(flags.restrict(normal(7, 12), [[0, 1, 2], [2, 3], [0, 5], [1], [6, 7, 0], [0, 1], [0, 2]]))
    assert np.isfinite(d).all()
    assert not d[[4, 8, 9, 10, 11]].any()


def test_hints_span_what_is_named_most_within_the_gradients():
    G = normal(5, 12)
    Y = flags.hints(G, RELEVANT, 3)
    span = np.linalg.qr(G.T)[0]
    moment = span.T @ sum(projector(e, 12) for e in RELEVANT if e is not None) @ span
    best = span @ np.linalg.eigh(moment)[1][:, -3:]
    np.testing.assert_allclose(Y.T @ Y, np.eye(3), atol=1e-10)
    np.testing.assert_allclose(Y @ Y.T, best @ best.T, atol=1e-8)


def test_hints_that_hold_the_answer_leave_nothing_to_do():
    """A worker that names the subspace where IRLS ends starts it there."""
    G = normal(6, 30) + 0.2
    end = irls.solve(G, m=2, max_iter=3000, tol=1e-14)
    start = flags.hints(G, [basis(G, end), *[None] * 5], 2)
    again = irls.solve(G, m=2, start=start, max_iter=2)
    assert again.objective == pytest.approx(end.objective, abs=1e-9)
    assert irls.solve(G, m=2, max_iter=2).objective > end.objective + 1e-6
    flag = flags.solve(G, (2,), start=start)
    assert flag.objective == pytest.approx(end.objective, abs=1e-9)


def test_hints_of_fewer_dimensions_than_m_and_of_none_in_the_gradients():
    G = np.hstack([normal(5, 11), np.zeros((5, 1))])
    assert flags.hints(G, [[4], [4], None, None, None], 3).shape == (12, 1)
    nowhere = flags.hints(G, [[11]] * 5)
    assert nowhere.shape == flags.hints(G, [None] * 5).shape == (12, 0)
    np.testing.assert_allclose(irls.solve(G, start=nowhere).values, irls.solve(G).values, atol=1e-12)


def test_a_long_direction_counts_no_more_than_a_short_one():
    G, h = normal(5, 12), normal(12, 2, seed=9)
    both = [flags.hints(G, [h * factor, [0, 1], None, None, None], 2) for factor in (1e-200, 1.0, 1e200)]
    for Y in both:
        np.testing.assert_allclose(Y @ Y.T, both[1] @ both[1].T, atol=1e-9)


@pytest.mark.parametrize("function", [flags.restrict, flags.hints])
@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ([], ""),
        (np.zeros((20, 0)), ""),
        ([0, 20, -1], r"\b19\b.*\[20, -1\]"),
        ([0.5, 1.0], r"\(2,\), 'float64'"),
        (np.ones(20, dtype=bool), r"\(20,\), 'bool'"),
        (np.ones((3, 20)), r"\(3, 20\), 'float64'"),
        (np.ones((20, 2), dtype=int), r"\(20, 2\), 'int64'"),
        (np.ones((20, 2), dtype=complex), r"\(20, 2\), 'complex128'"),
        (np.hstack([np.ones((20, 1)), np.zeros((20, 1))]), r"\b1\b"),
        (np.full((20, 1), np.nan), r"\b0\b"),
        ({1, 2}, r"\{1, 2\}"),
        ("layer", "'layer'"),
    ],
)
def test_what_names_nothing(function, entry, value):
    with pytest.raises(ValueError, match=rf"\brelevant\[1\] must be .*{value}"):
        function(normal(3, 20), [[0], entry, None])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_indices_may_be_unsigned(dtype):
    assert flags.restrict(np.ones((1, 3)), [np.array([2, 0], dtype)]).tolist() == [[1.0, 0.0, 1.0]]


@pytest.mark.parametrize("function", [flags.restrict, flags.hints])
def test_one_entry_a_worker(function):
    with pytest.raises(ValueError, match=r"\brelevant must be .*\b3\b.*\b2\b"):
        function(normal(3, 20), [[0], [1]])
    for other in (np.zeros((3, 2), dtype=int), "abc", None):
        with pytest.raises(ValueError, match=r"^relevant must be "):
            function(normal(3, 20), other)


@pytest.mark.parametrize("k", [1, 2])
def test_hints_of_lists_are_those_of_the_matrix(k):
    G, relevant = normal(4, 6), [[0], [1], None, [2]]
    expected = flags.hints(G, relevant, k)
    assert expected.shape == (6, k)
    for rows in (list(G), [[row[:4], row[4:]] for row in G]):
        np.testing.assert_array_equal(flags.hints(rows, relevant, k), expected)
    assert flags.hints(G, [None] * 4).shape == (6, 0)


def test_hints_of_short_gradients_of_16_bits_are_finite():
    found = flags.hints(torch.from_numpy(normal(4, 6) * 1e-5).half(), [[0], [1], None, [2]], 2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.T @ found, torch.eye(2), rtol=0, atol=1e-5)


def test_indices_and_bases_may_be_reversed_views():
    G = normal(4, 6)
    order = [np.argsort(np.abs(row)) for row in G]
    np.testing.assert_array_equal(
        flags.hints(G, [row[::-1][:2] for row in order]), flags.hints(G, [row[-2:] for row in order])
    )
    Y = np.linalg.qr(normal(6, 6))[0]
    for start in (Y[:, ::-1][:, :2], Y[:, ::-1][:, :2].astype(">f8")):
        assert objective.value(G, start) == objective.value(G, np.ascontiguousarray(start.astype(float)))
        assert irls.solve(G, m=2, start=start).iterations > 0
        assert irls.solve(G, m=2, start=start, regularizer="rows", lam=0.1, max_iter=2).iterations > 0
