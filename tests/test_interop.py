"""ByzFL's aggregators and attacks under this package's names, and this package's rules where ByzFL expects one."""

import copy
import importlib
import sys
from unittest.mock import patch

import byzfl
import numpy as np
import pytest
import torch

import fa
from fa.attacks import make_attack
from fa.cli import main
from fa.data import load
from fa.gradients.measurement import measure
from fa.interop.byzfl import register
from fa.rules.decision import NOT_FINITE
from fa.rules.preaggregators import PreaggregatorContext, apply_preaggregators
from fa.training import TrainConfig, train
from fa.utils.seeds import derive_seed

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
    torch.manual_seed(derive_seed("byzfl", 0, 0, 0))  # from which CAF and SMEA draw
    expected = theirs(**({"f": 2} if "f" in theirs.__init__.__code__.co_varnames else {}))(G)
    before = torch.get_rng_state()
    for _ in range(2):
        np.testing.assert_allclose(rule(G), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), before)
    unit = fa.make_rule(f"byzfl:{name}", f=2, preaggregators=("unit",))
    np.testing.assert_allclose(unit(5 * G), unit(G), rtol=1e-4, atol=1e-5)


def test_a_rule_and_an_attack_stay_on_the_gradients_device() -> None:
    rule, attack = fa.make_rule("byzfl:TrMean", f=2), make_attack("byzfl:SignFlipping")
    optimal = make_attack("byzfl:Optimal_InnerProductManipulation", fa.make_rule("median", f=2))

    def found() -> list[torch.Tensor]:
        G, searched = gradients(), gradients()
        attack.apply(G, range(2), seed=1, iteration=0)
        optimal.apply(searched, range(2), seed=1, iteration=0)
        return [rule(gradients()), G, searched]

    expected = found()
    plain = gradients()
    with patch(f"{__name__}.gradients", plain.clone), torch.device("meta"):  # the default device of new tensors
        again = found()
    for value, usual in zip(again, expected, strict=True):
        torch.testing.assert_close(value, usual, rtol=0, atol=0)


def test_its_options_are_the_rules() -> None:
    G = gradients()
    rule = fa.make_rule("byzfl:GeometricMedian", nu=0.5, T=7)
    np.testing.assert_allclose(rule(G), byzfl.GeometricMedian(nu=0.5, T=7)(G), rtol=1e-6)
    with pytest.raises(ValueError, match=r"byzfl:GeometricMedian\b.*\bnu, T\b.*'mu'"):
        fa.make_rule("byzfl:GeometricMedian", mu=1)
    with pytest.raises(ValueError, match=r"byzfl:GeometricMedian\b.*\bT\b"):
        fa.make_rule("byzfl:GeometricMedian", T=-1)(G)


def test_a_worker_with_nan_is_left_out_and_the_kind_is_kept() -> None:
    G = gradients().numpy().astype(np.float64)
    G[4, 7] = np.nan
    result = fa.make_rule("byzfl:TrMean", f=2).aggregate(G)
    assert result.decision.excluded == {4: NOT_FINITE}
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


def unequal(p: int = 9, n: int = 40) -> np.ndarray:
    """In float64, and of norms from 1 to 40."""
    return gradients(p, n).double().numpy() * np.linspace(0.2, 5, p)[:, None]


PRE_AGGREGATORS = {
    "nnm": lambda G, f: byzfl.NNM(f)(G),
    "arc": lambda G, f: byzfl.ARC(f)(G),
    "clip": lambda G, f: byzfl.Clipping(float(np.median(np.linalg.norm(G, axis=1))))(G),
}


@pytest.mark.parametrize("scale", [1.0, 1e-30])
@pytest.mark.parametrize("f", [0, 1, 2, 3])
@pytest.mark.parametrize("name", PRE_AGGREGATORS)
def test_a_pre_aggregator_gives_what_byzfl_gives(name: str, f: int, scale: float) -> None:
    """The gradients it mixes and their Gram matrix are those that ByzFL makes of the gradients themselves."""
    G = scale * unequal()
    gram, _ = measure(torch.from_numpy(G))
    mixture = apply_preaggregators(gram, (name,), PreaggregatorContext(f=f, seed=5, iteration=3))
    expected = np.asarray(PRE_AGGREGATORS[name](G.copy(), f))
    np.testing.assert_allclose(mixture.R.T @ G, expected, rtol=1e-9, atol=1e-12 * scale)
    size = mixture.gram.scale / scale
    np.testing.assert_allclose(size**2 * mixture.gram.K, scale**-2 * expected @ expected.T)
    distances = np.square(expected[:, None] - expected[None]).sum(axis=2)
    np.testing.assert_allclose(size**2 * mixture.gram.D2, scale**-2 * distances, rtol=1e-9, atol=1e-9)


def test_pre_aggregators_go_before_every_rule() -> None:
    G = unequal(19)
    G[0] = 1e6
    for name in (*fa.RULES, "byzfl:GeometricMedian"):
        rule = fa.make_rule(name, f=2, preaggregators=("arc", "nnm"))
        assert np.linalg.norm(rule(G)) < 100


