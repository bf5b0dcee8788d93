"""The extras and the supplement: their grids, what they draw, and verdicts that follow from the numbers."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fa.cli import cli, main
from fa.experiments import EXTRAS, figure_module
from fa.experiments.figures import (
    extra01,
    extra02,
    extra03,
    extra04,
    extra05,
    extra06,
    extra07,
    extra08,
    extra09,
    extra10,
    extra11,
    extra12,
    extra13,
    supp01,
)
from fa.experiments.figures.equal_length import ATTACKS, EQUIVALENT_WITHIN, Comparison, compare
from fa.experiments.figures.extras_common import RULES, SAME_LENGTH
from fa.experiments.figures.tuned_rates import best_rates
from fa.experiments.notebooks import execute, find
from fa.experiments.reporting.artifacts import provenance
from fa.experiments.reporting.claims import HOLDS, IN_PART, MISSING, NOT, OPEN, UNTESTABLE, Lead, comparison_verdict
from fa.experiments.reporting.report import write
from fa.experiments.runs.profiles import PROFILES
from fa.experiments.runs.results import Results
from fa.experiments.runs.store import RunStore
from fa.experiments.runs.study import Study
from fa.experiments.runs.variants import DATASETS, VARIANTS
from fa.gradients.measurement import measure
from fa.rules import make_rule
from fa.training import train
from tests import texts
from tests.notebook_cells import run_cells

(KRUM_FA,) = (label for label, (_, options) in extra04.CASES.items() if "krum" in options.get("preaggregators", ()))
SUBSPACE = {"preaggregators": ("unit", "subspace")}.items()


def table(study: Study, reached: dict[str, float] | float, seeds_differ: bool = False) -> pd.DataFrame:
    """The study's table with two points a curve, ending in the accuracy of its label, or in the one given."""
    rows = []
    own = list(dict.fromkeys(name for cell in study.cells for name in cell.case.columns))
    for cell in study.cells:
        last = reached if isinstance(reached, float) else reached.get(cell.case.label, 0.5)
        last += 0.001 * (cell.config.seed - 2022) if seeds_differ else 0.0
        about = {"variant": cell.variant, "label": cell.case.label, "f": cell.config.byzantine}
        about |= {name: cell.case.columns.get(name) for name in own}
        for iteration, accuracy in ((1, 0.1), (2, last)):
            point = {"iteration": iteration, "epoch": 1, "seconds": 1.0, "train_loss": 1.0, "test_accuracy": accuracy}
            rows.append(about | {"seed": cell.config.seed} | point)
    return pd.DataFrame(rows)


def verdicts(claims) -> list[str]:
    return [claim.verdict for claim in claims]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", EXTRAS)
def test_all_rules_of_an_extra_get_the_same_settings_and_seeds(name: str, profile: str) -> None:
    """Where settings are equal but for the rule's own: no rule is tuned alone."""
    own = {"rule", "rule_options", "byzantine", "seed"}
    shared: dict[str, set[str]] = {}
    seeds: dict[str, dict[str, set[int]]] = {}
    for cell in figure_module(name).study(profile).cells:
        where = str(cell.case.settings)
        settings = {key: value for key, value in json.loads(cell.config.to_json()).items() if key not in own}
        shared.setdefault(where, set()).add(json.dumps(settings))
        of_case = seeds.setdefault(where, {}).setdefault(str(cell.case), set())
        of_case.add(cell.config.seed)
    assert {len(settings) for settings in shared.values()} == {1}
    for where, cases in seeds.items():
        assert len({frozenset(own_seeds) for own_seeds in cases.values()}) == 1, where


@pytest.mark.parametrize("name", EXTRAS)
def test_an_unknown_profile_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"^profile\b.*'tiny'"):
        figure_module(name).study("tiny")


def test_batch_sizes_of_an_unknown_profile_are_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"^profile\b.*'tiny'"):
        extra08.batches("tiny", extra08.PANELS[0])


def test_extras_share_runs_with_figure_4_and_with_each_other() -> None:
    four = set(figure_module("fig04").study("paper").configs)
    norms = [cell.config for cell in extra01.study("paper").cells if not cell.case.settings]
    assert len(four & set(norms)) == 3 * 11  # all of f = 3, with three seeds
    three, trusted = set(extra03.study("quick").configs), extra04.study("quick")
    assert {cell.case.label for cell in trusted.cells if cell.config not in three} == {KRUM_FA}


# Extra 1


def lower(numbers: pd.DataFrame, label: str, accuracy: float, **where: object) -> None:
    chosen = (numbers["label"] == label) & (numbers["iteration"] == 2)
    for column, value in where.items():
        chosen &= numbers[column] == value
    assert chosen.any()
    numbers.loc[chosen, "test_accuracy"] = accuracy


def test_extra_1_takes_its_three_parts_apart_and_reads_the_sweeps() -> None:
    study = extra01.study("quick")
    numbers = table(study, 0.6, seeds_differ=True)
    norms, sweeps, regimes = extra01.parts(numbers)
    assert len(norms) == 2 * len(extra01.PAIRS) + 2
    assert len(norms) + len(sweeps) + len(regimes) == len(study.cells)
    assert len(extra01.by_regime(regimes)) == len(extra01.REGIMES["quick"])
    lower(numbers, "FA", 0.2, attack="random", m=2, a=1.0)
    lower(numbers, "FA", 0.3, attack="random", max_iter=100)
    sweeps = extra01.parts(numbers)[1]
    assert list(extra01.swept(sweeps, "random", "m")) == [1, 2, 4, 8, 15]
    assert extra01.swept(sweeps, "random", "m", a=1.0)[2] == 0.2
    assert extra01.swept(sweeps, "random", "m")[2] == pytest.approx(0.599)
    assert extra01.swept(sweeps, "random", "max_iter")[100] == 0.3
    assert extra01.swept(sweeps, "collude", "max_iter")[100] == pytest.approx(0.599)


