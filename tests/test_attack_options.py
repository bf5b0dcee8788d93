"""Options of a run's attack: in its configuration, on the command line, over processes, and for ByzFL's attacks."""

import json
from pathlib import Path
from typing import Any

import byzfl
import numpy as np
import pytest
import torch

import fa
from fa import models
from fa.attacks import make_attack
from fa.cli import main
from fa.data import load
from fa.training import TrainConfig, train
from fa.training.parameter_vector import flatten
from fa.training.setup import configured_attack, make_workers
from fa.training.transports.server_config import RpcConfig
from fa.training.worker import Worker

SHORT: dict[str, Any] = {"workers": 7, "byzantine": 2, "iterations": 2, "batch": 4}


def test_options_are_part_of_the_configuration_only_if_there_are_some() -> None:
    plain, empty = TrainConfig(attack="ipm"), TrainConfig(attack="ipm", attack_options={})
    assert plain == empty
    assert "attack_options" not in json.loads(plain.to_json())
    stronger = TrainConfig(attack="ipm", attack_options={"factor": np.float64(2.0)})
    assert json.loads(stronger.to_json())["attack_options"] == {"factor": 2.0}
    assert TrainConfig.from_json(stronger.to_json()) == stronger
    assert hash(stronger) != hash(plain)
    assert configured_attack(stronger).options["factor"] == 2.0


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        ("ipm", {"strength": 2}, r"'ipm' must be .*'strength'"),
        ("gaussian", {"std": -1}, r"^std must be .*-1\b"),
        ("byzfl:Gaussian", {"deviation": 1.0}, r"'byzfl:Gaussian' must be .*'deviation'"),
        ("byzfl:Gaussian", {"sigma": -1.0}, r"^byzfl:Gaussian\b.*sigma"),
        ("byzfl:LabelFlipping", {}, r"'LabelFlipping'.*label_flipping"),
    ],
)
def test_invalid_options_end_a_run(attack: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(TrainConfig(attack=attack, attack_options=options, **SHORT))


def losses(server: RpcConfig | None = None, **settings: Any) -> list[float]:
    return [point.train_loss for point in train(TrainConfig(**SHORT, **settings), server=server, threads=1).curve]


def test_options_reach_the_attack() -> None:
    weak = losses(rule="mean", attack="ipm")
    assert weak == losses(rule="mean", attack="ipm", attack_options={"factor": 0.1})
    assert weak != losses(rule="mean", attack="ipm", attack_options={"factor": 5.0})


def test_the_run_s_rule_reaches_a_search() -> None:
    attack = configured_attack(TrainConfig(rule="median", attack="line_search", rule_options={"seed": 4}, **SHORT))
    assert attack.rule == fa.make_rule("median", f=2, seed=4)
    assert len(losses(rule="median", attack="line_search", attack_options={"evaluations": 3})) == SHORT["iterations"]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_label_flipping_trains_byzantine_workers_on_flipped_labels(momentum: float) -> None:
    config = TrainConfig(attack="label_flipping", worker_momentum=momentum, **SHORT)
    dataset = load("mnist-mini")
    model = models.build("convnet", dataset.shape, dataset.classes, seed=0)
    rows = torch.zeros(3, len(flatten(model)))
    own = {rank: rows[rank] for rank in (1, 2)}
    byzantine, honest = make_workers(own, model, dataset, config, configured_attack(config))
    same = Worker(1, model, dataset, TrainConfig(attack="none", worker_momentum=momentum, **SHORT), rows[0])
    images, labels = same.minibatch(0)
    flipped = byzantine.minibatch(0)
    assert torch.equal(flipped[0], images)
    assert torch.equal(flipped[1], 9 - labels)
    assert not torch.equal(9 - honest.minibatch(0)[1], labels)
    byzantine.write_gradient(0)
    with same.random_numbers(0):
        same.compute(images, 9 - labels)
    assert torch.equal(rows[0], rows[1])


def test_label_flipping_changes_a_run_and_not_its_loss_of_the_first_iteration() -> None:
    honest = losses(rule="mean", attack="none", evaluate_every=1)
    flipped = losses(rule="mean", attack="label_flipping", evaluate_every=1)
    assert honest[0] == flipped[0]  # of the honest workers alone
    assert honest[1] != flipped[1]


@pytest.mark.long
@pytest.mark.parametrize(
    ("attack", "options"), [("label_flipping", {}), ("line_search", {"evaluations": 4}), ("gaussian", {"std": 3.0})]
)
def test_processes_give_the_simulation_s_bits(attack: str, options: dict[str, Any]) -> None:
    settings = {"rule": "geometric_median", "attack": attack, "attack_options": options}
    assert losses(server=RpcConfig(), **settings) == losses(**settings)


@pytest.mark.parametrize("option", ["factor=3.0", "factor=3"])
def test_the_command_line_takes_options(option: str, tmp_path: Path) -> None:
    arguments = ["--workers", "5", "--byzantine", "1", "--iterations", "1", "--batch", "4", "--rule", "median"]
    with pytest.raises(SystemExit) as ended:
        main(["train", *arguments, "--attack", "ipm", "--attack-option", option, "--out", str(tmp_path / "run")])
    assert ended.value.code == 0
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"]["attack_options"] == {"factor": 3.0}


@pytest.mark.parametrize("option", ["factor", "=3", "factor=big", "strength=1"])
def test_the_command_line_refuses_options_in_one_line(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "--iterations", "1", "--attack", "ipm", "--attack-option", option])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_new_options_of_rules_are_flags(tmp_path: Path) -> None:
    arguments = ["--workers", "5", "--byzantine", "1", "--iterations", "1", "--batch", "4", "--attack", "none"]
    flags = ["--rule", "multi_krum", "--neighbours", "p-f-1", "--distance", "plain", "--strict", "false"]
    with pytest.raises(SystemExit) as ended:
        main(["train", *arguments, *flags, "--preaggregators", "clip:2.5", "--out", str(tmp_path / "run")])
    assert ended.value.code == 0
    options = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["rule_options"]
    assert options == {"neighbours": "p-f-1", "distance": "plain", "strict": False, "preaggregators": ["clip:2.5"]}


