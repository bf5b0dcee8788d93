"""Workers that differ: weights against replicated workers and plain versions, and both terms of several gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fa import flags, irls, make_rule, objective, sdp
from fa.training import TrainConfig, train
from tests.test_sdp import n_by_n


def gradients(p: int, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((p, n)) + 0.3


def plain_value(G, Y, c, lam=0.0, a=2.0):
    """Eq. 5 with weights, written out."""
    p, c = len(G), np.asarray(c, dtype=float)
    residual = lambda g: max(1 - np.sum((Y.T @ g) ** 2) / (g @ g), 0.0) ** (1 / a)  # noqa: E731
    total = sum(c[i] * residual(G[i]) for i in range(p))
    pairs = sum(c[i] * c[j] / c.mean() * residual(G[i] - G[j]) for i in range(p) for j in range(p) if i != j)
    return total + lam / (p - 1) * pairs


def plain_irls(G, m, c, lam=0.0, steps=5):
    """FlagIRLS with weights in all n coordinates."""
    p, c = len(G), np.asarray(c, dtype=float)
    terms = [(c[i], G[i] / np.linalg.norm(G[i])) for i in range(p)]
    for i in range(p):
        for j in range(p):
            if i != j and lam > 0:
                d = G[i] - G[j]
                terms.append((lam / (p - 1) * c[i] * c[j] / c.mean(), d / np.linalg.norm(d)))
    w = np.ones(len(terms))
    for _ in range(steps):
        A = sum(factor * weight * np.outer(x, x) for (factor, x), weight in zip(terms, w, strict=True))
        Y = np.linalg.eigh(A)[1][:, -m:]
        w = np.array([max(1 - np.sum((Y.T @ x) ** 2), 1e-12) ** -0.5 for _, x in terms])
    return Y


@pytest.mark.parametrize("lam", [0.0, 3.0])
def test_equal_weights_change_no_bit(lam):
    G = gradients(7, 40)
    plain = irls.solve(G, lam=lam, restarts=2)
    for weight in (1.0, 1):
        weighted = irls.solve(G, lam=lam, restarts=2, worker_weights=[weight] * 7)
        np.testing.assert_array_equal(weighted.direction(), plain.direction())
        assert weighted.objective == plain.objective
    for formulation in ("paper", "released"):
        rules = [make_rule("fa", formulation=formulation, worker_weights=c) for c in (None, (1.0,) * 7)]
        np.testing.assert_array_equal(rules[0](G), rules[1](G))


@pytest.mark.parametrize("lam", [0.0, 3.0])
@pytest.mark.parametrize("seed", range(5))
def test_weights_are_those_of_a_plain_version(lam, seed):
    G, c = gradients(6, 30, seed), np.random.default_rng(seed).uniform(0.2, 3, 6)
    solution = irls.solve(G, m=3, lam=lam, max_iter=5, tol=0.0, worker_weights=tuple(c))
    Y = plain_irls(G, 3, c, lam)
    np.testing.assert_allclose(solution.direction(), Y @ (Y.T @ (c / c.sum() @ G)), atol=1e-9)
    assert solution.objective == pytest.approx(plain_value(G, Y, c, lam))
    assert objective.value(G, Y, lam=lam, worker_weights=c) == pytest.approx(plain_value(G, Y, c, lam))


@pytest.mark.parametrize("lam", [0.0, 2.0])
def test_a_worker_of_weight_k_counts_as_k_workers(lam):
    G, c = gradients(5, 20), (1, 3, 2, 1, 2)
    copies, total, p = np.repeat(G, c, axis=0), sum(c), 5
    # The sums over pairs agree where lam/(P - 1) of the copies is lam/(p - 1) over the mean weight P/p.
    same = lam * p * (total - 1) / (total * (p - 1))
    replicated = irls.solve(copies, m=3, lam=same, max_iter=20, tol=0.0)
    weighted = irls.solve(G, m=3, lam=lam, max_iter=20, tol=0.0, worker_weights=c)
    assert weighted.objective == pytest.approx(replicated.objective)
    np.testing.assert_allclose(weighted.direction(), replicated.direction(), atol=1e-9)


@pytest.mark.parametrize("lam", [0.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_nested_subspaces_have_weights_in_every_level(lam, seed):
    G, c = gradients(6, 30, seed), np.random.default_rng(seed).uniform(0.2, 3, 6)
    flag = flags.solve(G, (1, 3), lam=lam, max_iter=50, worker_weights=c)
    Y = G.T @ flag.coefficients
    for level, m in zip(flag.levels, (1, 3), strict=True):
        assert level.objective == pytest.approx(plain_value(G, Y[:, :m], c, lam))
    np.testing.assert_allclose(flag.direction(), Y @ (Y.T @ (c / c.sum() @ G)), atol=1e-9)
    other = flags.solve(G, (1, 3), lam=lam, max_iter=50)
    at_other = G.T @ other.coefficients
    assert flag.objective <= sum(plain_value(G, at_other[:, :m], c, lam) for m in (1, 3))


def test_a_flag_of_one_level_with_weights_is_irls_with_weights():
    G, c = gradients(6, 30), (1, 3, 2, 1, 2, 0.5)
    flag = flags.solve(G, (3,), max_iter=300, worker_weights=c)
    solution = irls.solve(G, m=3, max_iter=600, worker_weights=c)
    np.testing.assert_allclose(flag.direction(), solution.direction(), atol=1e-5)


def test_a_common_factor_of_all_weights_changes_no_direction():
    G, c = gradients(6, 30), np.array([1.0, 2.0, 0.5, 1.0, 4.0, 1.0])
    one, two = (irls.solve(G, m=3, lam=2.0, worker_weights=tuple(factor * c)) for factor in (1.0, 7.0))
    np.testing.assert_allclose(one.direction(), two.direction(), atol=1e-12)
    assert two.objective == pytest.approx(7 * one.objective)


@pytest.mark.parametrize("factor", [1e-12, 1e9])
def test_a_common_factor_of_all_weights_scales_bounds_and_leaves_the_gap(factor):
    G, c = gradients(7, 12), np.array([1.0, 2.0, 0.5, 1.0, 4.0, 1.0, 1.0])
    one, two = (
        (
            sdp.certify(G, irls.solve(G, m=2, lam=3.0, a=3.0, worker_weights=tuple(scale * c))),
            sdp.solve(G, m=2, lam=3.0, a=3.0, worker_weights=tuple(scale * c)),
        )
        for scale in (1.0, factor)
    )
    assert one[0].gap > 0.01
    assert two[0].gap == pytest.approx(one[0].gap, rel=1e-6)
    for name in ("bound", "value", "rounded_objective", "polished_objective"):
        assert getattr(two[1], name) == pytest.approx(factor * getattr(one[1], name), rel=1e-6)


@pytest.mark.parametrize("lam", [0.0, 2.0])
def test_the_gradient_of_the_weighted_objective_is_autograds(lam):
    G, c = torch.from_numpy(gradients(5, 12)), (1.0, 2.0, 0.5, 3.0, 1.0)
    Y = torch.linalg.qr(torch.from_numpy(gradients(12, 2, 1))).Q.requires_grad_()
    factor = torch.tensor(c, dtype=torch.float64)
    residual = lambda X: (1 - ((X / X.norm(dim=1, keepdim=True)) @ Y).square().sum(dim=1)).sqrt()  # noqa: E731
    i, j = np.triu_indices(5, 1)
    pairs = 2 * lam / 4 * (factor[i] * factor[j] / factor.mean() * residual(G[i] - G[j])).sum()
    (slope,) = torch.autograd.grad((factor * residual(G)).sum() + pairs, Y)
    ours = objective.gradient(G, Y.detach(), lam=lam, worker_weights=c)
    torch.testing.assert_close(ours, slope)


@pytest.mark.parametrize("lam", [0.0, 2.0])
@pytest.mark.parametrize("a", [1.5, 2.0])
def test_the_bound_of_the_weighted_objective_is_below_every_value(lam, a):
    G, c = gradients(6, 8), (1.0, 2.0, 0.5, 3.0, 1.0, 0.2)
    solution = irls.solve(G, m=2, lam=lam, a=a, max_iter=200, restarts=5, worker_weights=c)
    relaxed = sdp.solve(G, m=2, lam=lam, a=a, worker_weights=c)
    certificate = sdp.certify(G, solution)
    assert certificate.bound <= relaxed.polished_objective + 1e-9
    assert certificate.bound >= relaxed.bound * (1 - 5e-3)
    assert relaxed.bound == pytest.approx(relaxed.value, rel=1e-5)
    for seed in range(20):
        Y = np.linalg.qr(gradients(8, 2, seed))[0]
        assert certificate.bound <= plain_value(G, Y, c, lam, a)


def test_the_weighted_relaxation_is_the_n_by_n_program_of_copies():
    G, c = gradients(5, 7), (1, 2, 1, 3, 1)
    copies = [row[None] for row in np.repeat(G, c, axis=0)]
    assert sdp.solve(G, m=2, worker_weights=c).value == pytest.approx(n_by_n(copies, 2), rel=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, float("nan"), 1.0), (), (1.0, -1.0, 1.0)])
def test_invalid_weights_are_refused(weights):
    G = gradients(3, 10)
    for call in (
        lambda: irls.solve(G, worker_weights=weights),
        lambda: flags.solve(G, (1, 2), worker_weights=weights),
        lambda: objective.value(G, np.eye(10)[:, :2], worker_weights=weights),
        lambda: make_rule("fa", worker_weights=weights)(G),
    ):
        with pytest.raises(ValueError, match=r"worker_weights"):
            call()


def test_the_rule_drops_the_weights_of_excluded_workers():
    G, c = gradients(7, 30), (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    G[2] = np.nan
    rest = [0, 1, 3, 4, 5, 6]
    decision = make_rule("fa", f=1, worker_weights=c).aggregate(G)
    expected = make_rule("fa", worker_weights=tuple(c[i] for i in rest))(G[rest])
    np.testing.assert_allclose(decision.direction, expected, atol=1e-12)
    assert set(decision.decision.excluded) == {2}


def test_the_rule_refuses_weights_behind_a_step_that_selects_or_mixes_workers():
    G = gradients(7, 30)
    for step in ("krum", "bucketing", "nnm"):
        with pytest.raises(ValueError, match=r"^preaggregators\b"):
            make_rule("fa", f=1, worker_weights=(1.0,) * 7, preaggregators=("unit", step))(G)


def test_the_released_formulation_has_weights_too():
    G, c = gradients(6, 30), np.array([1.0, 2.0, 0.5, 3.0, 1.0, 0.2])
    d = make_rule("fa", formulation="released", worker_weights=tuple(c), m=3)(G)
    X = G / np.linalg.norm(G, axis=1, keepdims=True)
    Y = np.linalg.eigh((X.T * c) @ X)[1][:, -3:]
    np.testing.assert_allclose(d, Y @ (Y.T @ (c / c.mean() @ X)) / 3, atol=1e-10)


def test_weights_of_a_rule_leave_the_span_with_a_norm():
    G, c = gradients(5, 12), (1.0, 2.0, 0.5, 3.0, 1.0)
    options = {"m": 2, "lam": 0.3, "regularizer": "rows", "worker_weights": c, "max_iter": 20}
    solution = irls.solve(G, **options)
    value = objective.value(G, solution.Y, lam=0.3, regularizer="rows", worker_weights=c)
    assert solution.objective == pytest.approx(value)
    d = make_rule("fa", preaggregators=(), **options)(G)
    np.testing.assert_allclose(d, solution.Y @ (solution.Y.T @ (np.array(c) / sum(c) @ G)), atol=1e-10)


@given(seed=st.integers(0, 1000), m=st.integers(1, 4), a=st.sampled_from([1.0, 2.0, 3.0]))
def test_the_chordal_term_is_the_flag_medians(seed, m, a):
    """sqrt(min(m, k) - tr(Y^T Q Q^T Y)), Q an orthonormal basis of a worker's span; also for k > m."""
    rng = np.random.default_rng(seed)
    groups = [rng.standard_normal((k, 9)) for k in (1, 3, 2, 5)]
    solution = irls.solve(groups, m=m, a=a, max_iter=7, tol=0.0, group_term="chordal")
    Y = np.linalg.qr(np.vstack(groups).T @ solution.coefficients)[0]
    bases = [np.linalg.qr(group.T)[0] for group in groups]
    sizes = [min(m, basis.shape[1]) for basis in bases]
    traces = [np.square(Y.T @ basis).sum() for basis in bases]
    expected = sum(max(size - trace, 0.0) ** (1 / a) for size, trace in zip(sizes, traces, strict=True))
    assert solution.objective == pytest.approx(expected, abs=1e-6 ** (2 / max(a, 2)))
    assert objective.value(groups, Y, a=a, group_term="chordal") == pytest.approx(expected, abs=1e-6 ** (2 / max(a, 2)))
    np.testing.assert_allclose(solution.values, np.divide(traces, sizes), atol=1e-9)
    np.testing.assert_allclose(objective.values(groups, Y, "chordal"), solution.values, atol=1e-9)
    assert (np.diff(solution.history) <= 1e-9).all()


