"""The rules against plain ones, against byzfl, on hard inputs, and in what must always hold."""

import re
import warnings
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any, ClassVar

import byzfl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fa
from fa import RULES, aggregate, make_rule
from fa.gradients.measurement import measure
from fa.rules import ColumnDecision
from fa.rules.decision import NOT_FINITE
from fa.rules.preaggregators import PreaggregatorContext, apply_preaggregators
from fa.utils.validation import TooFewWorkersError
from tests import reference
from tests.processes import printed_beside, refusals
from tests.tensors import DEVICE

FA = {"paper": {"preaggregators": ()}, "released": {"formulation": "released"}, "default": {}}
SELECTIVE = ("krum", "multi_krum", "geometric_median", "minimum_diameter_averaging", "caf", "monna")
ROBUST = ("median", "trimmed_mean", "meamed", "phocas", "bulyan", *SELECTIVE)


def normal(p, n, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((p, n)).astype(dtype)


def decide(G, name, **options):
    return make_rule(name, **options).aggregate(G).decision


# --- against plain ones ---


@pytest.mark.parametrize("name", reference.RULES)
@pytest.mark.parametrize(("p", "f"), [(3, 0), (4, 0), (7, 1), (12, 1), (15, 3), (16, 2), (31, 7)])
def test_a_rule_is_its_papers(name, p, f):
    if name == "minimum_diameter_averaging" and comb(p, f) > 1000:
        f = 2  # the plain version tries all sets
    digits = 1e-8 if name == "geometric_median" else 1e-12 if name == "caf" else 1e-13
    G = normal(p, 301, seed=p)
    np.testing.assert_allclose(aggregate(G, name, f=f), reference.RULES[name](G, f), rtol=0, atol=digits)


@pytest.mark.parametrize(("p", "f"), [(7, 1), (15, 3)])
def test_float32_follows_float64(p, f):
    G = normal(p, 2001, seed=p)
    for name in RULES:
        narrow = aggregate(G.astype(np.float32), name, f=f)
        np.testing.assert_allclose(narrow, aggregate(G, name, f=f), rtol=0, atol=2e-6)


@pytest.mark.parametrize("lam", [0.0, 3.0])
@pytest.mark.parametrize("p", [1, 2, 6, 15])
def test_fa_is_its_paper_and_its_released_code(p, lam):
    G = normal(p, 60, seed=p) * np.linspace(0.5, 20, p)[:, None]
    m = -(-(p + 1) // 2)
    paper = aggregate(G, "fa", lam=lam, preaggregators=(), tol=0.0)
    np.testing.assert_allclose(paper, reference.fa_paper(G, m, lam), atol=1e-8)
    released = aggregate(G, "fa", lam=lam, formulation="released")
    np.testing.assert_allclose(released, reference.fa_released(G, m, lam), atol=1e-10)
    norms = np.linalg.norm(G, axis=1, keepdims=True)
    level = reference.fa_paper(G / norms * np.median(norms), m, lam)
    np.testing.assert_allclose(aggregate(G, "fa", lam=lam, tol=0.0), level, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("mean", lambda f: byzfl.Average()),
        ("median", lambda f: byzfl.Median()),
        ("trimmed_mean", byzfl.TrMean),
        ("meamed", byzfl.Meamed),
        ("krum", byzfl.Krum),
    ],
)
@pytest.mark.parametrize(("p", "f"), [(7, 1), (15, 3)])
def test_a_rule_is_byzfls(name, theirs, p, f):
    """byzfl's Krum sums over p - f - 1 neighbours: the seed is one with which that picks the same gradient."""
    G = normal(p, 200, seed=1)
    np.testing.assert_allclose(aggregate(G, name, f=f), theirs(f)(G), atol=1e-12)


def test_multi_krum_that_keeps_p_minus_f_is_byzfls():
    G = np.vstack([normal(12, 200), 5 + normal(3, 200, seed=9)])
    np.testing.assert_allclose(aggregate(G, "multi_krum", f=3, keep=12), byzfl.MultiKrum(3)(G), atol=1e-12)


@pytest.mark.parametrize(("step", "theirs"), [("nnm", byzfl.NNM(3)), ("clip", None)])
def test_a_step_before_a_rule_is_byzfls(step, theirs):
    G = normal(15, 200) * np.linspace(0.5, 5, 15)[:, None]
    mixed = theirs(G) if theirs else byzfl.Clipping(float(np.median(np.linalg.norm(G, axis=1))))(G)
    np.testing.assert_allclose(
        aggregate(G, "trimmed_mean", f=3, preaggregators=(step,)), reference.trimmed_mean(mixed, 3), atol=1e-12
    )


def test_steps_compose_with_every_rule():
    """Krum's choice, then the median norm, then the rule: what the rule gives for those gradients, f unchanged."""
    G = normal(20, 80) * np.linspace(0.5, 5, 20)[:, None]
    kept = G[sorted(reference.krum_order(G, 2, 16)[:18])]
    norms = np.linalg.norm(kept, axis=1, keepdims=True)
    level = kept / norms * np.median(norms)
    for name in set(RULES) - {"monna"}:  # its trusted gradient may not be among Krum's
        expected = aggregate(level, name, f=2, preaggregators=())
        np.testing.assert_allclose(
            aggregate(G, name, f=2, preaggregators=("krum", "median_norm")), expected, atol=1e-12
        )


# --- what must always hold ---

# p and f with which neither Krum nor Bulyan ever scores by one neighbour alone, which always ties.
problems = st.tuples(st.integers(0, 10_000), st.sampled_from([(15, 3), (16, 3), (20, 4)]))
few = settings(max_examples=12)  # a case: there are many of them


def options_of(name):
    return FA if name == "fa" else {"": {}}


CASES = [(name, key) for name in RULES for key in options_of(name)]


# Of MoNNA, the trusted worker has a rank. Sets of equal diameter tie, and the first one is taken.
UNORDERED = [case for case in CASES if case[0] not in ("monna", "minimum_diameter_averaging")]


@pytest.mark.parametrize(("name", "key"), UNORDERED)
@few
@given(problem=problems)
def test_the_order_of_workers_does_not_matter(name, key, problem):
    seed, (p, f) = problem
    G = normal(p, 33, seed)
    order = np.random.default_rng(seed).permutation(p)
    rule = make_rule(name, f=f, **options_of(name)[key])
    np.testing.assert_allclose(rule(G[order]), rule(G), atol=1e-9)


@pytest.mark.parametrize(("name", "key"), CASES)
@few
@given(problem=problems, scale=st.sampled_from([2.0**-40, 0.3, 7.0, 2.0**40]))
def test_a_common_scale_passes_through(name, key, problem, scale):
    """The released formulation is of degree 0: its output forgets the length."""
    seed, (p, f) = problem
    G = normal(p, 33, seed)
    rule = make_rule(name, f=f, **options_of(name)[key])
    degree = 0 if key == "released" else 1
    np.testing.assert_allclose(rule(scale * G), scale**degree * rule(G), rtol=1e-8, atol=1e-9 * scale**degree)


@pytest.mark.parametrize("name", ["mean", *ROBUST])
@few
@given(problem=problems)
def test_a_common_translation_passes_through(name, problem):
    """Not for FA, whose subspace goes through the origin."""
    seed, (p, f) = problem
    G, shift = normal(p, 33, seed), 10 * normal(1, 33, seed + 1)[0]
    rule = make_rule(name, f=f)
    np.testing.assert_allclose(rule(G + shift), rule(G) + shift, atol=1e-9)


IN_GRAM_SPACE = ("mean", "fa", "centered_clipping", *SELECTIVE)


@pytest.mark.parametrize(("name", "key"), [case for case in CASES if case[0] in IN_GRAM_SPACE])
@few
@given(problem=problems)
def test_a_rotation_of_the_parameters_passes_through(name, key, problem):
    """For the rules that decide in the Gram matrix alone."""
    seed, (p, f) = problem
    G = normal(p, 20, seed)
    Q = np.linalg.qr(normal(20, 20, seed + 1))[0]
    rule = make_rule(name, f=f, **options_of(name)[key])
    np.testing.assert_allclose(rule(G @ Q), rule(G) @ Q, atol=1e-9)


@pytest.mark.parametrize("name", [*ROBUST, "fa"])
@few
@given(problem=problems, size=st.sampled_from([1.0, 1e3, 1e30]), kind=st.sampled_from(["apart", "together", "one"]))
def test_f_arbitrary_rows_cannot_carry_the_result_away(name, problem, size, kind):
    """The result stays as near the honest mean as the honest gradients are, whatever the size of the others.

    FA promises less: each faulty direction may enter Y, but weighs no more than a gradient of median norm.
    """
    seed, (p, f) = problem
    honest = 1 + 0.1 * normal(p - f, 50, seed)
    faulty = {"apart": normal(f, 50, seed + 1), "together": np.repeat(normal(1, 50, seed + 1), f, axis=0)}
    faulty["one"] = np.eye(f, 50)
    G = np.vstack([size * faulty[kind], honest])
    d = aggregate(G, name, f=f)
    radius = np.linalg.norm(honest - honest.mean(axis=0), axis=1).max()
    allowed = 2 * radius if name != "fa" else radius + 2 * f / p * np.median(np.linalg.norm(G, axis=1))
    assert np.linalg.norm(d - honest.mean(axis=0)) <= allowed


def test_the_mean_and_the_formula_as_printed_are_carried_away_by_one_row():
    G = np.vstack([1e6 * normal(1, 50), 1 + 0.1 * normal(14, 50, seed=1)])
    for d in (aggregate(G, "mean"), aggregate(G, "fa", preaggregators=())):
        assert np.linalg.norm(d - G[1:].mean(axis=0)) > 1e4


# --- hard inputs ---


HARD = {
    "zeros": lambda base: np.zeros_like(base),
    "equal": lambda base: np.repeat(base[:1], 15, axis=0),
    "rank two": lambda base: np.repeat(base[:2], 8, axis=0)[:15],
    "offset": lambda base: base + base.dtype.type(1e4),
    "norms apart by 1e60": lambda base: base * np.logspace(-30, 30, 15, dtype=base.dtype)[:, None],
    "a zero row": lambda base: base * (np.arange(15) != 4)[:, None],
    "one column": lambda base: base[:, :1],
}


ITERATIVE = {"fa": 1e-7, "geometric_median": 1e-8, "caf": 1e-10}
"""Relative tolerance in float64 of rules that iterate."""


def plainly(step, G):
    """A step on the gradients themselves."""
    norms = np.linalg.norm(G, axis=1, keepdims=True)
    over = np.divide(1.0, norms, out=np.ones_like(norms), where=norms > 0)
    factors = {"unit": over, "median_norm": np.median(norms) * over, "clip": np.minimum(1.0, np.median(norms) * over)}
    return G * np.where(norms > 0, factors[step], 1.0) if step else G


def fa_plainly(G):
    """The formula as printed; where the gradients' rank is below m, the mean."""
    norms = np.linalg.norm(G, axis=1)
    alive = G[norms > 0]
    rank = np.linalg.matrix_rank(alive / norms[norms > 0, None], tol=1e-8) if len(alive) else 0
    return reference.fa_paper(alive, 8) * len(alive) / 15 if rank > 8 else G.mean(axis=0)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("step", ["", "unit", "median_norm", "clip"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_hard_gradients_give_what_the_plain_rules_give(name, step, dtype):
    """Each coordinate to the last digits of the largest value that it is made of."""
    for case, make in HARD.items():
        G = make(normal(15, 100, dtype=dtype))
        if name == "fa" and case == "norms apart by 1e60" and not step:
            continue  # what the printed formula makes of 1e-30 beside 1e30 is below the last digit
        if case == "one column" and step:
            continue  # all are one number or its negative, and how they tie falls to rounding
        mixed = plainly(step, G.astype(np.float64))
        expected = fa_plainly(mixed) if name == "fa" else reference.RULES[name](mixed, 3)
        d = aggregate(G, name, f=3, preaggregators=(step,) if step else (), **({"tol": 0.0} if name == "fa" else {}))
        digits = (1e-4 if name == "fa" else 4e-6) if dtype == np.float32 else ITERATIVE.get(name, 1e-12)
        bound = digits * (np.abs(mixed).max() if name in ("mean", "fa") else np.abs(expected).max())
        wrong = np.abs(d - expected) > bound + 1e-300
        # Of two values whose distances from the centre differ by about one float32 spacing, the other may be taken.
        chooses = dtype == np.float32 and name in ("meamed", "phocas", "bulyan")
        assert wrong.sum() <= (1 if chooses else 0), case


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("preaggregators", [None, (), ("unit",), ("median_norm",), ("clip",), ("krum",), ("nnm",)])
@pytest.mark.parametrize("scale", [1e-200, 1e200])
@pytest.mark.filterwarnings("ignore::UserWarning")  # FA's of preaggregators that do not bound norms
def test_float64_of_any_scale_is_aggregated_as_at_scale_one(name, preaggregators, scale):
    if name == "monna" and preaggregators == ("krum",):
        return  # which MoNNA refuses
    G = normal(15, 40)
    expected = aggregate(G, name, f=1, preaggregators=preaggregators)
    factor = 1.0 if preaggregators == ("unit",) else scale
    np.testing.assert_allclose(
        aggregate(G * scale, name, f=1, preaggregators=preaggregators) / factor, expected, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("preaggregators", [None, (), ("unit",), ("median_norm",), ("clip",), ("krum",), ("nnm",)])
@pytest.mark.parametrize("scale", [1e-200, 1e200])
@pytest.mark.filterwarnings("ignore::UserWarning")  # FA's of preaggregators that do not bound norms
def test_values_of_any_scale_are_those_at_scale_one(preaggregators, scale):
    G = normal(15, 40)
    values = [make_rule("fa", f=0, preaggregators=preaggregators).aggregate(X).decision.values for X in (G, G * scale)]
    np.testing.assert_allclose(*values, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("scale", [1e-200, 1e200, 1e-310])
def test_one_gradient_of_extreme_length_counts_as_it_does_at_length_one(name, scale):
    G = normal(15, 40)
    extreme = G.copy()
    extreme[4] *= scale
    if scale > 1e-300:
        expected = aggregate(G, name, f=1, preaggregators=("unit",))
        np.testing.assert_allclose(
            aggregate(extreme, name, f=1, preaggregators=("unit",)), expected, rtol=0, atol=1e-12
        )
    else:  # a norm below 2^-1000 counts as 0
        zero = G * (np.arange(15) != 4)[:, None]
        for preaggregators in (None, ("unit",)):
            expected = aggregate(zero, name, f=1, preaggregators=preaggregators)
            np.testing.assert_allclose(
                aggregate(extreme, name, f=1, preaggregators=preaggregators), expected, rtol=0, atol=1e-300
            )
    assert np.isfinite(aggregate(extreme, name, f=1)).all()


def test_krum_sees_through_one_gradient_of_extreme_length():
    G = normal(15, 40)
    for scale in (1e-200, 1e200):
        extreme = G.astype(np.longdouble)  # whose range holds the squares
        extreme[4] *= scale
        order = reference.krum_order(extreme, 1, 12)
        decision = decide(extreme.astype(np.float64), "multi_krum", f=1, keep=5)
        assert decision.selected == tuple(sorted(order[:5]))


@pytest.mark.parametrize("name", ["mean", "median", "trimmed_mean", "meamed", "phocas", "fa"])
def test_one_worker_is_its_own_mean(name):
    G = normal(1, 30)
    np.testing.assert_allclose(aggregate(G, name, f=0), G[0], atol=1e-12)


def test_ties_take_the_lowest_row():
    G = np.ones((7, 3))
    assert decide(G, "krum", f=1).selected == (0,)
    assert decide(G, "multi_krum", f=1).selected == (0, 1, 2, 3)
    assert decide(G, "bulyan", f=1).selected == (0, 1, 2, 3, 4)
    mirrored = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1], [5, 5]])  # the first four have equal scores
    assert decide(mirrored, "krum", f=1).selected == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", RULES)
def test_tensors_of_every_dtype_and_on_the_tests_device(name, dtype):
    G = torch.from_numpy(normal(15, 500)).to(DEVICE, dtype)
    d = aggregate(G, name, f=3)
    assert d.dtype == dtype
    assert d.device == G.device
    digits = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    expected = aggregate(G.double().cpu(), name, f=3)
    torch.testing.assert_close(d.double().cpu(), expected, rtol=digits, atol=digits)


# --- workers with NaN or Inf ---


@pytest.mark.parametrize(("name", "key"), CASES)
@pytest.mark.parametrize("preaggregators", [None, ("krum",), ("nnm",)])
@pytest.mark.filterwarnings("ignore::UserWarning")  # FA's of preaggregators that do not bound norms
def test_rows_that_are_not_finite_are_left_out_and_count_against_f(name, key, preaggregators):
    if name == "monna" and preaggregators == ("krum",):
        return  # which MoNNA refuses
    G = normal(19, 64)
    options = dict(options_of(name)[key]) | ({"preaggregators": preaggregators} if preaggregators else {})
    bad = G.copy()
    bad[2, 5], bad[11] = np.nan, np.inf
    rest = np.delete(G, [2, 11], axis=0)
    result = make_rule(name, f=3, **options).aggregate(bad)
    np.testing.assert_allclose(result.direction, aggregate(rest, name, f=1, **options), atol=1e-12)
    assert result.decision.excluded[2] == result.decision.excluded[11] == NOT_FINITE
    assert not {2, 11} & set(result.decision.selected)
    if result.decision.weights is not None:
        assert result.decision.weights[2] == result.decision.weights[11] == 0
    more = make_rule(name, f=1, **options).aggregate(bad)  # more than f: f' is 0
    np.testing.assert_allclose(more.direction, aggregate(rest, name, f=0, **options), atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_a_row_that_is_not_finite_counts_against_f_where_the_condition_holds_only_then(name):
    """Whether or not the rule looks at the Gram matrix: p' = 11 and f' = 2, where 12 and 3 are too few for Bulyan."""
    times, plus = make_rule(name, f=0).min_workers
    f = 3
    p = times * f + plus - 1 if times else 12
    G = normal(p, 20)
    G[1] = np.inf
    rest = np.delete(G, 1, axis=0)
    np.testing.assert_allclose(aggregate(G, name, f=f), aggregate(rest, name, f=f - 1), atol=1e-12)


def test_when_the_condition_no_longer_holds_the_error_says_why():
    G = normal(15, 9)
    G[0] = G[1] = G[2] = G[3] = np.nan
    aggregate(G, "bulyan", f=3)  # p' = 11, f' = 0
    G = np.vstack([normal(7, 9), np.full((1, 9), np.nan)])
    with pytest.raises(TooFewWorkersError, match=rf"\bbulyan\b.*\b4f \+ 3\b.*\b7\b.*\b2\b.*\b1 of 8\b.*{NOT_FINITE}"):
        aggregate(np.vstack([G, G[:0]]), "bulyan", f=3)
    with pytest.raises(TooFewWorkersError, match=rf"^G must .*{NOT_FINITE}"):
        aggregate(np.full((3, 4), np.inf), "mean")


# --- the decision ---


def test_decisions_tell_who_was_used_and_why_not_the_others():
    G = np.vstack([normal(12, 50), 9 + normal(3, 50)])
    krum = decide(G, "multi_krum", f=3)
    assert len(krum.selected) == 10
    assert set(krum.selected) | set(krum.excluded) == set(range(15))
    assert {12, 13, 14} <= set(krum.excluded)
    (reason,) = set(krum.excluded.values())
    assert "10" in reason  # the scores that were kept
    np.testing.assert_allclose(krum.weights @ G, aggregate(G, "multi_krum", f=3))
    fa = decide(G, "fa", f=3, preaggregators=("krum", "median_norm"))
    assert list(fa.excluded) == [12, 13, 14]
    assert not {reason, NOT_FINITE} & set(fa.excluded.values())  # by a step before the rule, which is another reason
    np.testing.assert_allclose(fa.weights @ G, aggregate(G, "fa", f=3, preaggregators=("krum", "median_norm")))
    median = decide(G, "median")
    assert median.weights is None
    assert median.selected == tuple(range(15))
    bulyan = decide(G, "bulyan", f=3)
    assert bulyan.selected == tuple(reference.bulyan_selection(G, 3))


@pytest.mark.parametrize("preaggregators", [(), ("median_norm",), ("krum",), ("nnm",), ("bucketing",)])
@pytest.mark.filterwarnings("ignore::UserWarning")  # FA's of preaggregators that do not bound norms
def test_values_are_the_explained_variances_of_the_workers_own_gradients(preaggregators):
    G = normal(9, 50) * np.linspace(1, 3, 9)[:, None]
    found = (
        make_rule("fa", f=2, m=3, preaggregators=preaggregators, max_iter=3, seed=5).aggregate(G, iteration=4).decision
    )
    gram, _ = measure(torch.from_numpy(G))
    seen = (
        apply_preaggregators(gram, preaggregators, PreaggregatorContext(2, 5, 4)).R.T @ G
    )  # which tests/test_gram.py holds to the steps' definitions
    Y = reference.flag_median(seen, 3, 0.0, 2.0, 3)
    np.testing.assert_allclose(found.values, [np.sum((Y.T @ g) ** 2) / (g @ g) for g in G], atol=1e-9)


def test_bucketing_changes_with_the_iteration_and_comes_back():
    G = normal(9, 50)
    rule = make_rule("median", preaggregators="bucketing", seed=4)
    assert np.array_equal(rule(G, iteration=2), rule(G, iteration=2))
    assert not np.array_equal(rule(G, iteration=2), rule(G, iteration=3))


# --- bad options ---


@pytest.mark.parametrize(
    ("name", "p", "f", "needed"),
    [
        ("krum", 8, 3, r"2f \+ 3"),
        ("multi_krum", 2, 0, r"2f \+ 3"),
        ("bulyan", 11, 3, r"4f \+ 3"),
        ("median", 6, 3, "2f"),
        ("trimmed_mean", 6, 3, "2f"),
        ("meamed", 6, 3, "2f"),
        ("phocas", 6, 3, "2f"),
    ],
)
def test_a_rule_refuses_where_its_condition_does_not_hold(name, p, f, needed):
    with pytest.raises(TooFewWorkersError, match=rf"\b{name}\b.*\b{needed}\b.*\b{p}\b.*\b{f}\b"):
        aggregate(normal(p, 5), name, f=f)


def test_the_condition_holds_after_the_steps_before_too():
    with pytest.raises(TooFewWorkersError, match=r"\bbulyan\b.*\b12\b.*\b3\b.*\bkrum\b"):
        aggregate(normal(15, 5), "bulyan", f=3, preaggregators="krum")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda G: aggregate(G, "fla"), r"^rule must be .*\bmean, .*'fla'.*'fa'"),
        (lambda G: aggregate(G, "mean", m=3), r"'mean'.*\bf, preaggregators, seed\b.*'m'"),
        (lambda G: aggregate(G, "median", f=-1), r"^f must be .*\b0\b.*-1\b"),
        (lambda G: aggregate(G, "median", preaggregators="units"), r"\bpreaggregators must be .*'units'.*'unit'"),
        (lambda G: aggregate(G, "fa", m=8), r"^m must be .*\b7\b.*\b8\b"),
        (lambda G: aggregate(G, "fa", m=0), r"^m must be .*\b1\b.*\b0\b"),
        (lambda G: aggregate(G, "fa", formulation="released", max_iter=5), r"^max_iter must be .*\b1\b.*\b5\b"),
        (lambda G: aggregate(G, "multi_krum", f=0, keep=0), r"^keep must be .*\b1\b.*\b0\b"),
        (lambda G: aggregate(G, "multi_krum", f=0, keep=8), r"^keep must be .*\b7\b.*\b8\b"),
        (lambda G: aggregate(G, "krum", f=3, preaggregators="nnm"), r"\bkrum\b.*\b2f \+ 3\b"),
        (lambda G: aggregate(G, make_rule("mean"), f=1), r"\boptions\b.*\bf\b"),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(normal(7, 5))


def test_options_of_a_wrong_type_are_value_errors(tmp_path):
    options = [
        {"f": "3"},
        {"f": 1.0},
        {"f": True},
        {"m": 2.5},
        {"lam": "x"},
        {"formulation": "printed"},
        {"preaggregators": ["x"]},
        {"strict": "no"},
    ]
    calls = [f"fa.make_rule('fa', **{given!r})" for given in options]
    for option, line in zip(options, refusals(calls, "import fa", tmp_path), strict=True):
        assert f"{next(iter(option))} must be " in line


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({"gradients_per_worker": np.array([2, 3, 2])}, {"gradients_per_worker": [2, 3, 2]}),
        ({"gradients_per_worker": np.int64(7)}, {"gradients_per_worker": 7}),
        ({"dims": np.array([1, 3])}, {"dims": [1, 3]}),
        ({"prior": np.array([1.0, 0.75])}, {"prior": (1.0, 0.75)}),
        ({"worker_weights": np.arange(1.0, 8.0)}, {"worker_weights": tuple(range(1, 8))}),
        ({"m": np.int32(2), "lam": np.float32(0.5), "strict": np.True_}, {"m": 2, "lam": 0.5, "strict": True}),
    ],
    ids=lambda options: "-".join(options),
)
def test_options_may_be_numpys(options, same):
    G = normal(7, 12)
    rule = make_rule("fa", **options)
    assert rule == make_rule("fa", **same)
    np.testing.assert_array_equal(aggregate(G, rule), aggregate(G, "fa", **same))


