"""Whatever is handed over: a result that the plain float64 rules bear out, or a ValueError that names the argument.

And what was handed over is as it was before. (The random state is compared after every test, by tests/conftest.py.)
"""

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

import fa
from fa import attacks, augment, likelihood, objective
from fa.gradients import memory_map
from fa.gradients.measurement import measure
from fa.rules.preaggregators import PREAGGREGATORS
from fa.theory import algorithm1_line5, optimality, quantization
from fa.utils.validation import TooFewWorkersError
from tests import reference
from tests.awkward import KINDS, REFUSED, Awkward, gradients, snapshot

few = settings(max_examples=max(10, settings().max_examples // 5))  # a case: there are many of them
BEFORE = st.one_of(st.none(), st.lists(st.sampled_from(sorted(PREAGGREGATORS)), max_size=2).map(tuple))


def kept(given: Awkward, call: Callable[[Any], Any]) -> Any:
    """What the call gives, None where it refuses as it should; the gradients stay as they are."""
    before = snapshot(given.G)
    found, refusal = attempt(call, given.G)
    assert snapshot(given.G) == before
    assert refusal is None or isinstance(refusal, TooFewWorkersError) or " must " in str(refusal)
    return found


def attempt(call: Callable[..., Any], *arguments: Any) -> tuple[Any, ValueError | None]:
    """Return the result and None, or None and the call's ValueError."""
    try:
        return call(*arguments), None
    except TypeCheckError:  # of our own code; what people get wrong is told before
        raise
    except ValueError as error:
        return None, error


# --- rules ---

HULL = {"geometric_median", "centered_clipping", "minimum_diameter_averaging", "caf", "monna"}
"""Rules whose weights are at least 0 and sum to at most 1; tests/test_field_rules.py has their plain versions."""


@pytest.mark.parametrize("name", fa.RULES)
@few
@given(given=gradients(), f=st.integers(0, 2))
def test_a_rule_gives_what_the_plain_one_gives(name: str, given: Awkward, f: int) -> None:
    found = kept(given, fa.make_rule(name, f=f).aggregate)
    alive = given.values[given.finite].astype(np.longdouble)
    times, plus = fa.rules._BY_NAME[name].min_workers
    left = max(0, f - (len(given.values) - len(alive)))
    assert (found is None) == (len(alive) == 0 or len(alive) < times * left + plus)
    if found is not None:
        check(name, alive, left, given, found)


def check(name: str, G: np.ndarray, f: int, given: Awkward, found: fa.Aggregate) -> None:
    d = as_wide(found.direction)
    assert np.isfinite(d).all()
    assert kind(found.direction) == kind(given.G)
    column = np.abs(G).max(axis=0)
    near = given.digits * column + tiny(given.dtype)
    if name in ("mean", "median", "trimmed_mean"):
        assert (np.abs(d - reference.RULES[name](G, f)) <= near).all()
    elif name in ("meamed", "phocas"):
        centre = reference.median(G, f) if name == "meamed" else reference.trimmed_mean(G, f)
        check_around(G, centre, len(G) - f, d, near)
    elif name == "fa":
        check_fa(G, given, found, d)
    elif name in HULL:
        weights = found.decision.weights[given.finite]
        assert weights.min() >= -1e-12
        assert weights.sum() <= 1 + 1e-9
        terms = np.abs(weights[:, None] * G).sum(axis=0)
        assert (np.abs(d - weights @ G) <= 2 * given.digits * terms + tiny(given.dtype)).all()
    else:
        rows = np.searchsorted(np.flatnonzero(given.finite), found.decision.selected)
        check_selection(name, G, f, rows, given.digits)
        S = G[rows]
        if name == "bulyan":
            check_around(S, np.median(S, axis=0), len(S) - 2 * f, d, near)
        else:
            assert (np.abs(d - S.mean(axis=0)) <= near).all()


def check_around(G: np.ndarray, centre: np.ndarray, keep: int, d: np.ndarray, near: np.ndarray) -> None:
    """d is the mean of `keep` neighbours in the sorted column that are as near the centre as any, up to rounding."""
    ordered = np.sort(G, axis=0)
    windows = np.stack([ordered[k : k + keep] for k in range(len(G) - keep + 1)])
    radius = np.abs(windows - centre).max(axis=1)
    fits = (np.abs(windows.mean(axis=1) - d) <= near) & (radius <= radius.min(axis=0) + 4 * near)
    assert fits.any(axis=0).all()


def check_selection(name: str, G: np.ndarray, f: int, rows: np.ndarray, digits: float) -> None:
    """No row that was not selected has a better score than one that was, up to rounding; Bulyan selects in rounds, of
    which the first is looked at.
    """
    size = {"krum": 1, "multi_krum": max(1, len(G) - f - 2), "bulyan": len(G) - 2 * f}[name]
    assert len(rows) == size
    distances = np.square(G[:, None] - G[None]).sum(axis=2)
    neighbours = max(1, len(G) - f - 2)
    scores = np.array([np.sort(np.delete(row, i))[:neighbours].sum() for i, row in enumerate(distances)])
    squares = np.square(G).sum(axis=1)
    unsure = digits * scores + 1e-28 * neighbours * squares  # closer than float64 resolves the gradients themselves
    chosen = scores - unsure
    others = np.delete(scores + unsure, rows)
    if name == "bulyan":
        assert chosen[rows].min() <= scores.min() + unsure.max()
    elif len(others):
        assert chosen[rows].max() <= others.min()


def check_fa(G: np.ndarray, given: Awkward, found: fa.Aggregate, d: np.ndarray) -> None:
    """d = sum_i weights_i g_i, and no longer than the projection of the mean of gradients of median norm can be."""
    weights = found.decision.weights[given.finite]
    terms = np.abs(weights[:, None] * G).sum(axis=0)
    assert (np.abs(d - weights @ G) <= 2 * given.digits * terms + tiny(given.dtype)).all()
    values = found.decision.values[given.finite]
    assert ((values >= 0) & (values <= 1)).all()
    norms = np.linalg.norm(G, axis=1)
    usual = np.median(norms) if np.median(norms) > 0 else np.median(norms[norms > 0]) if norms.any() else 0.0
    level = np.divide(usual, norms, out=np.zeros_like(norms), where=norms > 0)[:, None] * G
    longest = np.linalg.norm(level.mean(axis=0))
    assert np.linalg.norm(d) <= longest * (1 + 4 * given.digits) + 4 * given.digits * usual + tiny(given.dtype) * 40


@few
@given(given=gradients(), name=st.sampled_from(fa.RULES), preaggregators=BEFORE, f=st.integers(0, 1))
def test_steps_before_a_rule_keep_the_result_within_the_gradients(
    given: Awkward, name: str, preaggregators: tuple[str, ...] | None, f: int
) -> None:
    found = kept(given, fa.make_rule(name, f=f, preaggregators=preaggregators).aggregate)
    if found is None:
        return
    d, largest = as_wide(found.direction), np.abs(given.values[given.finite]).max()
    unit = 1.0 if preaggregators and "unit" in preaggregators else 0.0
    n = given.values.shape[1]
    assert np.isfinite(d).all()
    assert np.abs(d).max() <= (1 + 10 * given.digits) * max(largest * np.sqrt(n), unit) + tiny(given.dtype)


def as_wide(d: Any) -> np.ndarray:
    return (d.detach().double().numpy() if isinstance(d, torch.Tensor) else d).astype(np.longdouble)


def kind(G: Any) -> tuple[type, str]:
    return type(G), str(G.dtype.newbyteorder("=") if isinstance(G, np.ndarray) else G.dtype)


def tiny(dtype: str) -> float:
    """Where the numbers of this dtype end."""
    return float(torch.finfo(getattr(torch, dtype)).tiny)


# --- solvers ---


@given(
    given=gradients(most=8), lam=st.sampled_from([0.0, 0.5, 1e6]), a=st.sampled_from([1.0, 2.0, 10.0]), data=st.data()
)
def test_the_solver_finds_a_basis_whose_objective_is_what_it_says(
    given: Awkward, lam: float, a: float, data: st.DataObject
) -> None:
    m = data.draw(st.integers(1, len(given.values) + 1))
    solution = kept(given, lambda G: fa.irls.solve(G, m=m, lam=lam, a=a))
    assert (solution is None) == (m > len(given.values) or not given.finite.all())
    if solution is None:
        return
    Y = basis(given.values, solution)
    assert ((solution.values >= -1e-12) & (solution.values <= 1 + 1e-12)).all()
    alive = given.values[np.linalg.norm(given.values.astype(np.longdouble), axis=1) > 2.0**-1000]
    if len(alive):
        expected = reference.eq5(scaled(alive), Y, 0.0, a) if lam == 0 else None
        if expected is not None:
            assert solution.objective == pytest.approx(expected, abs=solution.objective_error_bound + 1e-2 * len(alive))
    assert all(after <= before + 1e-7 * max(1.0, lam) for before, after in pairwise(solution.history))
    certificate = kept(given, lambda G: fa.sdp.certify(G, solution))
    assert certificate is not None
    assert (
        0
        <= certificate.bound
        <= solution.objective + solution.objective_error_bound + 1e-9 * (1 + lam) * len(given.values)
    )
    norms = solution.gram.norms
    if not norms.any() or np.ptp(np.log10(norms[norms > 0])) < 300:  # else R itself leaves the range
        assert np.isfinite(optimality.right_multiplication(solution).R).all()
    assert np.isfinite(optimality.second_order(solution).smallest)


def scaled(G: np.ndarray) -> np.ndarray:
    return G / np.abs(G).max(axis=1, keepdims=True)


def basis(G: np.ndarray, solution: fa.irls.Solution) -> np.ndarray:
    """Y = G^T C, in longdouble since G may be very long."""
    Y = (G.astype(np.longdouble).T @ solution.coefficients.astype(np.longdouble)).astype(np.float64)
    alive = np.abs(Y.T @ Y - np.eye(Y.shape[1])).max(initial=0.0)
    assert alive <= 1e-3, alive
    return Y


BLOCKS = quantization.Format("block_float", 8, block=4)
SOLVERS: dict[str, Callable[[Any], Any]] = {
    "l1": lambda G: fa.irls.solve(G, m=1, lam=0.1, regularizer="l1").direction(),
    "rows": lambda G: fa.aggregate(G, "fa", m=1, lam=0.1, regularizer="rows"),
    "released": lambda G: fa.aggregate(G, "fa", formulation="released", lam=1.0),
    "data": lambda G: fa.irls.solve(G, start="data", restarts=1).direction(),
    "flags": lambda G: fa.flags.solve(G, dims=(1,), max_iter=5).direction(),
    "two flags": lambda G: fa.flags.solve(G, dims=(1, 2), max_iter=5).direction(),
    "relevant": lambda G: fa.irls.solve(fa.flags.restrict(G, [[0]] * len(G))).direction(),
    "likelihood": lambda G: likelihood.fit(G, likelihood.Beta(1.0, 0.5), m=1, max_iter=5, restarts=1).Y,
    "line 5": lambda G: algorithm1_line5.path(G, "l1", 0.1, m=1, steps=2).Y,
    "quantized": lambda G: quantization.quantize(G, quantization.Format(bits=8)).dequantize(),
    "blocks": lambda G: (
        quantization.integer_gram(quantization.quantize(G, quantization.Format("block_float", 8, block=4))).gram.K
    ),
    "stochastic": lambda G: quantization.quantize(G, quantization.Format(rounding="stochastic")).dequantize(),
    "values": lambda G: objective.values(G, np.eye(np.shape(G)[1])[:, :1]),
    "value": lambda G: objective.value(G, np.eye(np.shape(G)[1])[:, :1], lam=1.0),
    "gradient": lambda G: objective.gradient(G, np.eye(np.shape(G)[1])[:, :1]),
}


@pytest.mark.parametrize("name", SOLVERS)
@few
@given(given=gradients(most=8))
def test_what_takes_gradients_gives_finite_numbers_or_says_why_not(name: str, given: Awkward) -> None:
    found = kept(given, SOLVERS[name])
    if found is None:
        rank = np.linalg.matrix_rank(given.values[given.finite]) if given.finite.any() else 0
        assert not given.finite.all() or rank < 2 or given.kinds, "plain gradients are refused"
        return
    assert np.isfinite(as_wide(torch.as_tensor(found))).all()


@few
@given(given=gradients(most=6, kinds=KINDS))
def test_effects_of_formats_are_finite(given: Awkward) -> None:
    effects = kept(given, lambda G: quantization.effects(G, [quantization.Format(bits=8)]))
    if effects is None or not given.finite.all():
        return
    d = as_wide(fa.irls.solve(given.values).direction())
    if np.abs(d).max() > given.digits * np.abs(given.values).max():
        assert all(np.isfinite(number) for number in dataclasses.astuple(effects[0]) if isinstance(number, float))


@given(given=gradients())
def test_the_gram_matrix_is_that_of_float64(given: Awkward) -> None:
    tensor = given.G if isinstance(given.G, torch.Tensor) else fa.gradients.read(given.G).G
    gram, finite = measure(tensor.detach())
    assert finite.tolist() == given.finite.tolist()
    alive = given.values[finite].astype(np.longdouble)
    norms = np.sqrt(np.square(alive).sum(axis=1))
    there = norms > 2.0**-1000
    expected = np.divide(alive, norms[:, None], out=np.zeros_like(alive), where=there[:, None])
    square = np.ix_(np.flatnonzero(finite), np.flatnonzero(finite))
    assert np.abs(gram.cosines[square] - expected @ expected.T).max(initial=0.0) <= 1e-5
    assert np.abs(gram.norms[finite] - norms)[there].max(initial=0.0) <= 1e-5 * norms.max(initial=0.0)


# --- what is no gradient ---


@pytest.mark.parametrize("dtype", REFUSED, ids=str)
@pytest.mark.parametrize("name", ["aggregate", *SOLVERS])
def test_other_dtypes_are_refused_by_name(name: str, dtype: Any) -> None:
    call = fa.aggregate if name == "aggregate" else SOLVERS[name]
    with pytest.raises(ValueError, match=r"G must be .*float16.*float64"):
        call(np.ones((5, 4)).astype(dtype))


@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 4), (4, 0), (0, 0), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", ["aggregate", "data", "flags", "likelihood", "quantized", "line 5"])
@pytest.mark.parametrize("make", [np.ones, torch.ones])
def test_other_shapes_are_refused_by_name(name: str, shape: tuple[int, ...], make: Callable[..., Any]) -> None:
    call = fa.aggregate if name == "aggregate" else SOLVERS[name]
    with pytest.raises(ValueError, match=r"G must "):
        call(make(shape))


# --- attacks, images, files ---


@pytest.mark.parametrize("name", attacks.ATTACKS)
@few
@given(given=gradients(least=2), data=st.data())
def test_an_attack_writes_the_faulty_rows_alone(name: str, given: Awkward, data: st.DataObject) -> None:
    G = torch.from_numpy(given.values.copy()).to(getattr(torch, given.dtype))
    p = len(G)
    faulty = data.draw(st.lists(st.integers(0, p - 1), max_size=p - 1, unique=True))
    honest = [row for row in range(p) if row not in faulty]
    before = snapshot(G[honest])
    attacks.make_attack(name, fa.make_rule("median")).apply(G, faulty, 1, 2)
    assert snapshot(G[honest]) == before


@few
@given(
    dtype=st.sampled_from([np.uint8, np.float16, np.float32, np.float64, np.int64, np.bool_]),
    shape=st.sampled_from([(0, 3, 4), (2, 4, 4), (2, 3, 5, 1), (1, 0, 4, 4), (1, 1, 1, 1)]),
    system=st.sampled_from(["lotka_volterra", "rotation", "cat", "smooth_cat"]),
    t=st.sampled_from([0, 1, -1, 1e-320, 3]),
    backwards=st.booleans(),
)
def test_images_of_any_kind_are_moved_or_refused(
    dtype: Any, shape: tuple[int, ...], system: str, t: float, backwards: bool
) -> None:
    images = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    images = images[..., ::-1] if backwards else images
    before = images.tobytes()
    moved, refusal = attempt(augment.warp, images, system, t)
    if moved is None:
        assert " must " in str(refusal)
    else:
        assert (moved.shape, moved.dtype) == (images.shape, images.dtype)
        assert set(np.unique(moved)) <= {0, *np.unique(images)}
    assert images.tobytes() == before


@few
@given(given=gradients(least=3))
def test_files_give_what_their_arrays_give_or_are_refused(given: Awkward, tmp_path_factory: Any) -> None:
    if not isinstance(given.G, np.ndarray):
        return
    path: Path = tmp_path_factory.mktemp("files") / "G.npy"
    np.save(path, given.G)
    found, refusal = attempt(memory_map.open_gradients, [path])
    if found is None:
        assert str(path) in str(refusal)
        assert not given.G.flags.c_contiguous or given.G.dtype.byteorder == ">"
    else:
        np.testing.assert_array_equal(found[0].double().numpy(), given.values)