def test_extra_1_draws_every_part_and_its_verdicts_go_either_way() -> None:
    study = extra01.study("quick")
    numbers = table(study, {extra01.equal(name): 0.7 for name in extra01.PAIRS}, seeds_differ=True)
    assert verdicts(extra01.claims(numbers, 0.1)) == [HOLDS, NOT, NOT]
    for seed in (2021, 2022, 2023):
        lower(numbers, "FA, m = 1, a = 1", 0.8 + seed / 1e6, attack="collude", f=1, seed=seed)
    lower(numbers, extra01.equal("Bulyan"), 0.2)
    lower(numbers, "FA", 0.9, attack="collude", lam=4.0)
    claims = extra01.claims(numbers, 0.1)
    assert verdicts(claims) == [IN_PART, HOLDS, IN_PART]
    assert re.search(r"Bulyan\W+-0\.2", claims[0].measured)
    assert extra01.REGIME_LABELS["collude"] in claims[1].measured
    assert 0.802 in texts.numbers(claims[1].measured)
    axes = extra01.draw(numbers, "title").axes
    assert [one.get_xlabel() for one in axes[2:]] == [extra01.NAMES[option] for option in extra01.SWEPT]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes[4].lines}
    (label,) = (label for label in lines if extra01.ATTACKS["collude"] in label and extra01.CONTROL not in label)
    assert lines[label][2] == 0.9


def test_extra_1_judges_each_part_by_its_own_runs() -> None:
    study = extra01.study("quick")
    numbers = table(study, {extra01.equal(name): 0.7 for name in extra01.PAIRS}, seeds_differ=True)
    norms, regimes = numbers["attack"].isna(), numbers["lr"].notna()
    for untaught, expected in (
        (norms, [UNTESTABLE, NOT, NOT]),
        (regimes, [HOLDS, UNTESTABLE, NOT]),
        (~norms & ~regimes, [HOLDS, NOT, UNTESTABLE]),
    ):
        some = numbers.assign(test_accuracy=numbers["test_accuracy"].where(~untaught, 0.1))
        assert verdicts(extra01.claims(some, 0.1)) == expected


def test_a_margin_that_three_seeds_do_not_bear_out_is_not_established() -> None:
    sure = Lead("f = 3", [0.80, 0.81, 0.82], "mean", [0.70, 0.71, 0.721])
    wide = Lead("f = 3", [0.90, 0.70, 0.80], "mean", [0.60, 0.75, 0.70])
    none = Lead("f = 3", [0.70, 0.71, 0.72], "mean", [0.70, 0.70, 0.72])
    assert comparison_verdict([sure]) == HOLDS
    assert comparison_verdict([sure, wide]) == comparison_verdict([sure, none]) == IN_PART
    assert (
        comparison_verdict([wide]) == comparison_verdict([wide, none]) == comparison_verdict([sure], level=1e-6) == OPEN
    )
    assert comparison_verdict([none]) == NOT
    assert comparison_verdict([wide], testable=False) == UNTESTABLE


# Extra 2


def test_extra_2_chooses_on_validation_images_and_tests_at_that_rate_with_three_seeds() -> None:
    study = extra02.study("quick")
    assert {(cell.config.validation, cell.config.seed) for cell in study.cells} == {(0.2, 2901)}
    numbers = table(study, 0.5)
    numbers.loc[
        (numbers["variant"] == "fa") & (numbers["lr"] == 0.2) & (numbers["iteration"] == 2), "test_accuracy"
    ] = 0.8
    rates = extra02.chosen(numbers)
    assert rates == dict.fromkeys(RULES, 0.05) | {"fa": 0.2}  # of equals the lowest
    whole = extra02.tested(study, numbers)
    new = [cell.config for cell in whole.cells[len(study.cells) :]]
    assert {config.seed for config in new} == {2021, 2022, 2023}
    assert {config.validation for config in new} == {0.0}
    assert {config.lr for config in new if config.rule == "fa"} == {0.2}
    assert len(new) == 3 * len(RULES)
    own = extra02.tested(extra02.study("quick", seeds=[2021]), numbers, [2021])
    assert {cell.config.seed for cell in own.cells} == {2021}
    assert provenance(Results(whole, {}, 1.0, ()))["command"].endswith(extra02.NAME)  # which is more than `study` names


def test_extra_2_does_not_look_at_the_test_images_when_it_chooses() -> None:
    study = extra02.study("quick")
    choice = table(study, 0.5)
    choice.loc[(choice["lr"] == 0.1) & (choice["iteration"] == 2), "test_accuracy"] = 0.7
    whole = extra02.tested(study, choice)
    numbers = table(whole, 0.5, seeds_differ=True)
    tests = numbers["validation"] == 0
    numbers.loc[~tests & (numbers["iteration"] == 2), "test_accuracy"] = 0.5
    numbers.loc[tests & (numbers["variant"] == "fa"), "test_accuracy"] += 0.3
    chosen = dict.fromkeys(RULES, 0.05)
    assert extra02.chosen(numbers) == chosen
    numbers.loc[~tests & (numbers["lr"] == 0.1) & (numbers["iteration"] == 2), "test_accuracy"] = 0.7
    claims = extra02.claims(numbers, 0.1)
    assert verdicts(claims) == [HOLDS] * 3
    left, right = extra02.draw(numbers, "title").axes
    assert len(left.lines) == 2 * len(RULES)  # a line and a ring
    last = right.get_yticklabels()[-1].get_text()
    assert last.startswith(VARIANTS["fa"].label)
    assert texts.numbers(last) == [0.1]