def test_a_name_that_is_none_and_a_library_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"\bAverage, .*'Medium'.*'Median'"):
        fa.make_rule("byzfl:Medium")
    with pytest.raises(ValueError, match=r"\bALittleIsEnough, .*'Median'"):
        make_attack("byzfl:Median")
    monkeypatch.setitem(sys.modules, "byzfl", None)
    with pytest.raises(SystemExit) as ended:
        main(["train", "--rule", "byzfl:Mean", "--iterations", "1"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install byzfl" in line


def test_a_run_with_both() -> None:
    short = {"workers": 7, "byzantine": 1, "iterations": 2, "batch": 4}
    run = train(TrainConfig(rule="byzfl:Average", attack="byzfl:SignFlipping", **short))
    same = train(TrainConfig(rule="mean", attack="byzfl:SignFlipping", **short))
    other = train(TrainConfig(rule="byzfl:Average", attack="byzfl:ALittleIsEnough", **short))
    assert run.curve[-1].train_loss == pytest.approx(same.curve[-1].train_loss, rel=1e-5)
    assert run.curve[-1].train_loss != pytest.approx(other.curve[-1].train_loss, rel=1e-5)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `register` puts into ByzFL is taken out again."""
    for name in fa.RULES:
        monkeypatch.setattr(f"byzfl.fed_framework.robust_aggregator.aggregators.fa:{name}", None, raising=False)
    register()


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", fa.RULES)
def test_byzfls_robust_aggregator_finds_our_rules(name: str) -> None:
    steps = [{"name": "Clipping", "parameters": {"c": 20.0}}, {"name": "NNM", "parameters": {"f": 2}}]
    G = unequal(13)
    theirs = byzfl.RobustAggregator({"name": f"fa:{name}", "parameters": {"f": 2}}, steps)
    tensor = torch.from_numpy(G).float()
    for vectors in (G, list(G), tensor, list(tensor)):
        mixed = byzfl.NNM(2)(byzfl.Clipping(20.0)(copy.deepcopy(vectors)))
        expected = fa.aggregate(mixed, name, f=2)
        np.testing.assert_allclose(theirs.aggregate_vectors(copy.deepcopy(vectors)), expected, rtol=1e-6)


@pytest.mark.draws_globally
@pytest.mark.usefixtures("registered")
def test_a_round_of_byzfls_clients_and_server_with_our_rule() -> None:
    """Of honest clients with momentum and a faulty one: the server's step is that along our rule's direction."""
    data = load("mnist-mini")
    images = torch.utils.data.TensorDataset(data.train_images[:256] / 255, data.train_labels[:256])
    loader = torch.utils.data.DataLoader(images, batch_size=32)
    model = {"model_name": "fc_mnist", "device": "cpu"}
    learning = {"optimizer_name": "SGD", "learning_rate": 0.1, "weight_decay": 0.0, "milestones": []}
    info = {"aggregator_info": {"name": "fa:fa", "parameters": {"f": 1, "m": 2}}, "pre_agg_list": []}
    server = byzfl.Server(model | learning | info | {"learning_rate_decay": 1.0, "test_loader": loader})
    told = {"loss_name": "NLLLoss", "LabelFlipping": False, "nb_labels": 10, "momentum": 0.9}
    told |= {"training_dataloader": loader, "store_per_client_metrics": False}
    clients = [byzfl.Client(model | told) for _ in range(3)]
    for client in clients:
        client.set_model_state(server.get_dict_parameters())
        client.compute_gradients()
    sent = [client.get_flat_gradients_with_momentum().clone() for client in clients]
    sent += byzfl.ByzantineClient({"name": "SignFlipping", "f": 1, "parameters": {}}).apply_attack(sent)
    parameters = server.get_flat_parameters().clone()
    server.update_model_with_gradients(sent)
    expected = parameters - 0.1 * fa.aggregate(sent, "fa", f=1, m=2)
    np.testing.assert_allclose(server.get_flat_parameters(), expected, rtol=1e-4, atol=1e-7)


def test_our_rules_go_where_byzfl_expects_an_aggregator() -> None:
    """Its optimal attacks search against whatever aggregator they are given."""
    vectors = list(gradients().numpy())
    ours = fa.make_rule("median")
    np.testing.assert_allclose(ours(vectors), byzfl.Median()(vectors), rtol=1e-6)
    against = [byzfl.Optimal_InnerProductManipulation(agg=agg, pre_agg_list=[], f=2) for agg in (ours, byzfl.Median())]
    first, second = (attack(gradients()) for attack in against)
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_a_flower_strategy_without_flower_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr", None)
    monkeypatch.delitem(sys.modules, "fa.interop.flower", raising=False)
    flower = importlib.import_module("fa.interop.flower")
    with pytest.raises(ValueError, match=r"flwr.*pip install .*\[flower\]"):
        flower.Strategy("median")