def test_the_two_terms_agree_for_equal_numbers_of_orthonormal_gradients():
    rng = np.random.default_rng(0)
    groups = [np.linalg.qr(rng.standard_normal((12, 2)))[0].T for _ in range(5)]
    one, two = (irls.solve(groups, m=4, max_iter=9, tol=0.0, group_term=term) for term in irls.GROUP_TERMS)
    assert two.objective == pytest.approx(np.sqrt(2) * one.objective)
    np.testing.assert_allclose(one.direction(), two.direction(), atol=1e-9)


def test_the_chordal_term_does_not_depend_on_a_workers_basis():
    rng = np.random.default_rng(0)
    groups = [rng.standard_normal((2, 12)) for _ in range(5)]
    mixed = [rng.standard_normal((2, 2)) @ group for group in groups]
    chordal = [irls.solve(each, m=4, group_term="chordal").objective for each in (groups, mixed)]
    fraction = [irls.solve(each, m=4).objective for each in (groups, mixed)]
    assert chordal[0] == pytest.approx(chordal[1])
    assert fraction[0] != pytest.approx(fraction[1])


def test_the_chordal_bound_is_below_every_value_and_refused_beyond_m():
    rng = np.random.default_rng(0)
    groups = [rng.standard_normal((k, 8)) for k in (1, 2, 2, 1)]
    solution = irls.solve(groups, m=2, max_iter=300, restarts=5, group_term="chordal", worker_weights=(1, 2, 1, 1))
    bound = sdp.certify(groups, solution).bound
    relaxed = sdp.solve(groups, m=2, group_term="chordal", worker_weights=(1, 2, 1, 1))
    assert relaxed.bound * (1 - 5e-3) <= bound <= relaxed.polished_objective + 1e-9
    for seed in range(20):
        Y = np.linalg.qr(gradients(8, 2, seed))[0]
        assert bound <= objective.value(groups, Y, group_term="chordal", worker_weights=(1, 2, 1, 1))
    with pytest.raises(ValueError, match=r"^group_term\b"):
        sdp.certify(groups, irls.solve(groups, m=1, group_term="chordal"))
    with pytest.raises(ValueError, match=r"^group_term\b"):
        irls.solve(groups, group_term="chordal", regularizer="rows", lam=1.0)


