"""The rules, pre-aggregators and options of the field: each against another library, or against a plain version."""

import warnings
from itertools import count, islice

import byzfl
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

import fa
from fa.rules.decision import NOT_FINITE
from fa.rules.preaggregators import make_preaggregator
from fa.utils.validation import TooFewWorkersError
from tests import reference

DRAWS = 300
NEW = ("geometric_median", "centered_clipping", "minimum_diameter_averaging", "caf", "monna")

Gradients = NDArray[np.float64]


def draw(seed: int, honest: bool = True, least: int = 5) -> tuple[Gradients, int]:
    """Return p gradients of n coordinates, and f: of p from 5 to 11, some of them shifted away."""
    rng = np.random.default_rng(seed)
    p, n = int(rng.integers(least, 12)), int(rng.integers(2, 30))
    f = int(rng.integers(0 if honest else 1, (p - 1) // 2 + 1))
    G = rng.standard_normal((p, n)) + rng.standard_normal(n) * rng.integers(0, 3)
    G[rng.permutation(p)[:f]] += rng.standard_normal(n) * rng.choice([0.0, 1.0, 10.0])
    return G, f


def agree(ours: object, theirs: object) -> bool:
    return np.allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-8, atol=1e-8)


def agreements(call: object, peer: object, **options: object) -> int:
    """Count the draws on which both give the same direction."""
    draws = [draw(seed, **options) for seed in range(DRAWS)]
    return sum(agree(call(G, f), peer(G, f)) for G, f in draws)


# --- rules ---

PEERS = {
    "geometric_median": (
        lambda G, f: fa.aggregate(G, "geometric_median", f=f, nu=0.1, max_iter=3, tol=0.0),
        lambda G, f: byzfl.GeometricMedian(nu=0.1, T=3)(G),
    ),
    "geometric_median to convergence": (
        lambda G, f: fa.aggregate(G, "geometric_median", f=f, nu=1e-6, max_iter=2000),
        lambda G, f: byzfl.GeometricMedian(nu=1e-6, T=2000)(G),
    ),
    "centered_clipping": (
        lambda G, f: fa.aggregate(G, "centered_clipping", f=f, tau=3.0, max_iter=4),
        lambda G, f: byzfl.CenteredClipping(L=4, tau=3.0)(G),
    ),
    "minimum_diameter_averaging": (
        lambda G, f: fa.aggregate(G, "minimum_diameter_averaging", f=f),
        lambda G, f: byzfl.MDA(f)(G),
    ),
    "monna": (
        lambda G, f: fa.aggregate(G, "monna", f=f, reference=2),
        lambda G, f: byzfl.MoNNA(f, idx=2)(G),
    ),
    "krum": (
        lambda G, f: fa.aggregate(G, "krum", f=f, neighbours="p-f-1", strict=False),
        lambda G, f: byzfl.Krum(f)(G),
    ),
    "multi_krum": (
        lambda G, f: fa.aggregate(G, "multi_krum", f=f, neighbours="p-f-1", keep=len(G) - f, strict=False),
        lambda G, f: byzfl.MultiKrum(f)(G),
    ),
    "median": (
        lambda G, f: fa.aggregate(G, "median", f=f),
        lambda G, f: byzfl.Median()(G),
    ),
    "meamed": (
        lambda G, f: fa.aggregate(G, "meamed", f=f),
        lambda G, f: byzfl.Meamed(f)(G),
    ),
    "trimmed_mean": (lambda G, f: fa.aggregate(G, "trimmed_mean", f=f), lambda G, f: byzfl.TrMean(f)(G)),
    "mean": (lambda G, f: fa.aggregate(G, "mean"), lambda G, f: byzfl.Average()(G)),
    "clip": (
        lambda G, f: fa.aggregate(G, "mean", preaggregators="clip:2.5"),
        lambda G, f: byzfl.Clipping(2.5)(G.copy()).mean(axis=0),
    ),
    "arc": (
        lambda G, f: fa.aggregate(G, "mean", f=f, preaggregators="arc"),
        lambda G, f: byzfl.ARC(f)(G.copy()).mean(axis=0),
    ),
    "nnm": (
        lambda G, f: fa.aggregate(G, "median", f=f, preaggregators="nnm"),
        lambda G, f: byzfl.Median()(byzfl.NNM(f)(G)),
    ),
}


@pytest.mark.filterwarnings("ignore:.*strict")
@pytest.mark.parametrize("name", PEERS)
def test_byzfl_agrees_in_every_draw(name: str) -> None:
    ours, theirs = PEERS[name]
    assert agreements(ours, theirs) == DRAWS


def numbers(seed: int) -> tuple[Gradients, int]:
    """Gradients of one coordinate, for which ByzFL's single step of the power method is exact."""
    rng = np.random.default_rng(seed)
    p = int(rng.integers(5, 12))
    return rng.standard_normal((p, 1)) + rng.standard_normal(), int(rng.integers(1, (p + 1) // 2))


def filter_ends(G: Gradients, f: int) -> bool:
    """Return whether the filter ends within 100 steps; a removed row that is far away can hold it up for long."""
    c = np.ones(len(G))
    for _ in range(100):
        if c.sum() <= len(G) - 2 * f:
            return True
        tau = np.square(G - c @ G / c.sum())[:, 0]
        c = c * (1 - tau / tau.max())
    return False


@pytest.mark.draws_globally
def test_byzfls_filter_agrees_on_numbers() -> None:
    problems = (numbers(seed) for seed in count())
    draws = list(islice((problem for problem in problems if filter_ends(*problem)), DRAWS))
    assert sum(agree(fa.aggregate(G, "caf", f=f, maximum="all"), byzfl.CAF(f)(G)) for G, f in draws) == DRAWS


@pytest.mark.filterwarnings("ignore:.*strict")
@pytest.mark.parametrize(
    ("name", "options", "plain"),
    [
        ("geometric_median", {}, reference.geometric_median),
        ("centered_clipping", {}, reference.centered_clipping),
        (
            "centered_clipping",
            {"start": "mean", "tau": 2.0},
            lambda G, f: reference.centered_clipping(G, f, 2.0, start=G.mean(axis=0)),
        ),
        ("minimum_diameter_averaging", {}, reference.minimum_diameter_averaging),
        ("caf", {}, reference.caf),
        ("caf", {"maximum": "all"}, lambda G, f: reference.caf(G, f, "all")),
        ("monna", {}, reference.monna),
        ("krum", {"neighbours": "p-f-1", "distance": "plain"}, lambda G, f: plain_krum(G, f, 1, False, 1)),
        ("krum", {"distance": "plain"}, lambda G, f: plain_krum(G, f, 2, False, 1)),
        ("multi_krum", {"keep": 3}, lambda G, f: plain_krum(G, f, 2, True, 3)),
        ("median", {"interpolation": "lower"}, lambda G, f: np.sort(G, axis=0)[(len(G) - 1) // 2]),
        (
            "meamed",
            {"interpolation": "lower"},
            lambda G, f: reference.around(G, np.sort(G, axis=0)[(len(G) - 1) // 2], len(G) - f),
        ),
    ],
)
def test_plain_versions_agree_in_every_draw(name: str, options: dict, plain: object) -> None:
    assert agreements(lambda G, f: fa.aggregate(G, name, f=f, strict=False, **options), plain) == DRAWS


def plain_krum(G: Gradients, f: int, less: int, squared: bool, keep: int) -> Gradients:
    """The mean of `keep` gradients by the sum of p - f - `less` distances, at least one, to the power of 1 or 2."""
    scores = []
    for i in range(len(G)):
        distances = sorted(np.linalg.norm(G[i] - G[j]) ** (2 if squared else 1) for j in range(len(G)) if j != i)
        scores.append(sum(distances[: max(1, len(G) - f - less)]))
    return G[sorted(range(len(G)), key=lambda i: scores[i])[:keep]].mean(axis=0)


def plain_bulyan(G: Gradients, f: int) -> Gradients:
    """Bulyan whose scores are sums of p' - f - 1 distances, not squared."""
    rows, chosen = list(range(len(G))), []
    while len(chosen) < len(G) - 2 * f:
        best = plain_krum(G[rows], f, 1, False, 1)
        (place,) = np.flatnonzero((G[rows] == best).all(axis=1))
        chosen.append(rows.pop(int(place)))
    S = G[chosen]
    return reference.around(S, np.median(S, axis=0), len(S) - 2 * f)


def test_bulyan_takes_the_definition_of_the_score() -> None:
    for seed in range(30):
        G = np.random.default_rng(seed).standard_normal((12, 9))
        ours = fa.aggregate(G, "bulyan", f=2, neighbours="p-f-1", distance="plain")
        np.testing.assert_allclose(ours, plain_bulyan(G, 2), atol=1e-12)
    with pytest.raises(ValueError, match=r"^formulation must be .*'released'"):
        fa.make_rule("bulyan", f=0, formulation="released", distance="plain")


def test_the_geometric_median_has_no_lower_neighbour() -> None:
    """The sum of distances at d is at most that at the gradients, and its gradient vanishes."""
    for seed in range(50):
        G, f = draw(seed)
        d = fa.aggregate(G, "geometric_median", f=f)
        assert sum_of_distances(G, d) <= min(sum_of_distances(G, g) for g in G) * (1 + 1e-9)
        apart = np.linalg.norm(G - d, axis=1)
        if apart.min() > 1e-3:
            assert np.linalg.norm(((G - d) / apart[:, None]).sum(axis=0)) < 1e-6


def sum_of_distances(G: Gradients, z: Gradients) -> float:
    return float(np.linalg.norm(G - z, axis=1).sum())


@pytest.mark.parametrize("p", [13, 17])
def test_many_equal_distances_give_the_first_smallest_set(p: int) -> None:
    """On a grid, where distances tie, so that the search meets long paths and cycles."""
    for seed in range(20):
        G = np.random.default_rng(seed).integers(0, 3, (p, 2)).astype(float)
        ours = fa.aggregate(G, "minimum_diameter_averaging", f=4)
        np.testing.assert_allclose(ours, reference.minimum_diameter_averaging(G, 4), atol=1e-12)


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("size", [1e3, 1e8, 1e30, 1e150])
def test_f_long_gradients_do_not_carry_a_rule_away(name: str, size: float) -> None:
    rng = np.random.default_rng(5)
    honest = 1 + 0.1 * rng.standard_normal((12, 40))
    G = np.vstack([size * rng.standard_normal((3, 40)), honest])
    d = fa.aggregate(G, name, f=3)
    radius = np.linalg.norm(honest - honest.mean(axis=0), axis=1).max()
    assert np.linalg.norm(d - honest.mean(axis=0)) <= radius


@pytest.mark.parametrize("name", NEW)
def test_gradients_that_nearly_agree_are_told_apart(name: str) -> None:
    """In float64, with differences of 1e-9 of the gradients' length."""
    rng = np.random.default_rng(6)
    base, differences = rng.standard_normal(40), rng.standard_normal((9, 40))
    near = fa.aggregate(base + 1e-9 * differences, name, f=2)
    if name == "centered_clipping":  # its first point is 0
        assert np.linalg.norm(near - base) < 1e-8
    else:
        np.testing.assert_allclose((near - base) / 1e-9, fa.aggregate(differences, name, f=2), atol=2e-5)


# --- the trusted worker of MoNNA ---


def test_the_trusted_worker_keeps_its_rank_if_others_are_excluded() -> None:
    G = np.random.default_rng(0).standard_normal((7, 5))
    bad = G.copy()
    bad[[0, 2]] = np.nan
    result = fa.make_rule("monna", f=2, reference=3).aggregate(bad)
    np.testing.assert_allclose(result.direction, fa.aggregate(G[[1, 3, 4, 5, 6]], "monna", f=0, reference=1))
    assert result.decision.excluded == {0: NOT_FINITE, 2: NOT_FINITE}
    with pytest.raises(TooFewWorkersError, match=r"^reference must be .*\b2\b"):
        fa.make_rule("monna", f=2, reference=2).aggregate(bad)
    np.testing.assert_allclose(fa.aggregate(G, "monna", f=3), reference.monna(G, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": 7}, r"^reference must be .*\b7\b"),
        ({"reference": -8}, r"^reference must be .*-8\b"),
        ({"preaggregators": "bucketing"}, r"^preaggregators must be .*bucketing"),
        ({"preaggregators": "bucketing:1"}, r"^preaggregators must be .*bucketing:1"),  # in another order
        ({"preaggregators": "krum"}, r"^preaggregators must be .*krum"),
    ],
)
def test_a_trusted_worker_that_the_rule_does_not_see(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fa.aggregate(np.eye(7), "monna", f=0, **options)


# --- p below the theorem's ---


@pytest.mark.parametrize(("name", "p", "f"), [("krum", 5, 2), ("multi_krum", 4, 1), ("bulyan", 9, 2), ("median", 4, 2)])
def test_a_rule_runs_below_its_condition_with_a_warning(name: str, p: int, f: int) -> None:
    G = np.random.default_rng(1).standard_normal((p, 6))
    with pytest.raises(TooFewWorkersError):
        fa.aggregate(G, name, f=f)
    rule = fa.make_rule(name, f=f, strict=False)
    with pytest.warns(UserWarning, match=rf"^{name}\b.*p = {p} and f = {f}\b"):
        d = rule(G)
    assert np.isfinite(d).all()
    with warnings.catch_warnings(action="error"):
        assert rule.accepts(p)
        rule(np.random.default_rng(1).standard_normal((4 * f + 3, 6)))


@pytest.mark.parametrize(
    ("name", "p", "f"), [("trimmed_mean", 4, 2), ("phocas", 4, 2), ("bulyan", 8, 2), ("caf", 4, 2)]
)
def test_a_rule_that_cannot_be_computed_is_refused_all_the_same(name: str, p: int, f: int) -> None:
    with pytest.raises(TooFewWorkersError, match=rf"\b{name}\b.*p = {p}\b"):
        fa.aggregate(np.eye(p), name, f=f, strict=False)


def test_the_released_bulyan_is_refused_below_its_condition() -> None:
    with pytest.raises(TooFewWorkersError), pytest.warns(UserWarning, match=r"^bulyan\b"):
        fa.aggregate(np.eye(10), "bulyan", f=2, strict=False, formulation="released")


@pytest.mark.filterwarnings("ignore:.*strict")
def test_pre_aggregators_run_below_their_conditions_too() -> None:
    G = np.random.default_rng(1).standard_normal((4, 6))
    with pytest.raises(TooFewWorkersError):
        fa.aggregate(G, "mean", f=2, preaggregators="nnm")
    np.testing.assert_allclose(
        fa.aggregate(G, "mean", f=2, preaggregators="nnm", strict=False), byzfl_free_nnm(G, 2).mean(axis=0)
    )


def byzfl_free_nnm(G: Gradients, f: int) -> Gradients:
    """Nearest-neighbour mixing, which byzfl refuses for p <= 2f."""
    return np.array([G[np.argsort(np.linalg.norm(G - g, axis=1))[: len(G) - f]].mean(axis=0) for g in G])


# --- pre-aggregators with a value ---


def test_buckets_of_any_size() -> None:
    """Each gradient is in one bucket, buckets are full except for the last, and d is a mean of the buckets' means."""
    G = np.random.default_rng(2).standard_normal((11, 11))
    for size in (1, 3, 4, 11, 20):
        step = make_preaggregator(f"bucketing:{size}")
        assert step.column_count(11, 0) == -(-11 // size)
        median = fa.aggregate(G, "median", preaggregators=(f"bucketing:{size}",), seed=3)
        order = np.random.default_rng((3, 0)).permutation(11)
        buckets = [G[order[start : start + size]].mean(axis=0) for start in range(0, 11, size)]
        np.testing.assert_allclose(median, np.median(buckets, axis=0), atol=1e-12)
    same = fa.aggregate(G, "median", preaggregators=("bucketing",), seed=3)
    assert np.array_equal(same, fa.aggregate(G, "median", preaggregators=("bucketing:2",), seed=3))


@pytest.mark.parametrize(
    "text",
    ["clip:0", "clip:-1", "clip:x", "clip:", "clip:nan", "clip:inf", "bucketing:0", "bucketing:1.5", "nnm:2", "box:2"],
)
def test_values_that_a_pre_aggregator_does_not_take(text: str) -> None:
    with pytest.raises(ValueError, match=rf"^preaggregators must be .*{text.partition(':')[0]}"):
        fa.make_rule("mean", preaggregators=text)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("geometric_median", {"nu": -1.0}, r"^nu must be .*-1\.0"),
        ("geometric_median", {"max_iter": 0}, r"^max_iter must be .*\b0\b"),
        ("geometric_median", {"tol": -1.0}, r"^tol must be .*-1\.0"),
        ("centered_clipping", {"tau": 0.0}, r"^tau must be .*\b0\.0"),
        ("centered_clipping", {"start": "median"}, r"^start must be .*'median'"),
        ("caf", {"maximum": "none"}, r"^maximum must be .*'none'"),
        ("krum", {"neighbours": "p-f"}, r"^neighbours must be .*'p-f'"),
        ("multi_krum", {"distance": "cosine"}, r"^distance must be .*'cosine'"),
        ("median", {"interpolation": "higher"}, r"^interpolation must be .*'higher'"),
    ],
)
def test_invalid_options_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fa.make_rule(name, f=0, **options)


@pytest.mark.parametrize("cosine", [0.005, 0.05, 0.5])
def test_the_geometric_median_leaves_zero_gradients_that_are_no_majority(cosine: float) -> None:
    """Three zeros and nine unit vectors of one mutual cosine: by symmetry the median is a multiple of their mean."""
    K = np.full((9, 9), cosine) + (1 - cosine) * np.eye(9)
    G = np.vstack([np.zeros((3, 9)), np.linalg.cholesky(K)])
    mean = G[3:].mean(axis=0)
    cost = lambda s: 3 * s * np.linalg.norm(mean) + 9 * np.linalg.norm(G[3] - s * mean)  # noqa: E731
    best = minimize_scalar(cost, bounds=(0, 1), method="bounded", options={"xatol": 1e-12}).x
    np.testing.assert_allclose(fa.aggregate(G, "geometric_median"), best * mean, atol=1e-5)


def test_the_geometric_median_stays_at_zeros_that_outweigh_the_others() -> None:
    G = np.vstack([np.zeros((3, 4)), np.eye(4)])  # the four unit vectors sum to one of length 2 < 3
    assert np.abs(fa.aggregate(G, "geometric_median")).max() < 1e-9