# Extra 3


def test_extra_3_has_a_cell_for_every_rule_attack_and_f_and_gaps_where_bulyan_refuses() -> None:
    study = extra03.study("quick")
    numbers = table(study, 0.6)
    alone = (numbers["variant"] == "median") & (numbers["attack"] == "alie") & (numbers["f"] == 5)
    numbers.loc[alone & (numbers["iteration"] == 2), "test_accuracy"] = 0.2
    for f in extra03.F_BY_PROFILE["quick"]:
        grid = extra03.cells(numbers, f)
        assert grid.shape == (10, 7)
        assert list(grid.columns) == list(extra03.ATTACKS.values())
        gaps = grid.isna()
        assert gaps.loc["Bulyan"].all() == (f > 3)
        assert not gaps.drop(index="Bulyan").any(axis=None)
    assert extra03.cells(numbers, 5).loc["Median", extra03.ATTACKS["alie"]] == 0.2
    *panels, _ = extra03.draw(numbers, "title").axes
    assert [axes.get_title() for axes in panels] == [f"f = {f}" for f in range(1, 7)]
    assert [len(axes.texts) for axes in panels] == [70] * 3 + [63] * 3
    assert [len(axes.patches) for axes in panels] == [0] * 3 + [7] * 3


def test_extra_3_has_verdicts_that_go_either_way() -> None:
    study = extra03.study("quick")
    better = table(study, {"FA": 0.9, SAME_LENGTH: 0.7})
    assert verdicts(extra03.claims(better, 0.1)) == [HOLDS, HOLDS]
    assert {42, 0} <= set(texts.numbers(extra03.claims(better, 0.1)[1].measured))  # cases ahead and behind
    one = (
        better["label"].isin(["FA", SAME_LENGTH])
        & (better["attack"] == "mimic")
        & (better["f"] == 2)
        & (better["iteration"] == 2)
    )
    better.loc[one, "test_accuracy"] = 0.3
    claims = extra03.claims(better, 0.1)
    assert verdicts(claims) == [IN_PART, IN_PART]
    assert 0.3 in texts.numbers(claims[0].measured)
    assert extra03.ATTACKS["mimic"] in claims[0].measured
    assert verdicts(extra03.claims(table(study, 0.6), 0.1)) == [NOT, NOT]
    assert verdicts(extra03.claims(table(study, 0.1), 0.1)) == [UNTESTABLE] * 2


# Extra 4


def hand_made() -> pd.DataFrame:
    """Two iterations of five workers, the first two of them faulty, under one attack."""
    common = {"attack": "alie", "seed": 1}
    values = {"FA": [[0.1, 0.9, 0.5, 0.6, 0.7], [0.1, 0.2, 0.5, 0.6, 0.7]]}
    weights = {"FA": [[0.2, 0.3, 0.1, 0.0, 0.4], [0.0, 0.1, 0.2, 0.2, 0.2]], extra04.UNIT_MEAN: [[0.2] * 5, [0.2] * 5]}
    excluded = {"Multi-Krum": [{0, 1, 2}, {2, 3}], "Bulyan": [set(), set()], KRUM_FA: [{0, 1}, {0, 1}]}
    rows = []
    for rule in (*values, extra04.UNIT_MEAN, *excluded):
        for iteration in (0, 1):
            for worker in range(5):
                out = worker in excluded.get(rule, [set(), set()])[iteration]
                row = {"value": np.nan, "weight": np.nan, "reason": "not selected" if out else ""}
                for name, numbers in (("value", values), ("weight", weights)):
                    if rule in numbers:
                        row[name] = numbers[rule][iteration][worker]
                row["share"] = row["weight"] / sum(weights[rule][iteration]) if rule in weights else np.nan
                rows.append({"rule": rule, **common, "iteration": iteration + 1, "worker": worker, **row})
    return pd.DataFrame(rows)


def test_precision_and_recall_of_a_hand_made_record() -> None:
    found = extra04.detection(hand_made(), f=2).set_index("detector")[["precision", "recall"]]
    name = {by: label for label, by in extra04.DETECTORS.items()}
    assert found.loc[name["FA", "value"]].tolist() == [0.75, 0.75]  # 0 and 2, then 0 and 1
    assert found.loc[name["FA", "weight"]].tolist() == [0.5, 0.5]  # 3 and 2, then 0 and 1
    assert found.loc[name[extra04.UNIT_MEAN, "weight"]].tolist() == [0, 0]  # ties name the last workers
    assert found.loc[name["Multi-Krum", "status"]].tolist() == [2 / 5, 2 / 4]
    assert found.loc[name["Bulyan", "status"], "recall"] == 0
    assert np.isnan(found.loc[name["Bulyan", "status"], "precision"])  # it names no worker
    assert found.loc[name[KRUM_FA, "status"]].tolist() == [1, 1]


def test_extra_4_draws_who_was_trusted_and_its_verdicts_follow() -> None:
    one = hand_made()
    workers = pd.concat([one.assign(attack=attack) for attack in extra04.ATTACKS], ignore_index=True)
    more = pd.concat([workers.assign(iteration=workers["iteration"] + 2 * i) for i in range(10)], ignore_index=True)
    found = extra04.detection(more, f=2)
    assert extra04.cells(found, "recall").shape == (6, 7)
    assert verdicts(extra04.claims(more, found)) == [NOT, NOT, IN_PART]
    assert verdicts(extra04.claims(workers, found)) == [UNTESTABLE] * 3
    axes = extra04.draw(more, found, "title").axes
    assert list(axes[0].lines[0].get_ydata()[:2]) == pytest.approx([0.65, 0.65])  # honest: workers 3 and 4, as f = 3
    assert axes[7].get_ylabel() == extra04.COURSES["share"]
    negative = more.assign(share=-more["share"])  # a share that is negative must be seen to be so
    drawn = extra04.draw(negative, found, "title").axes[7].lines[0].get_ydata()
    assert list(drawn[:2]) == pytest.approx([-0.2, -0.2 / 0.7])


