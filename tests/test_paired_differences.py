"""Paired differences: tests and intervals against scipy's, and against the formulas of Student's t."""

import math

import numpy as np
import pytest
from scipy import stats

from fa.experiments.reporting.equivalence import EQUIVALENT, HELPS, LEVEL, UNDECIDED, PairedDifferences

MARGIN = 0.02


def sample(mean: float, deviation: float, n: int = 20) -> PairedDifferences:
    """A sample with exactly this mean and standard deviation."""
    values = np.random.default_rng(1).normal(size=n)
    values = (values - values.mean()) / values.std(ddof=1)
    return PairedDifferences(tuple((mean + deviation * values).tolist()))


def test_differences_are_paired_in_order() -> None:
    assert PairedDifferences.between([0.5, 0.75], [0.25, 1.0]).values == (0.25, -0.25)
    with pytest.raises(ValueError, match=r"^the seeds\b.*\(2, 1\)"):
        PairedDifferences.between([0.5, 0.6], [0.5])


@pytest.mark.parametrize("mean", [-0.03, 0.0, 0.015, 0.04])
@pytest.mark.parametrize("n", [2, 5, 20])
def test_one_sided_tests_are_scipys(mean: float, n: int) -> None:
    differences = sample(mean, 0.01, n)
    above = stats.ttest_1samp(differences.values, MARGIN, alternative="greater").pvalue
    below = stats.ttest_1samp(differences.values, MARGIN, alternative="less").pvalue
    assert differences.p_above(MARGIN) == pytest.approx(above, rel=1e-6)
    assert differences.p_below(MARGIN) == pytest.approx(below, rel=1e-6)
    lower = stats.ttest_1samp(differences.values, -MARGIN, alternative="greater").pvalue
    assert differences.p_equivalent(MARGIN) == pytest.approx(max(lower, below), rel=1e-6)


def test_the_equivalence_test_in_closed_form() -> None:
    """Mean 0.01, deviation 0.02, 16 values: the nearer bound is 0.01, two standard errors away."""
    differences = sample(0.01, 0.02, 16)
    assert differences.p_equivalent(MARGIN) == pytest.approx(stats.t.sf(2, 15), rel=1e-9)
    half = stats.t.ppf(0.95, 15) * 0.02 / math.sqrt(16)
    assert differences.interval() == pytest.approx((0.01 - half, 0.01 + half))


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ((0.005, 0.007, 0.006), True),
        ((-0.005, -0.007, -0.006), True),
        ((0.03, 0.031, 0.032), False),
        ((-0.03, -0.031, -0.032), False),
        ((-0.019, 0.0, 0.019), False),  # 0 on average, but the spread is too large
    ],
)
def test_equivalence_needs_both_one_sided_tests(differences: tuple[float, ...], expected: bool) -> None:
    p_value = PairedDifferences(differences).p_equivalent(MARGIN)
    assert p_value is not None
    assert (p_value < LEVEL) == expected


@pytest.mark.parametrize("mean", np.linspace(-0.03, 0.03, 13))
@pytest.mark.parametrize("deviation", [0.003, 0.02, 0.06])
def test_a_sample_is_equivalent_if_its_interval_lies_within_the_margin(mean: float, deviation: float) -> None:
    differences = sample(mean, deviation)
    low, high = differences.interval()
    within = -MARGIN < low and high < MARGIN
    assert (differences.result(MARGIN, 0.05 / 8) == EQUIVALENT) == within
    assert (differences.result(MARGIN, 0.05 / 8) == HELPS) == (differences.interval(0.05 / 8)[0] > MARGIN)


def test_results_go_either_way() -> None:
    assert sample(0.04, 0.01).result(MARGIN, 0.05 / 8) == HELPS
    assert sample(0.002, 0.01).result(MARGIN, 0.05 / 8) == EQUIVALENT
    assert sample(0.025, 0.02).result(MARGIN, 0.05 / 8) == UNDECIDED
    assert sample(-0.04, 0.01).result(MARGIN, 0.05 / 8) == UNDECIDED
    assert sample(0.026, 0.01).result(MARGIN, 0.05 / 8) == UNDECIDED != sample(0.026, 0.01).result(MARGIN, 0.05)


def test_equal_differences_have_no_spread_and_one_allows_no_test() -> None:
    assert PairedDifferences((0.03,) * 5).result(MARGIN, 0.01) == HELPS
    assert PairedDifferences((0.01,) * 5).result(MARGIN, 0.01) == EQUIVALENT
    assert PairedDifferences((-0.03,) * 5).result(MARGIN, 0.01) == UNDECIDED
    one = PairedDifferences((0.03,))
    assert one.p_above(MARGIN) is None
    assert one.p_equivalent(MARGIN) is None
    assert one.interval() == (0.03, 0.03)
    assert one.result(MARGIN, 0.01) == UNDECIDED


def test_the_power_is_what_the_rules_of_judgement_state() -> None:
    """With the largest deviation measured, 0.038, and a difference 0.05 beyond the margin."""
    rng = np.random.default_rng(0)
    samples = [PairedDifferences(tuple(rng.normal(MARGIN + 0.05, 0.038, 20).tolist())) for _ in range(400)]
    assert np.mean([one.result(MARGIN, 0.05 / 8) == HELPS for one in samples]) > 0.9