def test_m_and_keep_are_cut_to_the_workers_that_are_left():
    G = normal(5, 30)
    bad = np.vstack([G, np.full((1, 30), np.nan)])
    np.testing.assert_allclose(aggregate(bad, "fa", m=6), aggregate(G, "fa", m=5), atol=1e-12)
    np.testing.assert_allclose(aggregate(bad, "multi_krum", f=0, keep=6), aggregate(G, "mean"), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options"), [("mean", {}), ("phocas", {"f": 1}), ("fa", {"m": 2, "lam": 0.1, "regularizer": "l1"})]
)
def test_the_direction_is_put_where_it_is_wanted(name, options):
    G = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 40))).to(DEVICE)
    out = torch.full((40,), float("nan"), dtype=G.dtype, device=DEVICE)
    rule = make_rule(name, **options)
    assert rule.aggregate(G, out=out).direction is out
    assert torch.equal(out, rule(G))


@pytest.mark.parametrize(
    ("out", "value"),
    [(torch.empty(39).double(), 39), (torch.empty(40), "float32"), (torch.empty(80).double()[::2], r"\(2,\)")],
)
def test_a_place_that_does_not_fit_is_refused(out, value):
    with pytest.raises(ValueError, match=f"^out must be .*{value}"):
        make_rule("mean").aggregate(torch.ones(5, 40).double(), out=out)