# Extra 5


def test_extra_5_compares_combinations_with_rules_alone_and_with_their_control() -> None:
    study = extra05.study("quick")
    names = {cell.case.label for cell in study.cells}
    assert set(extra05.COMBINED) < names
    assert len(names) == len(extra05.COMBINED) + len(RULES)
    level = table(study, 0.6, seeds_differ=True)
    assert verdicts(extra05.claims(level, 0.1)) == [NOT, NOT]
    (median,) = (
        name for name, (rule, options) in extra05.COMBINED.items() if rule == "median" and SUBSPACE <= options.items()
    )
    reached = dict.fromkeys(extra05.PAIRS, 0.55) | dict.fromkeys(extra05.PAIRS.values(), 0.4)
    ahead = table(study, reached | {median: 0.8}, seeds_differ=True)
    claims = extra05.claims(ahead, 0.1)
    assert verdicts(claims) == [HOLDS, HOLDS]
    assert median in claims[0].measured
    assert 0.8 in texts.numbers(claims[0].measured)
    ahead.loc[(ahead["attack"] == "collude") & (ahead["variant"] == "bulyan"), "test_accuracy"] += 0.4
    assert verdicts(extra05.claims(ahead, 0.1)) == [IN_PART, HOLDS]
    panels = extra05.draw(level, "title").axes
    assert [len(axes.get_yticks()) for axes in panels] == [len(names)] * 2


# Extra 6


def cosine_table(study: Study, cosine: float, iterations: int = 20) -> pd.DataFrame:
    """Cosines of every formulation under every attack, equal but for the random span's."""
    rows = [
        {"attack": attack, "f": f, "formulation": name, "seed": 3001, "iteration": iteration}
        for attack, f in ATTACKS
        for name in extra06.LOOKS
        for iteration in range(1, iterations + 1)
    ]
    spans = [row["formulation"] == extra06.SPAN for row in rows]
    return pd.DataFrame(rows).assign(cosine=np.where(spans, 0.5, cosine))


def test_extra_6_is_the_test_that_the_rules_of_judgement_specify() -> None:
    """Profile cpu has it: four arms, four attacks and 20 fresh seeds, each direction at one length."""
    study = extra06.study("cpu")
    configs = [cell.config for cell in study.cells]
    assert len(set(configs)) == len(configs) == 4 * 4 * 20
    assert {config.seed for config in configs} == set(range(3001, 3021))
    assert {(config.attack, config.byzantine) for config in configs} == {
        ("random", 2),
        ("random", 3),
        ("collude", 4),
        ("none", 0),
    }
    setting = {
        (
            config.dataset,
            config.model,
            config.workers,
            config.batch,
            config.iterations,
            config.lr,
            config.momentum,
            config.direction_norm,
        )
        for config in configs
    }
    assert setting == {("mnist", "convnet", 15, 32, 300, 0.05, 0.9, "unit_mean")}
    arms = {(cell.config.rule, *sorted(dict(cell.config.options).items())) for cell in study.cells}
    unseeded = {tuple(option for option in arm if option[0] != "seed") for arm in arms}
    assert unseeded == {
        ("fa", ("formulation", "released")),
        ("fa",),
        ("mean", ("preaggregators", ("unit",))),
        ("mean", ("preaggregators", ("unit", "random_span"))),
    }
    assert make_rule("fa").max_iter == 5
    for cell in study.cells:
        assert cell.config.options.get("seed") == (cell.config.seed if cell.case.label == extra06.SPAN else None)
    assert extra06.TEST_LEVEL == 0.05 / 8
    assert EQUIVALENT_WITHIN == 0.02


def of_extra_6(numbers: pd.DataFrame) -> list[Comparison]:
    return compare(numbers, extra06.PAIRS, extra06.TEST_LEVEL)


def test_extra_6_pairs_by_seed_and_judges_each_arm() -> None:
    study = extra06.study("quick")
    numbers = table(study, {extra06.RELEASED: 0.6, extra06.FIVE: 0.505, extra06.SPAN: 0.3}, seeds_differ=True)
    compared = {(one.attack, one.name): one for one in of_extra_6(numbers)}
    assert len(compared) == 12
    for (_, arm), one in compared.items():
        assert len(one.differences.values) == 5
        expected = {extra06.RELEASED: 0.1, extra06.FIVE: 0.005, extra06.SPAN: -0.2}[arm]
        assert one.differences.values == pytest.approx([expected] * 5)
    near = extra06.claims(numbers, cosine_table(study, 0.995), 0.1)
    assert verdicts(near) == [HOLDS, HOLDS, NOT, OPEN]
    assert {5, 20} <= set(texts.numbers(near[1].measured))  # a subset of the seeds
    lower(numbers, extra06.RELEASED, 0.9, attack="none", seed=3003)
    far = extra06.claims(numbers, cosine_table(study, 0.98), 0.1)
    assert verdicts(far) == [NOT, IN_PART, NOT, OPEN]  # that difference is not established any more
    assert 0.98 in texts.numbers(far[0].measured)
    some = numbers[numbers["attack"] == "random"]
    assert verdicts(extra06.claims(some, cosine_table(study, 0.98), 0.1))[1:] == [MISSING] * 3
    one_seed = (numbers["label"] == extra06.SPAN) & (numbers["attack"] == "none") & (numbers["seed"] > 3001)
    assert verdicts(extra06.claims(numbers[~one_seed], cosine_table(study, 0.98), 0.1)) == [NOT, IN_PART, NOT, MISSING]
    for count in (3001, 3002):
        numbers = numbers[~((numbers["seed"] == count) & (numbers["label"] == extra06.FIVE))]
    assert {len(one.differences.values) for one in of_extra_6(numbers) if one.name == extra06.FIVE} == {3}


