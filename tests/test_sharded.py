"""Every rule over four real processes, each with one gradient: what one process has of all of them, on every rank."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fa import RULES, make_rule
from fa.rules import Aggregate, Rule
from fa.rules.decision import NOT_FINITE
from fa.sharded import Shards
from fa.utils.validation import TooFewWorkersError
from tests.groups import in_processes

P = 4


def normal(n: int, dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((P, n)).astype(dtype)


def with_nan(G: np.ndarray) -> np.ndarray:
    G[2, -1] = np.nan  # the last rank serves it
    return G


NEAR = np.float32(1e-7) * normal(1003, seed=1)
GRADIENTS = {
    "n not divisible": normal(1003),
    "n less than p": normal(2),
    "one coordinate": normal(1),
    "one NaN": with_nan(normal(1003)),
    "common offset": normal(5001) + np.float32(1e4),
    "offset and NaN": with_nan(normal(5001) + np.float32(1e4)),
    "float64": normal(1003, np.float64),
    "half": normal(1003, np.float16),
    "norms apart by 1e60": normal(301) * np.logspace(-30, 30, P, dtype=np.float32)[:, None],
    "out of float64's squares": normal(301, np.float64) * np.array([[1e200], [1e-200], [1.0], [1e190]]),
    "close in float64": normal(1, np.float64)[0] + 1e-9 * normal(1003, np.float64),
}
DISCRETE = {"mean", "median", "trimmed_mean", "meamed", "phocas", "krum", "multi_krum", "bulyan"}
TOLERANCE = {2: 1e-3, 4: 2e-6, 8: 1e-12}  # by bytes of a number, of the largest coordinate


def rules(name: str) -> dict[str, Rule]:
    """f = 1 where that is allowed: with the faulty worker found, all rules are told of none."""
    lenient = {"krum", "multi_krum", "bulyan"} if "NaN" not in name else set()
    made = {rule: make_rule(rule, f=0 if rule in lenient else 1) for rule in RULES}
    if name == "n not divisible":
        made["released"] = make_rule("fa", formulation="released", lam=2.0)
        made["median after nnm"] = make_rule("median", f=1, preaggregators=("nnm",))
        made["mean after two steps"] = make_rule("mean", preaggregators=("clip", "bucketing"), seed=3)
        made["phocas after krum"] = make_rule("phocas", f=0, preaggregators=("krum", "unit"))
    return made


CASES = [(name, rule) for name in GRADIENTS for rule in rules(name)]


def work(rank: int, p: int, folder: Path) -> None:
    shards = Shards()
    found = {}
    for name, rule in CASES:
        result = shards.aggregate(torch.from_numpy(GRADIENTS[name][rank]), rules(name)[rule], iteration=5)
        found[f"{name}/{rule}"] = result.direction.numpy()
        found[f"{name}/{rule}/decision"] = np.array(told(result))
    own = torch.from_numpy(normal(1003)[rank])
    same = shards.aggregate(own, make_rule("fa"), out=own).direction
    found["in place"] = np.array(
        [same.data_ptr() == own.data_ptr(), bool((same.numpy() == found["n not divisible/fa"]).all())]
    )
    np.savez(folder / f"{rank}.npz", **found)
    refuses(shards, rank)


def refuses(shards: Shards, rank: int) -> None:
    g = torch.ones(5)
    for regularizer in ("l1", "rows"):
        with pytest.raises(ValueError, match=f"^regularizer must be .*pairwise.*group.*'{regularizer}'"):
            shards.aggregate(g, make_rule("fa", lam=1.0, regularizer=regularizer))
    with pytest.raises(TooFewWorkersError, match=r"\bbulyan\b.*\b4f \+ 3\b"):
        shards.aggregate(g, make_rule("bulyan", f=1))
    with pytest.raises(TooFewWorkersError, match=f"^G must .*{NOT_FINITE}"):
        shards.aggregate(g * torch.nan, make_rule("median"))
    with pytest.raises(ValueError, match=r"^g must be .*\b7 of float32\b.*\b9 of float32\b"):
        shards.aggregate(torch.ones(9 if rank == 1 else 7), make_rule("mean"))
    with pytest.raises(ValueError, match=r"^g must be .*\(n,\).*\b2, 5\b"):
        shards.aggregate(torch.ones(2, 5), make_rule("mean"))
    with pytest.raises(ValueError, match=r"^out must be .*\b4\b"):
        shards.aggregate(g, make_rule("mean"), out=torch.empty(4))


def told(result: Aggregate) -> str:
    return repr((result.decision.selected, result.decision.excluded))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("sharded")
    in_processes(work, P, folder)
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(P)]


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_the_processes_have_what_one_process_has(name: str, rule: str, found: list[dict[str, np.ndarray]]) -> None:
    G = GRADIENTS[name]
    expected = rules(name)[rule].aggregate(G, iteration=5)
    d = found[0][f"{name}/{rule}"]
    assert d.dtype == G.dtype
    assert str(found[0][f"{name}/{rule}/decision"]) == told(expected)
    if rule in DISCRETE:  # the weights are the same numbers, and so is what is done with them
        np.testing.assert_array_equal(d, expected.direction)
    else:  # the order in which K was added up has moved the weights' last digits
        scale = np.abs(expected.direction.astype(np.float64)).max()
        # Centered clipping starts at 0, from which differences of 1e-9 cancel.
        clipping = rule == "centered_clipping" and name == "close in float64"
        digits = 1e-8 if clipping else TOLERANCE[G.dtype.itemsize]
        np.testing.assert_allclose(d / scale, expected.direction / scale, rtol=0, atol=digits)


def test_all_ranks_have_the_same_bits(found: list[dict[str, np.ndarray]]) -> None:
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, value in found[0].items():
            assert value.tobytes() == other[name].tobytes(), name


def test_the_direction_may_take_the_gradients_place(found: list[dict[str, np.ndarray]]) -> None:
    assert found[0]["in place"].all()


def test_a_rank_whose_gradient_is_not_finite_is_named(found: list[dict[str, np.ndarray]]) -> None:
    for rule in RULES:
        assert f"2: '{NOT_FINITE}'" in str(found[0][f"one NaN/{rule}/decision"]), rule


def test_without_a_process_group_the_error_says_so() -> None:
    with pytest.raises(ValueError, match="init_process_group"):
        Shards()