def test_weights_from_batches_and_noise():
    np.testing.assert_allclose(irls.weights_from_batches([1, 1, 16], 0.5), np.array([1, 1, 4]) / 2)
    np.testing.assert_allclose(irls.weights_from_noise([16.0, 16.0, 1.0], 0.5), np.array([1, 1, 4]) / 2)
    with pytest.raises(ValueError, match=r"^each of batches\b"):
        irls.weights_from_batches([1, 0])


def test_inverse_variance_weights_have_the_least_variance():
    """Of the mean of minibatch gradients, by its closed form 1/sum B; and the estimate of the noise is unbiased."""
    rng, batches = np.random.default_rng(0), np.array([4, 4, 16, 64])
    error = {}
    for power in (0.0, 0.5, 1.0):
        c = np.array(irls.weights_from_batches(batches, power))
        error[power] = np.sum((c / c.sum()) ** 2 / batches)
    assert min(error, key=error.get) == 1.0
    assert error[1.0] == pytest.approx(1 / batches.sum())
    samples = [rng.standard_normal((k, 4000)) for k in (4, 16)]
    np.testing.assert_allclose(irls.noise_variances(samples) / 4000, [1 / 4, 1 / 16], rtol=0.1)
    with pytest.raises(ValueError, match=r"^G\b"):
        irls.noise_variances([np.ones((1, 3)), np.ones((2, 3))])


