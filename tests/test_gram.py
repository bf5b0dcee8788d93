"""The Gram stage where naive code fails: offsets, huge and tiny norms, equal rows, NaN; and right multiplications."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fa
from fa import irls
from fa.gradients.gram import Gram
from fa.gradients.measurement import measure
from fa.rules.krum_scores import krum_scores
from fa.rules.preaggregators import PREAGGREGATORS, PreaggregatorContext, apply_preaggregators


def squared_distances(G):
    wide = np.asarray(G, dtype=np.float64)
    return np.square(wide[:, None] - wide[None]).sum(axis=2)


def close(gram, G, rtol=1e-5):
    """K and D2, each within rtol of its own entries' sizes; D2 also up to the last digit of the gradients' entries."""
    wide = np.asarray(G, dtype=np.float64) / gram.scale
    norms = np.linalg.norm(wide, axis=1)
    assert (np.abs(gram.K - wide @ wide.T) <= rtol * np.outer(norms, norms)).all()
    digits = 1e-30 * np.add.outer(norms**2, norms**2)
    assert (np.abs(gram.D2 - squared_distances(wide)) <= 10 * rtol * squared_distances(wide) + digits).all()


def normal(p, n, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal((p, n)).astype(dtype)


CASES = {
    "plain": normal(7, 5000),
    "large common offset": normal(7, 5000) + np.float32(1e4),
    "larger common offset": (1e8 + normal(7, 500, np.float64)),
    "nearly equal rows": normal(1, 5000) + np.float32(1e-6) * normal(7, 5000, seed=1),
    "two clusters, each nearly equal": np.repeat(normal(2, 5000), 3, axis=0)
    + np.float32(1e-5) * normal(6, 5000, seed=2),
    "norms from 1e-30 to 1e30": normal(7, 300) * np.logspace(-30, 30, 7, dtype=np.float32)[:, None],
    "tiny, all of them": normal(5, 300) * np.float32(1e-30),
    "huge float64": normal(5, 300, np.float64) * 1e200,
    "tiny float64": normal(5, 300, np.float64) * 1e-200,
    "more rows than columns": normal(9, 4),
    "one row": normal(1, 100),
    "equal rows": np.repeat(normal(2, 1000), 2, axis=0),
    "a zero row": np.vstack([normal(3, 1000), np.zeros((1, 1000), np.float32)]),
}


@pytest.mark.parametrize("name", CASES)
def test_products_and_distances_are_right_where_naive_ones_are_not(name):
    gram, finite = measure(torch.from_numpy(CASES[name]))
    assert finite.all()
    close(gram, CASES[name])
    assert np.array_equal(gram.K, gram.K.T)
    assert np.array_equal(gram.D2, gram.D2.T)
    assert (gram.D2 >= 0).all()


@pytest.mark.parametrize("view", [lambda G: G[:, ::3], lambda G: G.T[:7, :5], lambda G: G[0].unfold(0, 50, 1)[:5]])
def test_a_view_whose_rows_do_not_lie_one_after_another_is_measured_by_its_values(view):
    G = view(torch.from_numpy(normal(7, 300)))
    gram, _ = measure(G)
    close(gram, G.numpy())


def test_equal_rows_are_at_distance_zero_exactly():
    gram, _ = measure(torch.from_numpy(CASES["equal rows"]))
    assert gram.D2[0, 1] == 0 == gram.D2[2, 3]
    assert gram.D2[0, 2] > 0


def test_krum_agrees_with_float64_under_a_large_common_offset():
    """The trap: in float32, K_ii + K_jj - 2 K_ij is noise here, and even negative."""
    G = normal(9, 100_000) * np.linspace(1, 1.1, 9, dtype=np.float32)[:, None] + np.float32(3000)
    gram, _ = measure(torch.from_numpy(G))
    exact = krum_scores(squared_distances(G), 5)
    assert list(np.argsort(krum_scores(gram.D2, 5))) == list(np.argsort(exact))
    naive = G @ G.T
    naive = np.diag(naive)[:, None] + np.diag(naive)[None] - 2 * naive
    assert list(np.argsort(krum_scores(naive.astype(float), 5))) != list(np.argsort(exact))


def test_rows_that_are_not_finite_are_named_and_the_others_measured():
    G = normal(5, 1000)
    G[1, 3], G[4, 999] = np.nan, np.inf
    G[2] *= np.float32(1e30)  # leaves float32's range when squared, but is finite
    gram, finite = measure(torch.from_numpy(G))
    assert list(finite) == [True, False, True, True, False]
    rows = np.flatnonzero(finite)
    close(gram.select(rows), G[rows])


def test_no_row_finite():
    _, finite = measure(torch.full((3, 4), torch.nan))
    assert not finite.any()


@given(
    seed=st.integers(0, 10_000),
    p=st.integers(20, 24),  # enough for Krum after two halvings
    preaggregators=st.lists(st.sampled_from(sorted(PREAGGREGATORS)), max_size=3).filter(
        lambda steps: steps.count("bucketing") < 3
    ),
    iteration=st.integers(0, 5),
)
def test_steps_before_a_rule_compose_in_the_gram_matrix(seed, p, preaggregators, iteration):
    """K and D2 of the mixture are those of the mixed gradients themselves, however the steps are stacked."""
    G = normal(p, 40, np.float64, seed) * np.random.default_rng(seed).uniform(0.1, 10, (p, 1))
    gram, _ = measure(torch.from_numpy(G))
    mixture = apply_preaggregators(gram, preaggregators, PreaggregatorContext(1, 3, iteration))
    close(mixture.gram, mixture.R.T @ G, 1e-9)


def mixed(name, G, f=1, seed=0, iteration=0):
    gram, _ = measure(torch.from_numpy(G))
    return apply_preaggregators(gram, (name,), PreaggregatorContext(f, seed, iteration)).R.T @ G


def test_unit_median_norm_and_clip_set_the_norms():
    G = normal(5, 50, np.float64) * np.array([1, 2, 30, 4, 0.0])[:, None]
    norms = np.linalg.norm(G, axis=1)
    np.testing.assert_allclose(np.linalg.norm(mixed("unit", G), axis=1), [1, 1, 1, 1, 0], rtol=1e-12)
    np.testing.assert_allclose(
        np.linalg.norm(mixed("median_norm", G), axis=1), np.median(norms) * (norms > 0), rtol=1e-12
    )
    np.testing.assert_allclose(
        np.linalg.norm(mixed("clip", G), axis=1), np.minimum(norms, np.median(norms)), rtol=1e-12
    )


def test_nearest_neighbour_mixing_is_the_mean_of_the_nearest():
    G = normal(7, 50, np.float64)
    D2 = squared_distances(G)
    expected = [G[sorted(range(7), key=lambda j: D2[i, j])[:5]].mean(axis=0) for i in range(7)]
    np.testing.assert_allclose(mixed("nnm", G, f=2), expected, rtol=1e-12)


def test_the_subspace_step_projects_each_gradient_onto_fas():
    G = normal(9, 60, np.float64) + 0.3
    G[4] = 0
    Y = G.T @ irls.solve(torch.from_numpy(G)).coefficients
    np.testing.assert_allclose(Y.T @ Y, np.eye(5), atol=1e-10)
    np.testing.assert_allclose(mixed("subspace", G), G @ Y @ Y.T, atol=1e-12)


@pytest.mark.parametrize("equal", [0, 1, 3])
def test_the_random_span_projects_onto_the_span_of_m_gradients_drawn_by_seed_and_iteration(equal: int):
    """Against numpy's QR; equal gradients among those drawn leave the span smaller."""
    G = normal(9, 60, np.float64) * np.random.default_rng(0).uniform(0.1, 10, (9, 1))
    drawn = np.random.default_rng((3, 5)).permutation(9)[:5]
    if equal:
        G[drawn[1 : 1 + equal]] = G[drawn[0]]
    Q = np.linalg.qr(G[drawn[equal:] if equal else drawn].T)[0]
    projected = mixed("random_span", G, seed=3, iteration=5)
    np.testing.assert_allclose(projected, G @ Q @ Q.T, atol=1e-10)
    np.testing.assert_allclose(projected[drawn], G[drawn], atol=1e-10)
    assert not np.allclose(mixed("random_span", G, seed=3, iteration=6), projected)
    assert not np.allclose(mixed("random_span", G, seed=4, iteration=5), projected)


