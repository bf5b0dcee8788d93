"""The contract of `aggregate` with its caller: memory, defaults of torch, tracing, threads, and odd state dicts."""

import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fa
from fa.gradients.measurement import measure
from fa.rules.application import overlap
from fa.rules.decision import OUT_OF_RANGE
from fa.rules.preaggregators import PREAGGREGATORS
from tests.processes import refusals


@pytest.mark.parametrize("row", range(5))
def test_a_result_in_the_memory_of_any_row_is_refused(row: int) -> None:
    G = np.arange(1.0, 16.0).reshape(5, 3)
    before = G.copy()
    with pytest.raises(ValueError, match=r"^out must"):
        fa.make_rule("mean").aggregate(G, out=torch.from_numpy(G[row]))
    assert (before == G).all()


@given(st.integers(0, 12), st.integers(1, 6), st.integers(0, 12), st.integers(1, 6))
def test_overlaps_are_those_of_the_bytes(first: int, size: int, second: int, other: int) -> None:
    memory = torch.zeros(24)
    one, two = memory[first : first + size], memory[second : second + other]
    expected = bool({*range(first, first + size)} & {*range(second, second + other)})
    assert overlap(one, two) == overlap(two, one) == expected


@pytest.mark.parametrize("rule", list(fa.RULES))
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64, "meta"])
def test_defaults_of_torch_change_no_result(default: torch.dtype | str, rule: str) -> None:
    G = torch.randn(7, 40, generator=torch.Generator().manual_seed(0))
    inputs = [G, G.bfloat16(), G.double(), G.half()]
    expected = [fa.aggregate(g, rule, f=1) for g in inputs]
    try:
        if isinstance(default, str):
            torch.set_default_device(default)
        else:
            torch.set_default_dtype(default)
        found = [fa.aggregate(g, rule, f=1) for g in inputs]
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for one, other in zip(expected, found, strict=True):
        assert (one.dtype, one.device) == (other.dtype, other.device)
        assert torch.equal(one, other)