@pytest.mark.parametrize("term", irls.GROUP_TERMS)
@pytest.mark.parametrize("weights", [None, (1.0, 3.0, 0.5, 2.0)])
def test_the_rule_groups_consecutive_rows_into_workers(term, weights):
    G = gradients(8, 30)
    options = {"group_term": term, "worker_weights": weights}
    aggregate = make_rule("fa", preaggregators=(), gradients_per_worker=2, **options).aggregate(G)
    solution = irls.solve([G[i : i + 2] for i in range(0, 8, 2)], **options)
    np.testing.assert_allclose(aggregate.direction, solution.direction(), atol=1e-10)


@pytest.mark.parametrize("counts", [(3, 1, 4), (8,), (1,) * 8])
def test_workers_may_have_different_numbers_of_gradients(counts):
    G = gradients(8, 30)
    rule = make_rule("fa", preaggregators=(), gradients_per_worker=counts, m=1)
    groups = [rows.numpy() for rows in torch.from_numpy(G).split(counts)]
    np.testing.assert_allclose(rule(G), irls.solve(groups, m=1).direction(), atol=1e-10)
    with pytest.raises(ValueError, match=r"^gradients_per_worker\b.*\b7\b"):
        rule(G[:7])
    with pytest.raises(ValueError, match=r"^gradients_per_worker\b.*\b0\b"):
        make_rule("fa", gradients_per_worker=(1, 0))