def test_extra_6_draws_intervals_within_the_margin_and_cosines() -> None:
    study = extra06.study("quick")
    numbers = table(study, {extra06.RELEASED: 0.6}, seeds_differ=True)
    lower(numbers, extra06.CONTROL, 0.52, attack="none", seed=3003)
    axes = extra06.draw(numbers, cosine_table(study, 0.995), "title").axes
    assert [one.get_title() for one in axes[:4]] == list(ATTACKS.values())
    (band,) = axes[3].patches
    assert band.get_x() == -0.02
    assert band.get_width() == 0.04
    (wide,) = (one for one in of_extra_6(numbers) if one.attack == ATTACKS["none", 0] and one.name == extra06.FIVE)
    drawn = [tuple(line.get_xdata()) for line in axes[3].lines]
    for level in (0.05, 0.05 / 8):
        assert any(pair == pytest.approx(wide.differences.interval(level)) for pair in drawn if len(pair) == 2)
    lines = {line.get_label(): line.get_ydata() for line in axes[4].lines}
    assert set(lines[extra06.RELEASED]) == {0.995}
    assert set(lines[extra06.SPAN]) == {0.5}


@pytest.mark.parametrize("key", ["fa", "fa_default", "fa_printed", "mean_unit", "mean"])
def test_a_cosine_from_the_gram_matrix_is_that_of_the_direction(key: str) -> None:
    G = torch.randn(7, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.2
    G[2] *= 30
    found = make_rule(VARIANTS[key].rule, f=1, **dict(VARIANTS[key].options)).aggregate(G)
    unit = (G / G.norm(dim=1, keepdim=True)).mean(dim=0)
    expected = float(torch.nn.functional.cosine_similarity(found.direction, unit, dim=0))
    weights = found.decision.weights
    assert weights is not None
    assert extra06.cosine_with_unit_mean(measure(G)[0], weights) == pytest.approx(expected, rel=1e-9)
    assert np.isnan(extra06.cosine_with_unit_mean(measure(G)[0], np.zeros(7)))


def test_extra_6_measures_every_iteration_of_one_run_for_each_attack(tmp_path: Path) -> None:
    study = extra06.study("smoke", tmp_path, iterations=3, dataset="mnist-mini")
    cosines = extra06.cosines(study)
    groups = cosines.groupby(["attack", "f", "formulation"])["iteration"].apply(list)
    assert len(groups) == len(ATTACKS) * len(extra06.LOOKS)
    assert all(iterations == [1, 2, 3] for iterations in groups)
    assert cosines["cosine"].between(-1, 1 + 1e-12).all()


# Extra 7


def test_extra_7_sets_the_rate_and_the_length_of_a_step() -> None:
    configs = {cell.case.label: cell.config for cell in extra07.study("paper").cells}
    rates = {label: config.lr for label, config in configs.items()}
    assert rates == dict.fromkeys(extra07.LOOKS, 0.2) | {
        extra07.KRUM_SLOWER: 0.05,
        extra07.FA_SLOWER: 0.05,
        extra07.DEFAULT_SLOWER: 0.05,
        extra07.UNIT: 0.375,
    }
    assert {config.seed for config in configs.values()} == {2021}
    assert [label for label, config in configs.items() if config.byzantine == 0] == [extra07.CEILING]
    assert {configs[extra07.FA], configs[extra07.DEFAULT]} < set(figure_module("fig04").study("paper").configs)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({}, [NOT, NOT]),
        ({"fa": 0.1}, [HOLDS, NOT]),
        ({"median": 0.1, "phocas": 0.03}, [NOT, IN_PART]),
        (dict.fromkeys(extra12.ORDER_STATISTICS, 0.1), [NOT, HOLDS]),
        ({"fa": -0.1}, [NOT, NOT]),
    ],
)
def test_extra_12_judges_what_confined_vectors_cost(losses: dict[str, float], expected: list[str]) -> None:
    study = extra12.study("quick")
    numbers = table(study, 0.8)
    for rule, loss in losses.items():
        confined = (numbers["variant"] == rule) & (numbers["attack"] == extra12.REACHED) & (numbers["iteration"] == 2)
        numbers.loc[confined, "test_accuracy"] -= loss + 0.001 * (numbers["seed"] - 2022)
    assert verdicts(extra12.claims(numbers, 0.1, 0.02)) == expected
    (panel,) = extra12.draw(numbers, "title").axes
    assert len(panel.get_yticks()) == len(extra12.RULES)
    assert verdicts(extra12.claims(table(study, 0.1), 0.1)) == [UNTESTABLE] * 2


def test_extra_12_names_the_runs_that_are_missing() -> None:
    numbers = table(extra12.study("smoke"), 0.8)
    claims = extra12.claims(numbers[~numbers["variant"].isin(["fa", "median"])], 0.1)
    assert verdicts(claims) == [MISSING] * 2
    for claim, rule in zip(claims, ("fa", "median"), strict=True):
        assert VARIANTS[rule].label in claim.measured.rpartition(":")[2]


# Extra 13