@pytest.mark.long
def test_compiled_callers_get_the_same_bits() -> None:
    G = torch.randn(7, 40, generator=torch.Generator().manual_seed(0))
    for rule in ("median", "fa"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = torch.compile(lambda G, rule=rule: fa.aggregate(2 * G, rule) + 1)(G)
        assert torch.equal(compiled, fa.aggregate(2 * G, rule) + 1)


AT_EXIT = """
import threading, time, numpy, torch, fa
torch.set_num_threads(2)
G = numpy.random.default_rng(0).standard_normal((8, 200_000))
expected = fa.aggregate(G, "fa")

def late():
    threading.main_thread().join()
    print((fa.aggregate(G, "fa") == expected).all(), flush=True)

threading.Thread(target=late).start()
"""


def test_a_thread_that_outlives_the_main_thread_aggregates() -> None:
    done = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, timeout=100, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")


def state_dicts(**entries: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [
        {"weight": torch.full((3,), float(i)), **{name: e.clone() for name, e in entries.items()}} for i in range(5)
    ]


@pytest.mark.parametrize(
    "entry",
    [
        torch.tensor([True, False]),
        torch.tensor([1, 60_000], dtype=torch.uint16),
        torch.tensor([1, 2], dtype=torch.uint8),
        torch.tensor(7),
        torch.tensor([-torch.inf, 0.0, torch.inf]),
    ],
    ids=lambda entry: str(entry.dtype),
)
def test_masks_counts_and_infinities_that_all_share_stay(entry: torch.Tensor) -> None:
    workers = state_dicts(entry=entry)
    found = fa.aggregate(workers, "median")
    assert torch.equal(found["entry"], entry)
    assert found["entry"].dtype == entry.dtype
    assert torch.equal(found["weight"], torch.full((3,), 2.0))


def test_a_byzantine_worker_cannot_exclude_the_others_by_a_finite_mask() -> None:
    workers = state_dicts(mask=torch.tensor([-torch.inf, 0.0]))
    workers[0]["mask"] = torch.zeros(2)
    result = fa.make_rule("median", f=1).aggregate(workers)
    assert result.decision.excluded == {}
    assert torch.equal(result.direction["mask"], torch.tensor([-torch.inf, 0.0]))


@pytest.mark.parametrize(("value", "name"), [(torch.tensor([1j]), "entry"), (torch.tensor([torch.nan, 0]), "entry")])
def test_an_entry_that_no_rule_can_serve_is_named(value: torch.Tensor, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        fa.aggregate(state_dicts(entry=value), "median")


def test_running_statistics_stay_valid() -> None:
    """FA scales a worker's update by the norm of the others', which made a variance negative."""
    generator = torch.Generator().manual_seed(0)
    workers = []
    for i in range(8):
        norm = torch.nn.BatchNorm1d(4)
        for _ in range(1 if i == 0 else 40):
            norm(torch.randn(16, 4, generator=generator) * 3)
        workers.append(norm.state_dict())
    for rule in fa.RULES:
        found = fa.aggregate(workers, rule, f=1)
        stacked = {name: torch.stack([worker[name] for worker in workers]) for name in found}
        assert (found["running_var"] > 0).all()
        for name in ("running_mean", "running_var"):
            assert (stacked[name].min(dim=0).values <= found[name]).all()
            assert (found[name] <= stacked[name].max(dim=0).values).all()


def test_sparse_gradients_are_refused_with_the_cure() -> None:
    embedding = torch.nn.Embedding.from_pretrained(torch.ones(4, 2), freeze=False, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"to_dense\(\)"):
        fa.aggregate([[embedding.weight.grad]] * 5, "median")


@pytest.mark.parametrize("wrap", [lambda G: G, lambda G: [G] * 5])
@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype")
def test_tensors_without_values_or_with_rows_of_unequal_length_are_refused(wrap) -> None:
    meta, nested = torch.zeros(5, 3, device="meta"), torch.nested.nested_tensor([torch.ones(3), torch.ones(4)])
    for G, kind in ((meta, "meta"), (nested, "nested")):
        with pytest.raises(ValueError, match=rf"\bmust be .*\b{kind}\b"):
            fa.aggregate(wrap(G), "median")


@pytest.mark.parametrize("wrap", [lambda G: G, list, lambda G: [{"w": g} for g in G]])
def test_masked_arrays_are_refused(wrap) -> None:
    G = np.ma.masked_array(np.arange(15.0).reshape(5, 3), np.arange(15).reshape(5, 3) > 5)
    with pytest.raises(ValueError, match="mask"):
        fa.aggregate(wrap(G), "median")


STEPS = [(), ("nnm",), ("median_norm",), ("nnm", "median_norm"), ("clip",), ("unit",), ("nnm", "clip"), ("krum",)]


@given(st.data())
@pytest.mark.filterwarnings("ignore::UserWarning")  # FA's of preaggregators that do not bound norms
def test_any_float64_is_right_or_left_out(data: st.DataObject) -> None:
    """Norms that overflow in sums or ratios are excluded; then nothing is NaN, and no direction is far too long."""
    p, n = data.draw(st.integers(5, 10)), data.draw(st.integers(1, 20))
    G = np.clip(np.random.default_rng(data.draw(st.integers(0, 999))).standard_normal((p, n)), -1.7, 1.7)
    G *= 10.0 ** np.array(data.draw(st.lists(st.floats(-300, 307.9), min_size=p, max_size=p)))[:, None]
    rule = fa.make_rule("fa", f=1, preaggregators=data.draw(st.sampled_from(STEPS)))
    try:
        result = rule.aggregate(G)
    except ValueError:  # Too few are left, or their norms' ratios leave float64's range.
        return
    largest = np.abs(G).max(axis=1)
    logs = np.log2(largest) + np.log2(np.linalg.norm(G / largest[:, None], axis=1))
    far = logs > min(1004, np.clip(np.floor(np.median(logs)), -1000, 1000) + 1000)
    assert {i for i, reason in result.decision.excluded.items() if reason == OUT_OF_RANGE} == set(np.flatnonzero(far))
    assert np.isfinite(result.decision.values[~far]).all()
    assert np.abs(result.direction).max() <= max(2.0, 100 * np.abs(G[~far]).max())  # "unit" makes norms 1


@pytest.mark.parametrize("size", [1e100, 1e155, 1e200, 1e300, 1.5e302])
@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fa", {}),
        ("fa", {"preaggregators": "clip"}),
        ("mean", {"preaggregators": "median_norm"}),
        ("mean", {"preaggregators": "arc", "f": 1}),
        ("geometric_median", {}),
        ("geometric_median", {"preaggregators": "clip"}),
        ("centered_clipping", {}),
        ("centered_clipping", {"tau": 1.0}),
        ("caf", {"f": 1}),
    ],
)
def test_one_gradient_of_any_length_does_not_carry_a_rule_away(
    name: str, options: dict, unit: float, size: float
) -> None:
    rng = np.random.default_rng(0)
    G = np.vstack([unit * (1 + 0.1 * rng.standard_normal((7, 50))), size * rng.random(50)])
    d = fa.aggregate(G, name, **options)
    assert np.linalg.norm(d) <= max(1.3 * np.linalg.norm(G[0]), float(options.get("tau", 0.0)) * 2)


ZERO_OPTIONS = [
    ("fa", {"dims": (1, 2)}),
    ("fa", {"regularizer": "l1", "lam": 0.01}),
    ("fa", {"regularizer": "rows", "lam": 0.01}),
    ("fa", {"prior": (2.0, 0.5)}),
    ("fa", {"start": "largest:2"}),
    ("fa", {"start": "random"}),
    ("fa", {"lam": 2.0}),
    ("fa", {"formulation": "released"}),
    ("fa", {"group_term": "chordal", "gradients_per_worker": (2, 2, 3)}),
    *((name, {"f": 1}) for name in fa.RULES),
    *(("mean", {"f": 1, "preaggregators": step}) for step in PREAGGREGATORS),
]


@pytest.mark.parametrize(("name", "options"), ZERO_OPTIONS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # CAF and others below their condition
def test_zero_gradients_give_zero(name: str, options: dict) -> None:
    assert not fa.aggregate(np.zeros((7, 10)), name, **options).any()


@pytest.mark.parametrize("steps", ["random_span", "subspace"])
def test_a_subspace_of_zero_gradients_is_empty(steps: str) -> None:
    """The draw of rows is a matter of the iteration, and some draws have zero gradients only."""
    G = np.zeros((7, 10))
    G[3, 2] = 1.0
    for iteration in range(10):
        assert fa.make_rule("mean", preaggregators=steps)(G, iteration)[2] in (0.0, pytest.approx(1 / 7))


@pytest.mark.parametrize(
    "options",
    [
        {"regularizer": "l1", "lam": 0.01},
        {"regularizer": "rows", "lam": 0.01},
        {"prior": (2.0, 0.5)},
        {"start": "largest:20"},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_tiny_gradient_is_scaled_without_overflow(options: dict, dtype: torch.dtype) -> None:
    G = torch.randn(6, 900, generator=torch.Generator().manual_seed(0)).to(dtype)
    G[0] *= torch.finfo(dtype).tiny / 300  # Its entries are subnormal, its factor to the median norm beyond the range.
    d = fa.aggregate(G, "fa", **options)
    assert d.dtype == dtype
    expected = fa.aggregate(G.double(), "fa", **options)
    assert torch.linalg.norm(d.double() - expected) <= 0.02 * torch.linalg.norm(expected)


@pytest.mark.parametrize(
    "steps", [("krum", "median_norm"), ("bucketing",), ("nnm", "median_norm"), ("subspace", "median_norm")]
)
@pytest.mark.parametrize("options", [{"prior": (1.0, 0.5), "a": 2.0}, {"regularizer": "l1", "lam": 1e-9}])
@pytest.mark.filterwarnings("ignore::UserWarning")  # FA's of preaggregators that do not bound norms
def test_explained_variances_are_the_workers_behind_any_pre_aggregator(steps: tuple[str, ...], options: dict) -> None:
    """With the paper's prior, or hardly any penalty, they are nearly those of IRLS."""
    G = np.random.default_rng(0).standard_normal((9, 20)) + 1
    plain = fa.make_rule("fa", f=1, preaggregators=steps, max_iter=50).aggregate(G)
    found = fa.make_rule("fa", f=1, preaggregators=steps, max_iter=50, **options).aggregate(G)
    np.testing.assert_allclose(found.decision.values, plain.decision.values, atol=0.02)


@pytest.mark.parametrize("steps", [("bucketing", "unit"), ("nnm", "median_norm"), ("arc", "nnm"), ("subspace",)])
@pytest.mark.parametrize("name", ["fa", "phocas", "multi_krum", "geometric_median", "centered_clipping", "caf"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # FA's of preaggregators that do not bound norms
def test_norms_of_all_sizes_give_no_nan(name: str, steps: tuple[str, ...]) -> None:
    """A direction is finite, or the ratio of the norms is refused."""
    rng, rule, answered = np.random.default_rng(0), fa.make_rule(name, f=1, preaggregators=steps), 0
    for _ in range(60):
        p = int(rng.integers(5, 12))
        sizes = 10.0 ** rng.choice([-300, -200, -89, 0, 0, 30, 144, 160, 300], size=(p, 1))
        with suppress(ValueError):
            assert np.isfinite(rule(rng.standard_normal((p, 4)) * sizes)).all()
            answered += 1
    assert answered >= 5


def test_the_norm_of_an_average_is_right_for_norms_of_all_sizes() -> None:
    """Far beyond 1e150 times the usual norm, where D2 is clipped."""
    G = np.diag([3e-200, 4e-200, 3e250, 4e250, 1e-30])
    R = np.array([[0.5, 0, 0, 0.5], [0.5, 0, 0, 0], [0, 0.5, 0, 0.5], [0, 0.5, 0, 0], [0, 0, 1.0, 0]])
    averages = measure(torch.from_numpy(G))[0].averaged(R)
    np.testing.assert_allclose(averages.norms, [2.5e-200, 2.5e250, 1e-30, 1.5e250], rtol=1e-12)


def test_huge_regularization_ends() -> None:
    """Newton's method fails there for every step: a few failures end the steps."""
    G = np.random.default_rng(0).standard_normal((16, 24))
    done = threading.Event()

    def work() -> None:
        assert np.isfinite(fa.irls.solve(G, regularizer="l1", lam=1e12).objective)
        done.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert done.is_set()


def test_state_dicts_of_arrays_have_integers_and_masks_too() -> None:
    workers = [
        {"w": np.full(3, k, dtype=np.float32), "count": np.array(k), "mask": np.array([True, k > 1])} for k in range(5)
    ]
    found = fa.aggregate(workers, "median")
    assert found["w"].tolist() == [2, 2, 2]
    assert found["count"] == 2
    assert found["count"].dtype == workers[0]["count"].dtype
    assert found["mask"].tolist() == [True, True]


def test_arguments_of_another_type_are_named(tmp_path: Path) -> None:
    calls = {
        "fa.aggregate(G, ['fa'])": "rule",
        "fa.aggregate(G, None)": "rule",
        "fa.attack(G, ['random'], f=1)": "attack",
        "fa.make_rule('mean', preaggregators='bucketing').aggregate(G, -1)": "iteration",
        "fa.make_rule('fa').aggregate(G, 1.5)": "iteration",
        "fa.attacks.make_attack('ipm').apply(G, [0], 0, 0)": "G",
        "fa.attacks.make_attack('ipm').apply(torch.ones(5, 4), 1, 0, 0)": "byzantine",
        "likelihood.fit(G, (1.0, 0.5))": "prior",
        "sdp.certify(G, flags.solve(np.eye(5), [1, 2]))": "solution",
        "quantization.quantize(G, quantization.Format(), seed=1.5)": "seed",
        "quantization.Format(shared='no')": "shared",
        "breakdown.breakdown_margin(np.eye(3)[:2], [0])": "K",
        "breakdown.threshold(4, 1, 0.5, a='2')": "a",
    }
    setup = "import fa, numpy as np, torch; from fa import flags, likelihood, sdp; G = np.ones((5, 4))"
    setup += "; from fa.theory import breakdown, quantization"
    for name, line in zip(calls.values(), refusals(calls, setup, tmp_path), strict=True):
        assert line.startswith(f"{name} must be ")