def test_a_row_that_is_not_finite_leaves_its_workers_other_gradients():
    G, c = gradients(9, 30), (1.0, 3.0, 0.5)
    G[[1, 3, 4, 5]] = np.nan
    rule = make_rule("fa", f=4, preaggregators=(), gradients_per_worker=3, worker_weights=c)
    solution = irls.solve([G[[0, 2]], G[6:]], worker_weights=(1.0, 0.5))
    np.testing.assert_allclose(rule(G), solution.direction(), atol=1e-10)


@pytest.mark.filterwarnings("ignore::UserWarning")  # FA's of preaggregators that do not bound norms
def test_groups_leave_the_span_with_a_norm_and_are_refused_where_they_do_not_fit():
    G = gradients(6, 12)
    options = {"m": 2, "lam": 0.3, "regularizer": "rows", "max_iter": 20}
    d = make_rule("fa", preaggregators=(), gradients_per_worker=2, **options)(G)
    np.testing.assert_allclose(d, irls.solve([G[:2], G[2:4], G[4:]], **options).direction(), atol=1e-10)
    for k, steps in ((4, ()), (2, ("krum",))):
        with pytest.raises(ValueError, match=r"^(gradients_per_worker|preaggregators)\b"):
            make_rule("fa", f=1, gradients_per_worker=k, preaggregators=steps)(G)
    with pytest.raises(ValueError, match=r"^lam\b"):
        make_rule("fa", gradients_per_worker=2, lam=1.0)(G)


def test_a_run_has_several_gradients_of_each_worker_and_goes_on_without_some():
    options = {"gradients_per_worker": 2, "worker_weights": (1.0, 2.0, 3.0)}
    config = TrainConfig(workers=6, byzantine=2, attack="nan", iterations=3, batch=4, rule_options=options)
    run = train(config, threads=1)
    assert np.isfinite(run.curve[-1].train_loss)
    assert {row.status != "used" for row in run.workers if row.worker < 2} == {True}


@pytest.mark.parametrize("factor", [1e-30, 1e-11, 1e-9, 4.0, 1e30])
@pytest.mark.parametrize("solve", [irls.solve, lambda G, **options: flags.solve(G, [2, 4], **options).levels[-1]])
def test_a_common_factor_changes_neither_the_steps_nor_the_subspace(factor, solve):
    G = gradients(9, 40)
    plain, scaled = (solve(G, max_iter=50, worker_weights=[c] * 9) for c in (1.0, factor))
    assert scaled.iterations == plain.iterations
    np.testing.assert_allclose(scaled.direction(), plain.direction(), rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: irls.solve(gradients(3, 5), worker_weights=[1e308] * 3), r"^each of worker_weights must be .*1e\+308"),
        (lambda: irls.weights_from_batches([0, 1]), r"^each of batches must be .*\b0\b"),
        (lambda: irls.weights_from_batches([1, 128], power=200), r"^power must be .*\b200\b"),
        (lambda: irls.weights_from_noise([0.0, 1.0]), r"^each of variances must be .*\b0\.0\b"),
        (lambda: irls.noise_variances([np.full((2, 3), np.nan)]), r"^G must be finite"),
    ],
)
def test_weights_that_cannot_be_computed_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.filterwarnings("ignore::UserWarning")  # FA's of preaggregators that do not bound norms
def test_the_default_m_of_hints_counts_workers():
    G = gradients(8, 40)
    options = {"gradients_per_worker": 2, "start": "largest:3", "max_iter": 1, "preaggregators": ("unit",)}
    np.testing.assert_array_equal(make_rule("fa", **options)(G), make_rule("fa", m=3, **options)(G))
