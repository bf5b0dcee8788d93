"""ByzFL's aggregators and attacks under this package's names, and this package's rules where ByzFL expects one."""

import sys

import byzfl
import numpy as np
import pytest
import torch

import fa
from fa.attacks import make_attack
from fa.cli import main
from fa.seeds import derive
from fa.training import TrainConfig, train

AGGREGATORS = ["Average", "CAF", "CenteredClipping", "GeometricMedian", "Krum", "MDA", "Meamed", "Median", "MoNNA"]
AGGREGATORS += ["MultiKrum", "SMEA", "TrMean"]
ATTACKS = ["ALittleIsEnough", "Gaussian", "Inf", "InnerProductManipulation", "Mimic", "SignFlipping"]
ATTACKS += ["Optimal_ALittleIsEnough", "Optimal_InnerProductManipulation"]


def gradients(p: int = 9, n: int = 40) -> torch.Tensor:
    return torch.randn(p, n, generator=torch.Generator().manual_seed(3)) + 1


@pytest.mark.draws_globally
@pytest.mark.parametrize("name", AGGREGATORS)
def test_an_aggregator_is_a_rule(name: str) -> None:
    """Twice, since a rule keeps no state; and behind our own steps."""
    G = gradients()
    rule = fa.make_rule(f"byzfl:{name}", f=2)
    theirs = getattr(byzfl, name)
    torch.manual_seed(derive("byzfl", 0, 0, 0))  # from which CAF and SMEA draw
    expected = theirs(**({"f": 2} if "f" in theirs.__init__.__code__.co_varnames else {}))(G)
    before = torch.get_rng_state()
    for _ in range(2):
        np.testing.assert_allclose(rule(G), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), before)
    unit = fa.make_rule(f"byzfl:{name}", f=2, before=("unit",))
    np.testing.assert_allclose(unit(5 * G), unit(G), rtol=1e-4, atol=1e-5)


def test_its_options_are_the_rules() -> None:
    G = gradients()
    rule = fa.make_rule("byzfl:GeometricMedian", nu=0.5, T=7)
    np.testing.assert_allclose(rule(G), byzfl.GeometricMedian(nu=0.5, T=7)(G), rtol=1e-6)
    with pytest.raises(ValueError, match=r"rule 'byzfl:GeometricMedian' has no option 'mu'; it has .*nu, T"):
        fa.make_rule("byzfl:GeometricMedian", mu=1)
    with pytest.raises(ValueError, match=r"byzfl:GeometricMedian: "):
        fa.make_rule("byzfl:GeometricMedian", T=-1)(G)


def test_a_worker_with_nan_is_left_out_and_the_kind_is_kept() -> None:
    G = gradients().numpy().astype(np.float64)
    G[4, 7] = np.nan
    result = fa.make_rule("byzfl:TrMean", f=2).aggregate(G)
    assert result.decision.left_out == {4: "NaN or Inf"}
    np.testing.assert_allclose(result.direction, byzfl.TrMean(1)(torch.from_numpy(np.delete(G, 4, axis=0))))
    assert result.direction.dtype == np.float64
    assert fa.aggregate(gradients().half(), "byzfl:Median").dtype == torch.float16


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_acts_on_the_faulty_alone_and_repeats(name: str) -> None:
    """That the global random state is left alone is checked of every test."""
    G, again = gradients(), gradients()
    attack = make_attack(f"byzfl:{name}")
    attack.apply(G, range(2), seed=1, iteration=0)
    attack.apply(again, range(2), seed=1, iteration=0)
    assert torch.equal(G, again)
    assert torch.equal(G[2:], gradients()[2:])
    assert (G[:2] != gradients()[:2]).any(dim=1).all()
    if name == "Gaussian":
        assert not torch.equal(G[0], G[1])
    else:
        np.testing.assert_allclose(G[0], np.asarray(getattr(byzfl, name)()(gradients()[2:])), rtol=1e-5)


def test_a_name_that_is_none_and_a_library_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"a rule of byzfl must be one of Average, .*\(did you mean 'Median'\?\)"):
        fa.make_rule("byzfl:Medium")
    with pytest.raises(ValueError, match=r"an attack of byzfl must be one of ALittleIsEnough, .*; it is 'Median'"):
        make_attack("byzfl:Median")
    monkeypatch.setitem(sys.modules, "byzfl", None)
    with pytest.raises(SystemExit):
        main(["train", "--rule", "byzfl:Mean", "--iterations", "1"])
    assert "need the library byzfl" in capsys.readouterr().err


def test_a_run_with_both() -> None:
    short = {"workers": 7, "byzantine": 1, "iterations": 2, "batch": 4}
    run = train(TrainConfig(rule="byzfl:Average", attack="byzfl:SignFlipping", **short))
    same = train(TrainConfig(rule="mean", attack="byzfl:SignFlipping", **short))
    other = train(TrainConfig(rule="byzfl:Average", attack="byzfl:ALittleIsEnough", **short))
    assert run.curve[-1].train_loss == pytest.approx(same.curve[-1].train_loss, rel=1e-5)
    assert run.curve[-1].train_loss != pytest.approx(other.curve[-1].train_loss, rel=1e-5)


def test_our_rules_go_where_byzfl_expects_an_aggregator() -> None:
    """Its optimal attacks search against whatever aggregator they are given."""
    vectors = list(gradients().numpy())
    ours = fa.make_rule("median")
    np.testing.assert_allclose(ours(vectors), byzfl.Median()(vectors), rtol=1e-6)
    against = [byzfl.Optimal_InnerProductManipulation(agg=agg, pre_agg_list=[], f=2) for agg in (ours, byzfl.Median())]
    first, second = (attack(gradients()) for attack in against)
    np.testing.assert_allclose(first, second, rtol=1e-5)