def test_a_place_within_the_gradients_is_refused():
    G = torch.ones(5, 40).double()
    with pytest.raises(ValueError, match=r"^out must be .*\bG\b"):
        make_rule("mean").aggregate(G, out=G[0])


# --- f ---


@pytest.mark.parametrize(
    ("name", "options", "matters"),
    [
        ("trimmed_mean", {}, True),
        ("multi_krum", {}, True),
        ("fa", {"preaggregators": ("nnm", "median_norm")}, True),
        ("fa", {}, False),
        ("median", {}, False),
        ("mean", {}, False),
    ],
)
def test_a_missing_f_warns_once_where_it_matters(name, options, matters):
    G = normal(7, 5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            aggregate(G, name, **options)
            make_rule(name, **options)
        make_rule(name, f=0, **options)
    assert len(caught) == matters


@pytest.mark.parametrize(
    ("options", "warns", "turned"),
    [
        ({"preaggregators": "nnm"}, True, True),
        ({"preaggregators": "bucketing:3"}, True, True),
        ({"preaggregators": ("krum", "bucketing:3")}, True, False),  # Krum drops f gradients, and no more
        ({"preaggregators": ("nnm", "median_norm")}, False, False),
        ({"preaggregators": "clip:2"}, False, False),
        ({"preaggregators": "nnm", "formulation": "released"}, False, False),
        ({"preaggregators": ()}, False, True),  # the printed formula, as asked
        ({}, False, False),
    ],
)
def test_fa_warns_of_preaggregators_under_which_a_long_gradient_wins(options, warns, turned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rule = make_rule("fa", f=1, **options)
    assert len(caught) == warns
    G = 1 + normal(9, 50)
    G[0] = 1e6 * normal(1, 50, seed=1)
    assert (np.linalg.norm(rule(G)) > 100 * np.linalg.norm(G[1:], axis=1).max()) == turned


@pytest.mark.parametrize("name", RULES)
def test_f_changes_the_direction_of_the_rules_that_depend_on_it(name):
    pools = [normal(11, 40, seed=seed) for seed in range(5)]
    same = all(np.allclose(aggregate(G, name, f=0), aggregate(G, name, f=2)) for G in pools)
    assert same != make_rule(name, f=0).depends_on_f


def test_f_may_be_none_wherever_a_rule_is_made() -> None:
    G = np.arange(10.0).reshape(5, 2)
    assert fa.aggregate(G, "median", f=None).tolist() == fa.make_rule("median", f=None)(G).tolist() == [4.0, 5.0]


def test_a_bucket_holds_no_more_than_all_gradients() -> None:
    G = np.random.default_rng(0).standard_normal((5, 7))
    for size in ("5", "6", "1e30"):
        np.testing.assert_allclose(fa.aggregate(G, "median", preaggregators=f"bucketing:{size}"), G.mean(axis=0))


def test_too_few_gradients_for_buckets_are_named() -> None:
    with pytest.raises(TooFewWorkersError, match=r"\bkrum\b.*\bp = 3\b"):
        fa.aggregate(np.eye(3), "median", f=3, preaggregators=("krum", "bucketing"))


def test_a_direction_of_another_library_has_memory_of_its_own() -> None:
    G = torch.eye(5)
    d = fa.aggregate(G, "byzfl:Krum", f=1)
    before = d.clone()
    G.zero_()
    assert torch.equal(d, before)


def test_what_is_no_place_for_a_direction_is_named(tmp_path: Path) -> None:
    calls = ["median.aggregate(G, out='x')", "median.aggregate(G, out=torch.ones(2, requires_grad=True))"]
    setup = "import fa, torch\nmedian, G = fa.make_rule('median'), torch.ones(3, 2)"
    for line in refusals(calls, setup, tmp_path):
        assert re.match(r"out must be a tensor", line), line


def test_complex_and_sparse_directions_are_named() -> None:
    parameters = [torch.zeros(2, requires_grad=True)]
    for direction in (np.array([1j, 2]), torch.tensor([1j, 2]), torch.ones(2).to_sparse()):
        with pytest.raises(ValueError, match=r"^direction must be (of real numbers|dense)"):
            fa.set_grad(parameters, direction)


def test_a_warning_names_the_users_line(tmp_path: Path) -> None:
    """Through the decorators around the package's functions, where no type checker adds its own."""
    code = """
import sys, types, warnings
import numpy as np
source = "import fa\\nG = fa.fa_G\\nfa.aggregate(G, 'krum')\\nfa.make_rule('phocas')\\n"
source += "fa.make_rule('krum', f=2, strict=False)(G)\\n"
import fa
fa.fa_G = np.eye(5)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    exec(compile(source, "users.py", "exec"), {})
print([(warning.filename, warning.lineno) for warning in caught])
"""
    assert eval(printed_beside(code, tmp_path)) == [("users.py", line) for line in (3, 4, 5)]


def test_a_rule_without_guarantee_may_need_fewer_workers_at_its_f() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Mine(fa.Rule):
        name: ClassVar[str] = "mine"
        min_workers: ClassVar[tuple[int, int]] = (0, 5)

        def decide(self, gram: Any) -> ColumnDecision:
            return ColumnDecision(weights=np.full(gram.p, 1 / gram.p))

    lenient = Mine(strict=False)
    assert lenient.accepts(3)
    with pytest.warns(UserWarning, match=r"\bp >= 0f \+ 5\b"):
        assert lenient(np.eye(3)).tolist() == [1 / 3] * 3
    with pytest.raises(TooFewWorkersError):
        Mine()(np.eye(3))