def test_the_mean_behind_the_subspace_step_is_algorithm_1_whatever_the_scale():
    for scale in (1e-200, 1.0, 1e200):
        G = torch.from_numpy(scale * (normal(8, 60, np.float64, seed=3) + 0.3))
        printed = fa.aggregate(G, "fa", preaggregators=())
        np.testing.assert_allclose(
            fa.aggregate(G, "mean", preaggregators=("subspace",)), printed, rtol=1e-9, atol=1e-12 * scale
        )


def test_bucketing_averages_pairs_and_depends_on_seed_and_iteration_only():
    G = normal(7, 50, np.float64)
    gram, _ = measure(torch.from_numpy(G))
    R = apply_preaggregators(gram, ("bucketing",), PreaggregatorContext(1, 3, 5)).R
    assert sorted((R > 0).sum(axis=0)) == [1, 2, 2, 2]
    np.testing.assert_allclose(R.sum(axis=0), 1)
    assert (R > 0).sum() == 7
    assert np.array_equal(R, apply_preaggregators(gram, ("bucketing",), PreaggregatorContext(1, 3, 5)).R)
    assert not np.array_equal(R, apply_preaggregators(gram, ("bucketing",), PreaggregatorContext(1, 3, 6)).R)
    assert not np.array_equal(R, apply_preaggregators(gram, ("bucketing",), PreaggregatorContext(1, 4, 5)).R)


def test_krum_before_a_rule_keeps_the_best_and_takes_the_lowest_of_equals():
    G = np.vstack([normal(6, 50, np.float64), 100 + normal(1, 50, np.float64)])
    np.testing.assert_array_equal(mixed("krum", G, f=1), G[:6])
    same = np.ones((5, 3))
    gram, _ = measure(torch.from_numpy(same))
    R = apply_preaggregators(gram, ("krum",), PreaggregatorContext(1, 0, 0)).R
    np.testing.assert_array_equal(R, np.eye(5)[:, :4])


def test_distances_from_inner_products_are_never_negative():
    K = np.array([[1.0, 1.0 + 1e-15], [1.0 + 1e-15, 1.0]])
    assert (Gram.from_inner_products(K).D2 >= 0).all()


def test_rows_that_count_as_zero_put_no_other_row_out_of_range():
    G = torch.tensor([[1e-310], [1e-315], [1e-320], [1.0], [2.0]], dtype=torch.float64)
    gram, finite = measure(G)
    assert finite.all()
    np.testing.assert_allclose(gram.norms, [0, 0, 0, 1, 2])


def test_a_row_that_counts_as_zero_does_not_move_the_scale_of_the_others():
    gram, _ = measure(torch.tensor([[1e-320], [-1e300]], dtype=torch.float64))
    np.testing.assert_allclose(gram.norms, [0, 1e300], rtol=1e-12)
