"""When FA can be fooled: the model's closed forms, IRLS on it, simulated gradients, and the margin."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fa import irls, objective
from fa.rules import make_rule
from fa.rules.krum_scores import krum_scores
from fa.theory import breakdown


def gains(k, c, a):
    """By how much the mean direction and one member's own lower eq. 5 over their group: the closed forms."""
    mean = k * (1 - (1 - (1 + (k - 1) * c) / k) ** (1 / a))
    member = 1 + (k - 1) * (1 - (1 - c**2) ** (1 / a))
    return max(mean, member)


@pytest.mark.parametrize(("a", "expected"), [(1, 0.136), (2, 0.208), (3, 0.27), (4, 0.33), (5, 0.36)])
def test_a_more_robust_power_needs_a_tighter_majority(a, expected):
    c = breakdown.threshold(12, 3, 0.75, a=a)
    assert c == pytest.approx(expected, abs=0.006)
    assert gains(12, c, a) == pytest.approx(gains(3, 0.75, a), abs=1e-6)


@given(
    h=st.integers(2, 8),
    f=st.integers(1, 4),
    c=st.floats(0, 0.95),
    r=st.floats(0, 0.95),
    a=st.sampled_from([1.0, 2.0, 4.0]),
)
def test_with_one_column_it_is_the_closed_form(h, f, c, r, a):
    honest, faulty = gains(h, c, a), gains(f, r, a)
    if abs(honest - faulty) > 1e-9:
        assert breakdown.byzantine_columns(h, f, c, r, a=a) == (faulty > honest)


@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize("a", [1.0, 2.0, 4.0])
def test_no_subspace_that_irls_finds_is_better_than_the_candidates(m, a):
    """On the model itself, from many starts: what is claimed to be the best is the best."""
    for c, r in ((0.1, 0.75), (0.3, 0.75), (0.05, 0.95)):
        gram = breakdown.two_groups(6, 2, c, r)
        found = irls.solve_gram(gram, irls.Options(m=m, a=a, max_iter=60, restarts=12))
        best = breakdown._choices(6, 2, c, r, m, a).min()
        assert found.objective >= best - 1e-6


@given(k=st.integers(2, 7), j=st.integers(1, 6), c=st.floats(0, 0.95), a=st.sampled_from([1.0, 2.0, 3.5]))
def test_a_groups_cost_is_that_of_members_or_of_members_and_the_others_mean(k, j, c, a):
    """By least squares on the gradients, of which the closed form knows nothing."""
    j = min(j, k - 1)
    X = np.linalg.cholesky(breakdown.two_groups(k, 0, c, 0.0).K)
    costs = []
    for spanning in (X[:j], np.vstack([X[: j - 1], X[j - 1 :].sum(axis=0)])):
        left = X.T - spanning.T @ np.linalg.lstsq(spanning.T, X.T, rcond=None)[0]
        costs.append((np.square(left).sum(axis=0) ** (1 / a)).sum())
    assert breakdown.group_cost(k, c, j, a) == pytest.approx(min(costs), abs=k * 1e-15 ** (1 / a) + 1e-9)


@given(
    f=st.integers(1, 6), more=st.integers(1, 10), r=st.floats(0, 1), tighter=st.floats(0, 1), higher=st.floats(2, 30)
)
def test_tighter_faulty_and_a_higher_power_raise_the_threshold(f, more, r, tighter, higher):
    h = f + more
    c = breakdown.threshold(h, f, r, a=2.0)
    assert 0 <= c <= 1
    rounding = 1e-7  # the root of what 1 - (1 - r^2) loses
    assert breakdown.threshold(h, f, max(r, tighter), a=2.0) >= c - rounding
    assert breakdown.threshold(h, f, r, a=higher) >= c - rounding
    assert c >= breakdown.threshold(h, f, r, a=1.0) - rounding


def test_the_threshold_tends_to_that_of_the_logarithm():
    assert breakdown.threshold(12, 3, 0.75, a=1e6) == pytest.approx(np.sqrt(1 - (1 - 0.75**2) ** (2 / 11)), abs=1e-4)


def test_between_one_and_two_a_direction_between_a_member_and_the_mean_is_better():
    """So the closed form does not hold there, and says so."""
    a, x = 1.5, np.linalg.cholesky([[1.0, 0.3], [0.3, 1.0]])
    angles = np.linspace(0, np.pi, 2001)
    costs = ((1 - (x @ np.stack([np.cos(angles), np.sin(angles)])) ** 2).clip(0) ** (1 / a)).sum(axis=0)
    ends = ((1 - 0.3**2) ** (1 / a), 2 * (0.7 / 2) ** (1 / a))
    assert costs.min() < min(ends) - 1e-3
    with pytest.raises(ValueError, match=r"^a must be .*\b1\.5"):
        breakdown.group_cost(2, 0.3, 1, a)


def simulated(c, r=0.75):
    """Gradients of the model in random coordinates, the three faulty ones first."""
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 15)))[0]
    return np.linalg.cholesky(breakdown.two_groups(12, 3, c, r).K) @ rotation.T


