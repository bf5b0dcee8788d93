"""FA's starts and nested subspaces as options of the rule: against plain versions, and in training."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from fa import flags, irls, likelihood, make_rule
from fa.gradients.blocks import ColumnBlocks
from fa.gradients.measurement import measure
from fa.irls.first_basis import wishart
from fa.training import TrainConfig, train
from fa.utils import seeds
from tests import reference


def gradients(p: int, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((p, n)) + 0.3


def plain_released(G: np.ndarray, m: int, seed: int, iteration: int) -> np.ndarray:
    """One step from the weights of a random orthonormal Y in all n coordinates, drawn as (inside, outside) the span."""
    X = (G / np.linalg.norm(G, axis=1, keepdims=True)).T
    Q = X @ irls.build_problem(measure(torch.from_numpy(G))[0], m, 0.0, 2.0).basis
    outside = np.linalg.svd(Q, full_matrices=True)[0][:, Q.shape[1] :]
    generator = np.random.default_rng(seeds.derive_seed("first basis", seed, 0, iteration))
    A = generator.standard_normal((Q.shape[1], m))
    B = generator.standard_normal((outside.shape[1], m))
    first = np.linalg.qr(Q @ A + outside @ B)[0]
    weights = np.array([max(1 - np.sum((first.T @ x) ** 2), 1e-12) ** -0.5 for x in X.T])
    Y = np.linalg.svd(X * np.sqrt(weights), full_matrices=False)[0][:, :m]
    return (Y @ (Y.T @ X)).sum(axis=1) / m


@pytest.mark.parametrize("iteration", [0, 7])
@pytest.mark.parametrize(("n", "m"), [(30, 4), (100, 8), (15, 8)])
def test_a_random_first_basis_is_a_plain_one_in_all_coordinates(n: int, m: int, iteration: int) -> None:
    G = gradients(15, n, n)
    rule = make_rule("fa", formulation="released", start="random", m=m, seed=5)
    np.testing.assert_allclose(rule(G, iteration), plain_released(G, m, 5, iteration), atol=1e-9)


def test_a_random_first_basis_is_a_function_of_seed_and_iteration() -> None:
    G = gradients(9, 30)
    draw = lambda seed, iteration: make_rule("fa", formulation="released", start="random", seed=seed)(G, iteration)  # noqa: E731
    np.testing.assert_array_equal(draw(1, 3), draw(1, 3))
    assert not np.allclose(draw(1, 3), draw(1, 4))
    assert not np.allclose(draw(1, 3), draw(2, 3))


@pytest.mark.parametrize("n", [40, 2_000])
def test_explained_variances_of_a_random_basis_are_beta_distributed(n: int) -> None:
    """v of a unit vector under a uniform subspace is Beta(m/2, (n - m)/2); 2,000 rows are drawn as a Wishart matrix."""
    m, problem = 3, irls.build_problem(measure(torch.from_numpy(gradients(2, n)))[0], 2, 0.0, 2.0)
    problem = replace(problem, m=m)
    v = [1 - irls.random_first_basis(n, seed)(problem)[0] ** -2.0 for seed in range(1500)]
    assert stats.kstest(v, stats.beta(m / 2, (n - m) / 2).cdf).pvalue > 1e-3


def test_a_wishart_matrix_has_its_mean_in_both_ways() -> None:
    generator = np.random.default_rng(0)
    for degrees in (0, 5, 300):
        mean = np.mean([wishart(3, degrees, generator) for _ in range(2000)], axis=0)
        np.testing.assert_allclose(mean, degrees * np.eye(3), atol=0.08 * max(degrees, 1))


def test_a_random_first_basis_needs_the_number_of_coordinates() -> None:
    G, rule = torch.from_numpy(gradients(9, 30)), make_rule("fa", formulation="released", start="random")
    assert rule.weights(measure(G)[0]) is None
    with pytest.raises(ValueError, match=r"^n\b"):
        rule.decide(measure(G)[0])
    whole = rule.aggregate_blocks(ColumnBlocks((G,)), 3)[0][0]
    parts = rule.aggregate_blocks(ColumnBlocks((G[:, :11], G[:, 11:])), 3)[0]
    torch.testing.assert_close(torch.cat(parts), whole)
    with pytest.raises(ValueError, match=r"^m\b.*\b4\b"):
        make_rule("fa", formulation="released", start="random")(gradients(9, 4))


@pytest.mark.parametrize("start", ["data", "random"])
def test_a_start_is_the_solvers(start: str) -> None:
    G = gradients(9, 40)
    rule = make_rule("fa", preaggregators=(), start=start, seed=4, m=3)
    seed = seeds.derive_seed("first basis", 4, 0, 2)
    np.testing.assert_allclose(rule(G, 2), irls.solve(G, m=3, start=start, seed=seed).direction(), atol=1e-12)


@pytest.mark.parametrize("count", [1, 5, 400])
def test_hints_of_the_largest_coordinates_are_those_of_flags(count: int) -> None:
    G = gradients(9, 40)
    named = [np.argsort(-np.abs(row))[: min(count, 40)] for row in G]
    expected = irls.solve(G, m=3, start=flags.hints(G, named, 3)).direction()
    aggregate = make_rule("fa", preaggregators=(), start=f"largest:{count}", m=3).aggregate(G)
    np.testing.assert_allclose(aggregate.direction, expected, atol=1e-10)
    assert aggregate.decision.weights is not None
    assert aggregate.decision.values is not None


def test_nested_dimensions_are_those_of_flags() -> None:
    G = gradients(9, 40)
    aggregate = make_rule("fa", preaggregators=(), dims=(1, 3, 5)).aggregate(G)
    flag = flags.solve(G, (1, 3, 5), max_iter=5)
    np.testing.assert_allclose(aggregate.direction, flag.direction(), atol=1e-12)
    np.testing.assert_allclose(aggregate.decision.values, flag.values[-1], atol=1e-12)
    one = make_rule("fa", preaggregators=(), dims=(5,), max_iter=50)(G)
    np.testing.assert_allclose(one, make_rule("fa", preaggregators=(), m=5, max_iter=50)(G), atol=1e-4)


def test_nested_dimensions_above_the_rank_are_reduced_to_it() -> None:
    """The outermost subspace keeps as many dimensions as there are."""
    G = gradients(6, 20)
    excluded = np.vstack([G[:5], np.full((1, 20), np.nan)])
    low = gradients(9, 3) @ gradients(3, 20, seed=1)
    for matrix, dims, least in ((excluded, (1, 6), (1, 5)), (excluded, (1, 5, 6), (1, 5)), (low, (1, 5), (1, 3))):
        np.testing.assert_allclose(make_rule("fa", dims=dims)(matrix), make_rule("fa", dims=least)(matrix), atol=1e-12)
    assert np.isfinite(make_rule("fa", f=6, dims=(4, 8))(G)).all()


@pytest.mark.parametrize("distance", [1e-5, 1e-6, 3e-7, 1e-7, 1e-8, 0.0])
def test_nested_dimensions_of_gradients_that_nearly_agree(distance: float) -> None:
    G = gradients(6, 20)
    G[1] = G[0] + distance * np.random.default_rng(1).standard_normal(20)
    np.testing.assert_allclose(
        make_rule("fa", preaggregators="unit", dims=(2, 6))(G), make_rule("mean", preaggregators="unit")(G), atol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "largest:0"}, r"^start\b.*largest:0"),
        ({"start": "largest:x"}, r"^start\b.*largest:x"),
        ({"start": "equally"}, r"^start\b.*equally.*'equal'"),
        ({"start": "largest:3", "regularizer": "rows", "lam": 1.0}, r"^start\b"),
        ({"dims": (3, 2)}, r"^dims\b.*\(3, 2\)"),
        ({"dims": (2, 3), "m": 3}, r"^m\b.*3"),
        ({"dims": (2, 3), "formulation": "released"}, r"^formulation\b"),
        ({"dims": (2, 3), "regularizer": "l1", "lam": 1.0}, r"^regularizer\b"),
        ({"dims": (2, 3), "group_term": "chordal"}, r"^group_term\b"),
        ({"prior": (1.0, 0.5), "regularizer": "group", "lam": 1.0}, r"^regularizer\b"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_rule("fa", **options)


def test_hints_are_refused_where_coordinates_are_in_many_places() -> None:
    with pytest.raises(ValueError, match=r"^start\b"):
        make_rule("fa", start="largest:3").check_decides_in_gram("here")


@pytest.mark.parametrize("options", [{"start": "largest:20"}, {"dims": (1, 3)}, {"start": "random"}])
def test_a_run_has_these_options(options: dict[str, Any]) -> None:
    config = TrainConfig(workers=5, byzantine=1, iterations=3, batch=4, rule_options=options)
    run = train(config, threads=1)
    assert np.isfinite(run.curve[-1].train_loss)
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("prior", [(1.0, 0.5), (0.5, 0.5), (2.0, 0.7)])
def test_a_prior_is_the_likelihoods_fit(prior: tuple[float, float]) -> None:
    """Y Y^T of the mean, with the Y of `fit`, whose law is checked against plain versions elsewhere."""
    G = gradients(7, 40)
    aggregate = make_rule("fa", preaggregators=(), prior=prior, max_iter=100, m=3).aggregate(G)
    Y = likelihood.fit(G, likelihood.Beta(*prior, a=2.0), 3, max_iter=100, restarts=0).Y
    np.testing.assert_allclose(aggregate.direction, Y @ (Y.T @ G.mean(axis=0)), atol=1e-10)
    np.testing.assert_allclose(aggregate.decision.values, [np.sum((Y.T @ g) ** 2) / (g @ g) for g in G], atol=1e-9)


def test_the_papers_prior_is_irls() -> None:
    G = gradients(7, 40)
    options = {"preaggregators": (), "max_iter": 200, "m": 3}
    np.testing.assert_allclose(make_rule("fa", prior=(1, 0.5), **options)(G), make_rule("fa", **options)(G), atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"prior": (1.0,)},
        {"prior": (0.0, 0.5)},
        {"prior": (1.0, 0.5), "dims": (1, 2)},
        {"prior": (1.0, 0.5), "formulation": "released"},
    ],
)
def test_priors_that_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^(prior|alpha)\b"):
        make_rule("fa", **options)


def test_the_printed_formula_of_bulyan_has_no_negative_coordinate() -> None:
    """(1/m) ReLU(G S) 1 of section 2.3 against Bulyan's first stage: it is its mean of selected gradients, cut at 0."""
    G, f = gradients(15, 200) - 0.3, 3
    S = np.zeros((15, 15 - 2 * f))
    S[reference.bulyan_selection(G, f), range(S.shape[1])] = 1.0
    assert np.array_equal(S.sum(axis=0), np.ones(S.shape[1]))
    printed, linear = np.maximum(G.T @ S, 0).mean(axis=1), (G.T @ S).mean(axis=1)
    bulyan = make_rule("bulyan", f=f)(G)
    np.testing.assert_allclose(linear, G[reference.bulyan_selection(G, f)].mean(axis=0))
    assert printed.min() >= 0
    assert (bulyan < 0).mean() > 0.3
    cosine = lambda x, y: x @ y / np.linalg.norm(x) / np.linalg.norm(y)  # noqa: E731
    assert cosine(linear, bulyan) > cosine(printed, bulyan) + 0.1
    np.testing.assert_allclose(np.maximum(np.abs(G).T @ S, 0), np.abs(G).T @ S)  # Without signs it changes nothing.