def test_extra_13_is_the_test_that_the_rules_of_judgement_specify() -> None:
    study = extra13.study("cpu")
    rates = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)
    numbers = table(study, 0.5)
    numbers.loc[(numbers["label"] == extra13.KRUM) & (numbers["lr"] == 0.1), "test_accuracy"] = 0.9
    whole = extra13.tested(study, numbers)
    configs = [cell.config for cell in whole.cells]
    assert len(set(configs)) == len(configs) == 5 * 4 * (len(rates) + 20)
    choice, test = configs[: len(study.cells)], configs[len(study.cells) :]
    assert {(config.lr, config.seed, config.validation) for config in choice} == {(rate, 2901, 0.2) for rate in rates}
    assert {(config.seed, config.validation) for config in test} == {(seed, 0.0) for seed in range(3001, 3021)}
    assert {config.lr for config in test if config.rule == "multi_krum"} == {0.1}
    assert {config.lr for config in test if config.rule != "multi_krum"} == {0.0125}  # of equals the lowest
    of_six = extra06.study("cpu").cells[0].config
    same = ("dataset", "model", "workers", "batch", "iterations", "momentum", "sampling", "direction_norm")
    assert {tuple(getattr(config, name) for name in same) for config in configs} == {
        tuple(getattr(of_six, name) for name in same)
    }
    assert {(config.attack, config.byzantine) for config in test} == set(ATTACKS)
    assert extra13.TEST_LEVEL == 0.05 / 16


def test_extra_13_chooses_a_rate_over_all_attacks_and_judges_on_test_images() -> None:
    study = extra13.study("quick")
    numbers = table(study, 0.5)
    last = numbers["iteration"] == 2
    numbers.loc[last & (numbers["lr"] == 0.2) & (numbers["attack"] == "none"), "test_accuracy"] = 0.6
    numbers.loc[last & (numbers["lr"] == 0.1) & (numbers["attack"] == "random"), "test_accuracy"] = 0.58  # two of four
    assert best_rates(numbers, "label") == dict.fromkeys(extra13.ARMS, 0.1)
    whole = extra13.tested(study, numbers)
    reached = {extra13.CHOICE_FA: 0.6, extra13.MIXING_FA: 0.505, extra13.KRUM: 0.45}
    numbers = table(whole, reached, seeds_differ=True)
    numbers.loc[numbers["validation"] > 0, "test_accuracy"] = 0.1  # judges nothing
    lower(numbers, extra13.MIXING_FA, 0.4, attack="none", validation=0)
    judged = extra13.claims(numbers, 0.1)
    assert verdicts(judged) == [HOLDS, OPEN, HOLDS, IN_PART]
    axes = extra13.draw(numbers, "title").axes
    assert [one.get_title() for one in axes[:4]] == list(ATTACKS.values())
    assert {label.get_text() for label in axes[4].get_yticklabels()} == {f"{arm}, 0.0125" for arm in extra13.ARMS}
    assert verdicts(extra13.claims(table(whole, 0.1), 0.1)) == [UNTESTABLE] * 4


@pytest.mark.parametrize(
    ("slower", "unit", "fa_slower", "margin", "expected"),
    [
        (0.79, 0.7, 0.1, 0.02, [HOLDS, HOLDS, NOT]),
        (0.9, 0.7, 0.93, 0.02, [HOLDS, HOLDS, HOLDS]),
        (0.7, 0.79, 0.1, 0.02, [NOT, NOT, HOLDS]),
        (0.77, 0.77, 0.1, 0.04, [HOLDS, NOT, NOT]),  # within the margin
        (0.1, 0.9, 0.1, 0.02, [NOT, NOT, HOLDS]),
    ],
)
def test_extra_7_tells_the_rate_from_the_subspace(
    slower: float, unit: float, fa_slower: float, margin: float, expected: list[str]
) -> None:
    study = extra07.study("smoke")
    reached = {extra07.FA: 0.8, extra07.FA_SLOWER: fa_slower, extra07.KRUM_SLOWER: slower, extra07.UNIT: unit}
    numbers = table(study, reached)
    claims = extra07.claims(numbers, 0.1, margin)
    assert verdicts(claims) == expected
    assert {0.8, slower} <= set(texts.numbers(claims[0].measured))
    (panel,) = extra07.draw(numbers, "title").axes
    assert [line.get_label() for line in panel.lines] == list(dict.fromkeys(numbers["label"]))
    assert verdicts(extra07.claims(numbers[numbers["label"] != extra07.FA_SLOWER], 0.1, margin)) == expected[:2]
    assert verdicts(extra07.claims(table(study, 0.1), 0.1)) == [UNTESTABLE] * 3


# Extra 8