@pytest.mark.parametrize("a", [1.0, 2.0, 4.0])
def test_simulated_gradients_are_decided_as_the_model_says(a):
    """Of IRLS from either group, the better end is with the group that the threshold names."""
    border = breakdown.threshold(12, 3, 0.75, a=a)
    for c in (border - 0.03, border + 0.03):
        G = simulated(c)
        starts = (G[:3].mean(axis=0), G[:1].T[:, 0], G[3:].mean(axis=0), G[3:4].T[:, 0])
        found = [irls.solve(G, m=1, a=a, max_iter=500, start=start[:, None]) for start in starts]
        values = min(found, key=lambda solution: solution.objective).values
        assert (values[3:].mean() > values[:3].mean()) == (c > border)


def test_irls_follows_the_principal_components_where_the_objective_prefers_the_minority():
    """Between the two thresholds: eq. 5 with a = 4 is lower at the faulty group, and IRLS ends at the honest one."""
    low, high = breakdown.threshold(12, 3, 0.75, a=1.0), breakdown.threshold(12, 3, 0.75, a=4.0)
    for c, honest in ((low - 0.03, False), ((low + high) / 2, True)):
        solution = irls.solve(simulated(c), m=1, a=4.0, max_iter=500)
        assert (solution.values[3:].mean() > solution.values[:3].mean()) == honest
        assert breakdown.byzantine_columns(12, 3, c, 0.75, a=4.0) == 1


@pytest.mark.parametrize("a", [1.0, 2.0, 4.0])
def test_the_margin_of_the_model_is_the_difference_of_the_closed_forms(a):
    """On both sides of the border, and so with its sign: also where one member's own direction is the best."""
    border = breakdown.threshold(12, 3, 0.75, a=a)
    for c in (0.05, border - 0.03, border + 0.03, 0.5):
        K = simulated(c) @ simulated(c).T
        expected = gains(12, c, a) - gains(3, 0.75, a)
        resolution = 2 * irls.FLOOR ** (1 / a) + 1e-9  # a residual below FLOOR is not told from FLOOR
        assert breakdown.breakdown_margin(K, range(3), a=a) == pytest.approx(expected, abs=resolution)


@settings(max_examples=6)
@given(c=st.floats(0.02, 0.9), r=st.floats(0.02, 0.9), m=st.integers(1, 3), a=st.sampled_from([1.0, 2.0, 4.0]))
def test_the_margin_is_what_the_faulty_groups_first_column_costs(c, r, m, a):
    """And so its sign says who is preferred, for any cosines and m."""
    without, one = breakdown._choices(4, 2, c, r, m, a)[:2]
    margin = breakdown.breakdown_margin(breakdown.two_groups(4, 2, c, r).K, range(2), m=m, a=a)
    assert margin == pytest.approx(one - without, abs=6 * irls.FLOOR ** (1 / a) + 1e-8)
    if m == 1 and abs(one - without) > 0.02:
        assert (margin < 0) == (breakdown.byzantine_columns(4, 2, c, r, a=a) == 1)