# --- ByzFL's attacks ---


def test_byzfls_attacks_take_their_options() -> None:
    honest = np.random.default_rng(0).standard_normal((5, 9))
    for name, options in (("ALittleIsEnough", {"tau": 3.0}), ("InnerProductManipulation", {"tau": 0.5})):
        G = torch.from_numpy(np.vstack([np.zeros((2, 9)), honest]))
        make_attack(f"byzfl:{name}", **options).apply(G, (0, 1), 1, 2)
        expected = getattr(byzfl, name)(**options)(honest)
        np.testing.assert_allclose(G[:2], [expected, expected], rtol=1e-6)


def test_byzfls_searches_are_against_the_rule_in_use() -> None:
    honest = np.random.default_rng(0).standard_normal((5, 9))
    rule = fa.make_rule("median", f=2)
    G = torch.from_numpy(np.vstack([np.zeros((2, 9)), honest]))
    make_attack("byzfl:Optimal_InnerProductManipulation", rule, evals=7).apply(G, (0, 1), 1, 2)
    expected = byzfl.Optimal_InnerProductManipulation(agg=rule, pre_agg_list=[], f=2, evals=7)(honest)
    np.testing.assert_allclose(G[0], expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"'byzfl:Optimal_ALittleIsEnough' must be .*'agg'"):
        make_attack("byzfl:Optimal_ALittleIsEnough", agg=None)


@pytest.mark.parametrize("option", ["name", "rule"])
def test_a_runs_own_settings_are_no_options_of_its_attack(option: str) -> None:
    with pytest.raises(ValueError, match=rf"^attack_options must be .*'{option}'"):
        TrainConfig(attack="alie", attack_options={option: "x"})