def test_extra_8_gives_batch_sizes_by_rank_that_differ_by_16_and_weights_by_them() -> None:
    for profile in PROFILES:
        for cell in extra08.study(profile).cells:
            assert max(cell.config.batches) == 16 * min(cell.config.batches)
            weights = cell.config.options.get("worker_weights")
            power = extra08.POWERS.get(cell.case.label, 1.0)
            if weights is not None:
                np.testing.assert_allclose(weights[1] / weights[-1], 16.0**power)
            shares = np.array(cell.config.batches[: cell.config.byzantine]) > min(cell.config.batches)
            assert shares.sum() in ((0,) if cell.config.byzantine == 0 else (1, 3))
    control = next(cell for cell in extra08.study("quick").cells if cell.case.label == extra08.CONTROL)
    G, c = (
        torch.randn(15, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        np.array(control.config.options["worker_weights"]),
    )
    unit = (G / G.norm(dim=1, keepdim=True)).numpy()
    d = make_rule(control.config.rule, f=3, **control.config.options)(G)
    np.testing.assert_allclose(d, c @ unit / 15, atol=1e-10)


def test_extra_8_draws_its_panels_and_its_verdicts_go_either_way() -> None:
    study = extra08.study("quick")
    weighted = dict.fromkeys(extra08.POWERS, 0.8)
    assert verdicts(extra08.claims(table(study, weighted | {extra08.FA: 0.7}, True), 0.1)) == [HOLDS, HOLDS]
    assert verdicts(extra08.claims(table(study, weighted | {extra08.FA: 0.8, "Median": 0.9}, True), 0.1)) == [NOT, NOT]
    assert verdicts(extra08.claims(table(study, 0.1), 0.1)) == [UNTESTABLE] * 2
    figure = extra08.draw(table(study, 0.5), "title")
    assert [axes.get_title() for axes in figure.axes] == [panel.heading for panel in extra08.PANELS]


# Extra 9


def test_extra_9_compares_each_option_with_the_default_and_its_verdicts_go_either_way() -> None:
    study = extra09.study("quick")
    assert {cell.case.label for cell in study.cells} == set(extra09.ARMS)
    better = {"pairs, lambda = 15": 0.8, "random start": 0.5}
    assert verdicts(extra09.claims(table(study, better, True), 0.1)) == [HOLDS, NOT]
    assert verdicts(extra09.claims(table(study, 0.1), 0.1)) == [UNTESTABLE] * 2
    (panel,) = extra09.draw(table(study, better), "title").axes
    assert [text.get_text() for text in panel.get_yticklabels()] == list(extra09.ARMS)[::-1]


# Extra 10


def test_extra_10_varies_one_key_of_each_recipe_and_compares_at_the_highest_level() -> None:
    study = extra10.study("quick")
    numbers = extra10.with_levels(table(study, {"FA": 0.8}))
    for scheme, (_, key, levels) in extra10.LEVELS.items():
        assert sorted(set(numbers[numbers["scheme"] == scheme]["level"])) == sorted(levels)
        assert all(dict(extra10.recipe(scheme, level))[key] == (level,) for level in levels)
    assert verdicts(extra10.claims(numbers, 0.1)) == [HOLDS]
    assert verdicts(extra10.claims(extra10.with_levels(table(study, {"Mean": 0.8})), 0.1)) == [NOT]
    panels = extra10.draw(numbers, "title").axes
    assert [len(panel.lines) for panel in panels] == [len(extra10.RULES)] * len(extra10.LEVELS)


# Extra 11


def test_extra_11_judges_the_projection_and_the_sparsity() -> None:
    study = extra11.study("quick")
    shares = pd.DataFrame({"seed": [2021, 2022], "iteration": [1, 1], "share": [0.7, 0.9]})
    projected = {f"{extra11.PROJECTION}{VARIANTS[key].label}": 0.8 for key in extra11.OTHERS}
    norms = {f"{extra11.NORMS}{VARIANTS[key].label}": 0.8 for key in extra11.OTHERS}
    numbers = table(study, projected | norms, True)
    assert verdicts(extra11.claims(numbers, shares, 0.1)) == [HOLDS, HOLDS, NOT]
    one = {f"{extra11.PROJECTION}Median": 0.8}
    claims = extra11.claims(table(study, one, True), shares.assign(share=0.1), 0.1)
    assert verdicts(claims) == [IN_PART, NOT, IN_PART]
    courses = pd.DataFrame({"seed": [1] * 80 + [2] * 80, "iteration": [*range(1, 81)] * 2, "share": [0.0, 0.5] * 80})
    right = extra11.draw(numbers, courses, "title").axes[1]
    for line in right.lines[:2]:
        assert line.get_xdata().tolist() == list(range(2, 81, 2))
        assert set(line.get_ydata()) == {0.25}
    assert right.lines[2].get_ydata() == [extra11.SPARSE] * 2
    assert len(right.get_legend().get_texts()) == 2


def test_extra_11_judges_finished_runs() -> None:
    shares = pd.DataFrame({"seed": [2021], "iteration": [1], "share": [0.7]})

    def judge(numbers: pd.DataFrame, rows: pd.DataFrame = shares) -> dict[str, str]:
        return {claim.number: claim.verdict for claim in extra11.claims(numbers, rows, 0.1)}

    study = extra11.study("quick")
    projected = {f"{extra11.PROJECTION}{VARIANTS[key].label}": 0.8 for key in extra11.OTHERS}
    numbers = table(study, projected, True)
    assert judge(numbers) == dict.fromkeys(["C17", "C18", "E11"], HOLDS)
    no_median = numbers[~numbers["label"].str.contains("Median")]
    assert judge(no_median) == {"C17": MISSING, "C18": HOLDS, "E11": MISSING}
    one_fails = table(study, {label: 0.5 if "Phocas" in label else 0.8 for label in projected}, True)
    assert judge(one_fails[~one_fails["label"].str.contains("Median")])["C17"] == IN_PART  # Median cannot change that
    alone = ~numbers["label"].str.startswith((extra11.NORMS, extra11.PROJECTION))
    assert judge(numbers[alone]) == {"C18": HOLDS}
    assert judge(numbers[alone], shares[:0]) == {}
    assert len(extra11.draw(numbers[alone], shares[:0], "title").axes) == 2


def test_extra_11_counts_small_weights_of_honest_workers(tmp_path: Path) -> None:
    study = extra11.study("smoke", tmp_path, iterations=3)
    study = replace(study, cells=tuple(cell for cell in study.cells if cell.case.label == extra11.FA))
    results = study.run(1, progress=False)
    shares = extra11.small_weights(results)
    assert extra11.small_weights(replace(results, study=replace(study, cells=()))).columns.equals(shares.columns)
    rows = pd.read_csv(results.record(study.cells[0]).folder / "workers.csv")
    for iteration, group in rows.groupby("iteration"):
        sizes = group["weight"].abs().to_numpy()
        expected = np.mean(sizes[extra11.F :] < 0.1 * sizes.max())
        assert shares.set_index("iteration")["share"][iteration] == pytest.approx(expected)


# The notebooks, the report and the supplement


def check_files(folder: Path, name: str) -> None:
    """All files of a figure are there, and its picture is not blank."""
    with Image.open(folder / f"{name}.png") as picture:
        assert np.asarray(picture).std() > 10
    assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert json.loads((folder / f"{name}.json").read_text())["runs"]
    assert len(pd.read_csv(folder / f"{name}.csv"))
    assert len(pd.read_csv(folder / f"{name}.claims.csv"))


def finish_all_but_one(study: Study) -> None:
    """Save a record for every run but the last: all with the numbers of one real run of FA."""
    run = train(next(cell.config for cell in study.cells if cell.case.variant.startswith("fa")), threads=1)
    for config in study.configs[:-1]:
        study.store.save(replace(run, config=config))


QUICK_EXTRAS = ("extra07_rate_or_subspace", "extra11_in_front_of_rules", "extra12_unreached_coordinates")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK_EXTRAS else pytest.mark.long) for name in EXTRAS]
)
def test_an_extra_runs_at_smoke_size_and_the_report_has_its_findings(name: str, tmp_path: Path) -> None:
    finish_all_but_one(figure_module(name).study("smoke", tmp_path, iterations=2))
    run_cells(find([name])[0], profile="smoke", out=str(tmp_path), iterations=2)
    check_files(tmp_path, name)
    claims = pd.read_csv((tmp_path / name).with_suffix(".claims.csv"))
    assert set(claims["verdict"]) == {UNTESTABLE}  # two iterations teach nothing
    (ours,) = (part for part in write(tmp_path).read_text().split("\n## ") if "\n| E" in part)
    rows = [line.split("|")[1].strip() for line in ours.splitlines() if re.match(r"\| [CE]\d", line)]
    number = f"E{int(name[5:7])}"
    assert rows == [number] * int((claims["number"] == number).sum())
    assert set(claims["number"]) - {number} == ({"C17", "C18"} if name == extra11.NAME else set())
    if name == extra04.NAME:
        assert pd.read_csv(tmp_path / f"{name}.detection.csv").shape == (42, 5)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of Tiny ImageNet's shape: 200 classes of 64 x 64 images, two to train on and one to test on each."""
    root, rng = tmp_path / "tiny-imagenet-200", np.random.default_rng(0)
    wnids = [f"n{number:08d}" for number in range(200)]
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for wnid in wnids:
        (root / "train" / wnid / "images").mkdir(parents=True)
        places = [root / "train" / wnid / "images" / f"{wnid}_{k}.JPEG" for k in (0, 1)]
        for place in (*places, root / "val" / "images" / f"val_{wnid}.JPEG"):
            Image.fromarray(rng.integers(256, size=(64, 64, 3), dtype=np.uint8)).save(place)
        lines.append(f"val_{wnid}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    monkeypatch.setenv("FA_TINY_IMAGENET", str(root))
    return root


@pytest.mark.long
def test_the_supplement_runs_on_a_folder_of_the_same_shape(tiny: Path, tmp_path: Path) -> None:
    finish_all_but_one(supp01.study("smoke", tmp_path, iterations=1))
    execute(find(["supp01"])[0], tmp_path, profile="smoke", out=str(tmp_path), iterations=1)
    check_files(tmp_path, "supp01_tiny_imagenet")
    about = json.loads((tmp_path / "supp01_tiny_imagenet.json").read_text())
    assert {(run["dataset"], run["lr"]) for run in about["runs"].values()} == {("tiny-imagenet", 0.1)}
    assert len(about["runs"]) == 36
    claims = pd.read_csv(tmp_path / "supp01_tiny_imagenet.claims.csv")
    assert claims["measured"].str.startswith(DATASETS["tiny-imagenet"]).all()


def test_the_supplement_without_its_folder_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FA_TINY_IMAGENET", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "supp01", "--profile", "smoke", "--out", str(tmp_path)])
    texts.check_refusal(
        ended.value.code, capsys.readouterr().err, r"\btiny-imagenet\b.*\bFA_TINY_IMAGENET\b.*\bwnids\.txt\b"
    )
    assert [path.stem for path in find()] == [path.stem for path in find(["fig"])]  # `make reproduce` leaves it out


def test_the_supplement_is_the_papers_model_at_its_rate() -> None:
    config = supp01.study("paper").cells[0].config
    assert (config.model, config.dataset, config.lr, config.batch) == ("resnet18", "tiny-imagenet", 0.1, 128)
    assert supp01.study("paper").chance == 1 / 200


@pytest.mark.parametrize("module", [extra02, extra13])
def test_a_sweep_does_the_runs_at_the_best_rates_after_those_that_choose_them(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Except on one of several machines, which has a part of the first alone."""
    swept: list[set[float]] = []
    monkeypatch.setattr(Study, "sweep", lambda self, *_, **__: swept.append(validation(self)) or [])
    monkeypatch.setattr(Results, "table", lambda self: table(self.study, 0.5))
    words = ["sweep", module.NAME, "--profile", "smoke", "--out", str(tmp_path)]
    for more, last in (["--shard", "1/2"], {0.2}), ([], {0.2, 0.0}):
        assert CliRunner().invoke(cli, [*words, *more], catch_exceptions=False).exit_code == 0
        assert swept[-1] == last


def validation(study: Study) -> set[float]:
    """The shares of validation images in a study's runs."""
    return {config.validation for config in study.configs}


def test_extras_are_swept_by_name(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["sweep", "extra05", "--profile", "smoke", "--out", str(tmp_path), "--why"])
    assert done.exit_code == 0
    configs = extra05.study("smoke").configs
    why = RunStore(tmp_path).explain(configs[0])  # alike for all of an empty store
    assert done.output.count(why) == len(configs)