@pytest.mark.parametrize("a", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("lam", [0.0, 1.0, 15.0])
def test_with_pairs_the_best_direction_is_in_the_plane_of_the_means(lam, a):
    """As IRLS finds it from many starts, eq. 5 has it on gradients, and the plane's closed form, maximised here."""
    h, f, p = 8, 3, 11
    for c, r in ((0.1, 0.75), (0.3, 0.9), (0.6, 0.5)):
        gram = breakdown.two_groups(h, f, c, r)
        best = breakdown.direction(h, f, c, r, lam, a)
        found = irls.solve_gram(gram, irls.Options(m=1, lam=lam, a=a, max_iter=60, restarts=15))
        assert best.objective <= found.objective + 1e-6
        if best.kind == "mean":
            R, S = (1 + (h - 1) * c) / h, (1 + (f - 1) * r) / f
            t = np.radians(np.linspace(-90, 90, 20001))
            mixed = 1 - (np.cos(t) * np.sqrt(R) - np.sin(t) * np.sqrt(S)) ** 2 / 2
            data = h * (1 - np.cos(t) ** 2 * R) ** (1 / a) + f * (1 - np.sin(t) ** 2 * S) ** (1 / a)
            plane = data + lam / (p - 1) * (h * (h - 1) + f * (f - 1) + 2 * h * f * mixed ** (1 / a))
            assert best.objective == pytest.approx(plane.min(), rel=1e-7)
            assert best.honest + best.byzantine == pytest.approx(1)
            G = breakdown.gradients(gram, 40, 0)
            u = sum(
                part * mean / np.linalg.norm(mean)
                for part, mean in (
                    (np.cos(np.radians(best.angle)), G[f:].mean(axis=0)),
                    (np.sin(np.radians(best.angle)), G[:f].mean(axis=0)),
                )
            )
            assert objective.value(G, u[:, None], lam=lam, a=a) == pytest.approx(best.objective, rel=1e-9)


def test_with_many_pairs_it_is_the_difference_of_the_means():
    best = breakdown.direction(12, 3, 0.3, 0.75, lam=1e6)
    R, S = (1 + 11 * 0.3) / 12, (1 + 2 * 0.75) / 3
    assert best.honest == pytest.approx(R / (R + S), abs=1e-4)
    assert best.angle < 0


def test_a_tilt_towards_one_faulty_member_may_be_a_little_better():
    """A case named in the docstring: the plane is a candidate and not always the optimum."""
    best = breakdown.direction(6, 2, 0.86, 0.14, lam=15.0)
    options = irls.Options(m=1, lam=15.0, max_iter=300, restarts=40)
    found = irls.solve_gram(breakdown.two_groups(6, 2, 0.86, 0.14), options)
    assert best.objective * (1 - 0.01) < found.objective < best.objective - 0.01
    assert np.ptp(found.values[2:]) < 1e-3 < np.ptp(found.values[:2])


def test_gradients_have_the_inner_products_and_the_mean_its_share_of_faulty():
    gram = breakdown.two_groups(12, 3, 0.3, 0.75)
    G = breakdown.gradients(gram, 500, 1)
    np.testing.assert_allclose(G @ G.T, gram.K, atol=1e-12)
    assert not np.allclose(G, breakdown.gradients(gram, 500, 2))
    assert breakdown.byzantine_weight(G.mean(axis=0), G, 3) == pytest.approx(0.2)
    assert breakdown.byzantine_weight(G[3:].sum(axis=0), G, 3) == pytest.approx(0, abs=1e-12)
    assert breakdown.byzantine_weight(G[0], G, 3) == pytest.approx(1)


def test_fa_with_both_means_in_its_subspace_is_the_mean():
    """m = 1 is all or nothing; from m = 2 on the faulty have their share f/p here, whatever the cosines."""
    for c, alone in ((0.05, 1.0), (0.5, 0.0)):
        G = breakdown.gradients(breakdown.two_groups(12, 3, c, 0.75), 100, 0)
        for m, expected in ((1, alone), (2, 0.2), (4, 0.2)):
            d = make_rule("fa", m=m, formulation="released")(G)
            assert breakdown.byzantine_weight(d, G, 3) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("r", [0.0, 0.5, 0.75, 1.0])
def test_krums_threshold_is_where_the_scores_cross(r):
    c = breakdown.krum_threshold(12, 3, r)
    scores = krum_scores(breakdown.two_groups(12, 3, c, r).D2, 10)
    if c > 0:
        np.testing.assert_allclose(scores, scores[0])
    for nearby, chosen in ((c - 0.02, 0), (c + 0.02, 3)):
        if nearby > 0:
            G = np.linalg.cholesky(breakdown.two_groups(12, 3, nearby, min(r, 0.999)).K + 1e-9 * np.eye(15))
            assert (make_rule("krum", f=3).aggregate(G).decision.selected[0] >= 3) == (chosen == 3)


@pytest.mark.parametrize(("r", "columns"), [(0.0, 3), (0.75, 1)])
def test_with_the_default_m_the_faulty_group_gets_columns(r, columns):
    """m = 8 has room for both groups, so the subspace alone does not keep the faulty out; IRLS finds nothing better."""
    assert breakdown.byzantine_columns(12, 3, 0.3, r, m=8) == columns
    found = irls.solve_gram(breakdown.two_groups(12, 3, 0.3, r), irls.Options(m=8, max_iter=60, restarts=12))
    assert found.objective >= breakdown._choices(12, 3, 0.3, r, 8, 2.0).min() - 1e-6


def test_products_of_float32_are_symmetric_enough():
    G = np.random.default_rng(0).standard_normal((6, 100_000)).astype(np.float32)
    K = G @ G.T
    K[0, 1] += 1e-2 * np.float32(1)  # as other orders of the sum leave
    exact = breakdown.breakdown_margin(G.astype(np.float64) @ G.T.astype(np.float64), [0])
    assert breakdown.breakdown_margin(K.astype(np.float64), [0]) == pytest.approx(exact, abs=1e-4)


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match=r"^suspected must be .*\[\]"):
        breakdown.breakdown_margin(np.eye(4), [])
    with pytest.raises(ValueError, match=r"^c must be .*\b1\.5"):
        breakdown.two_groups(3, 1, 1.5, 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: breakdown.krum_threshold(4, 4, 0.5), r"^h must be .*\b7\b.*\b4\b"),
        (lambda: breakdown.krum_threshold(12, 3, 1.5), r"^r must be .*1\.5"),
        (lambda: breakdown.breakdown_margin(np.eye(5), [5]), r"^each of suspected must be .*\b5\b"),
        (lambda: breakdown.breakdown_margin(np.eye(3), [0], m=3), r"^m must be .*\b2\b.*\b3\b"),
        (lambda: breakdown.breakdown_margin(np.full((3, 3), np.nan), [0]), r"^K must be finite"),
        (lambda: breakdown.breakdown_margin(np.triu(np.ones((3, 3))), [0]), r"^K must be symmetric"),
        (lambda: breakdown.threshold(4, 0, 0.5, a=1.5), r"^a must be .*1\.5"),
    ],
)
def test_sizes_for_which_nothing_breaks_down_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
