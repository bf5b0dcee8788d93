"""When FA can be fooled: the model's closed forms, IRLS on it, simulated gradients, and real ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fa import breakdown, irls
from fa.rules import make_rule
from fa.selection import krum_scores


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
        assert breakdown.faulty_columns(h, f, c, r, a=a) == (faulty > honest)


@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize("a", [1.0, 2.0, 4.0])
def test_no_subspace_that_irls_finds_is_better_than_the_candidates(m, a):
    """On the model itself, from many starts: what is claimed to be the best is the best."""
    for c, r in ((0.1, 0.75), (0.3, 0.75), (0.5, 0.2), (0.05, 0.95)):
        gram = breakdown.two_groups(6, 2, c, r)
        found = irls.solve_gram(gram, irls.Options(m, a=a, max_iter=300, restarts=30))
        best = breakdown._choices(6, 2, c, r, m, a).min()
        assert found.objective >= best - 1e-6


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
        assert breakdown.faulty_columns(12, 3, c, 0.75, a=4.0) == 1


@pytest.mark.parametrize("a", [1.0, 2.0, 4.0])
def test_the_margin_of_the_model_is_the_difference_of_the_closed_forms(a):
    """On both sides of the border, and so with its sign: also where one member's own direction is the best."""
    border = breakdown.threshold(12, 3, 0.75, a=a)
    for c in (0.05, border - 0.03, border + 0.03, 0.5):
        K = simulated(c) @ simulated(c).T
        expected = gains(12, c, a) - gains(3, 0.75, a)
        resolution = 2 * irls.FLOOR ** (1 / a) + 1e-9  # a residual below FLOOR is not told from FLOOR
        assert breakdown.breakdown_margin(K, range(3), a=a) == pytest.approx(expected, abs=resolution)


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
    assert breakdown.faulty_columns(12, 3, 0.3, r, m=8) == columns
    found = irls.solve_gram(breakdown.two_groups(12, 3, 0.3, r), irls.Options(8, max_iter=300, restarts=30))
    assert found.objective >= breakdown._choices(12, 3, 0.3, r, 8, 2.0).min() - 1e-6


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match=r"suspected must be some, and not all, of 4 gradients; it is \[\]"):
        breakdown.breakdown_margin(np.eye(4), [])
    with pytest.raises(ValueError, match=r"c must be at most 1; it is 1\.5"):
        breakdown.two_groups(3, 1, 1.5, 0.5)
