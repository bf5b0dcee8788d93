"""Figures: their grids, what they draw from a table, and verdicts that follow from the numbers."""

import hashlib
import json
import math
import re
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fa.data import load
from fa.experiments import FIGURES, figure_module
from fa.experiments.figures import fig02, fig04, fig05, fig06bcd, fig08, fig09
from fa.experiments.reporting import artifacts, style
from fa.experiments.reporting.artifacts import provenance, save
from fa.experiments.reporting.claims import HOLDS, IN_PART, MISSING, NOT, OPEN, UNTESTABLE, Lead, lead
from fa.experiments.reporting.curves import finish
from fa.experiments.runs.profiles import PROFILES, for_profile
from fa.experiments.runs.results import AUGMENTED, Results, final_accuracies, last_points, summary
from fa.experiments.runs.store import RunStore
from fa.experiments.runs.study import Case, Study, make_study
from fa.experiments.runs.user_rules import attack_heading
from fa.experiments.runs.variants import PAPER_RULES, PAPER_RULES_AND_MEAN, VARIANTS
from fa.rules import make_rule
from fa.training import CurvePoint, Run, TrainConfig
from fa.utils.validation import TooFewWorkersError
from tests import texts


def table(final: dict[tuple[str, int], float], seeds: tuple[int, ...] = (1, 2)) -> pd.DataFrame:
    """Curves that rise from 0.1 to a final accuracy, by (variant, f)."""
    rows = []
    for (variant, f), accuracy in final.items():
        for seed in seeds:
            for iteration in (10, 20):
                point = {"iteration": iteration, "epoch": iteration // 10, "seconds": 1.0, "train_loss": 1.0}
                reached = accuracy if iteration == 20 else 0.1
                about = {"variant": variant, "label": VARIANTS[variant].label, "f": f, "seed": seed}
                rows.append(about | point | {"test_accuracy": reached})
    return pd.DataFrame(rows)


def fig04_table(fa: float, others: float, trimmed: float) -> pd.DataFrame:
    final = {(key, f): others for key in VARIANTS for f in fig04.F_VALUES}
    return table(final | {("fa", f): fa for f in fig04.F_VALUES} | {("trimmed_mean", 1): trimmed})


def verdicts(claims) -> list[str]:
    return [claim.verdict for claim in claims]


def test_every_variant_is_a_rule_and_looks_like_no_other() -> None:
    for variant in VARIANTS.values():
        make_rule(variant.rule, f=0, **dict(variant.options))
    looks = {(look.color, look.marker, look.dashes) for look in style.LOOKS.values()}
    assert len(looks) == len(VARIANTS) == len({variant.label for variant in VARIANTS.values()})
    assert len({style.LOOKS[key].color for key in PAPER_RULES}) == 7


THREE_SEEDS = (fig04.NAME, "cpu", 3)  # what has more seeds than its profile


@pytest.mark.parametrize("profile", PROFILES)
def test_all_rules_of_a_figure_get_the_same_settings(profile: str) -> None:
    for name in FIGURES:
        study = figure_module(name).study(profile)
        own = {"rule", "rule_options", "byzantine", "seed"}
        usual = set(PROFILES[profile]["seeds"])
        shared: dict[str, set[str]] = {}
        seeds: dict[tuple[str, int, str, str], set[int]] = {}
        for cell in study.cells:
            case = cell.case
            seeds.setdefault((cell.variant, case.f, str(case.settings), str(case.options)), set()).add(cell.config.seed)
            settings = {key: value for key, value in json.loads(cell.config.to_json()).items() if key not in own}
            shared.setdefault(str(cell.case.settings), set()).add(json.dumps(settings))
        assert {len(settings) for settings in shared.values()} == {1}
        for (_, f, *_), own_seeds in seeds.items():
            assert own_seeds == ({2021, 2022, 2023} if (name, profile, f) == THREE_SEEDS else usual)


def test_the_paper_profile_is_the_papers() -> None:
    two = fig02.study("paper").cells[0].config
    assert (two.iterations, two.batch, two.lr_decay_epochs, two.lr) == (1050, 128, 10, 0.2)
    four = fig04.study("paper").cells[0].config
    assert (four.iterations, four.batch, four.lr_decay_epochs, four.lr) == (1050, 128, 10, 0.2)
    five = {config.batch: config.iterations for config in fig05.study("paper").configs}
    assert five == {64: 1600, 128: 1050, 192: 530}
    six = {config.workers: (config.iterations, config.byzantine) for config in fig06bcd.study("paper").configs}
    assert six == {11: (1080, 2), 13: (915, 2), 15: (1050, 0)}  # the last one is the mean's
    assert {cell.config.byzantine for cell in fig06bcd.study("paper").cells if cell.variant == "fa"} == {2}
    eight = fig08.study("paper")
    assert {config.options["lam"] for config in eight.configs if config.rule == "fa"} == {0, 1, 2, 4, 8, 16, 32, 64}
    assert {(config.workers, config.byzantine, config.iterations) for config in eight.configs} == {(7, 1, 1120)}
    nine = {(config.workers, config.byzantine, config.iterations) for config in fig09.study("paper").configs}
    assert nine == {(15, 0, 625), (15, 3, 625), (30, 6, 313), (60, 12, 157), (60, 14, 157)}
    assert {(config.attack, bool(config.augmentation)) for config in fig09.study("paper").configs} == {("none", True)}
    assert {(config.dataset, config.model) for config in fig09.study("paper").configs} == {("mnist", "convnet")}
    for config in (two, four):
        assert (config.workers, config.dataset, config.model) == (15, "cifar10", "resnet18")
        assert (config.momentum, config.weight_decay, config.lr_decay, config.sampling) == (
            0.9,
            5e-4,
            0.2,
            "sequential",
        )
        assert (config.attack, config.layers) == ("random_shared", "fast")
    assert {cell.config.seed for cell in fig04.study("paper").cells} == {2021, 2022, 2023}


def test_figure_4_has_seven_rules_the_mean_and_the_readings_for_each_f() -> None:
    cells = {(cell.variant, cell.config.byzantine) for cell in fig04.study("quick").cells}
    assert cells == {(key, f) for key in VARIANTS for f in (1, 2, 3)}
    options = {cell.variant: cell.config.options for cell in fig04.study("quick").cells if cell.config.rule == "fa"}
    assert options == {"fa": {"formulation": "released"}, "fa_printed": {"preaggregators": ()}, "fa_default": {}}


def test_where_a_rule_refuses_there_is_a_gap_with_its_reason() -> None:
    study = make_study("figure", "smoke", [Case("bulyan", 3), Case("mean", 3)], workers=11)
    assert [cell.variant for cell in study.cells] == ["mean"]
    ((case, reason),) = study.skipped.items()
    assert case == str(Case("bulyan", 3))
    with pytest.raises(TooFewWorkersError, match=re.escape(reason)):
        make_rule("bulyan", f=3).check_workers(11)
    requirement, *_ = reason.partition(", got")
    assert texts.numbers(study.title().splitlines()[-1]) == texts.numbers(requirement)


@pytest.mark.parametrize("few_first", [True, False])
def test_each_case_of_one_label_is_checked_for_itself(few_first: bool) -> None:
    """Bulyan needs 15 workers for f = 3; the case with 11 is skipped, and the one with 15 is not."""
    cases = [Case("bulyan", 3, {"workers": workers}, label_override="Bulyan") for workers in (11, 15)]
    study = make_study("figure", "smoke", cases if few_first else cases[::-1])
    assert [cell.config.workers for cell in study.cells] == [15]
    assert set(study.skipped) == {str(cases[0])}


@pytest.mark.parametrize("invalid_first", [True, False])
def test_an_option_that_does_not_fit_is_an_error_whichever_case_of_its_label_has_it(invalid_first: bool) -> None:
    cases = [Case("fa_default", 3, {}, {"m": m}, label_override="FA") for m in (99, 4)]
    with pytest.raises(ValueError, match=r"^m must be .*\b99\b"):
        make_study("figure", "smoke", cases if invalid_first else cases[::-1])


def test_cases_of_one_label_are_not_counted_as_its_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three cases with two seeds have two seeds, in the provenance and among the unfinished runs."""
    cases = [Case("mean", 1, {"attack": attack}, label_override="Mean") for attack in ("random", "zero", "nan")]
    study = make_study("figure", "smoke", cases, seeds=[5, 6])
    assert provenance(Results(study, {}, 1.0, ()))["seeds"] == 2
    monkeypatch.setattr(RunStore, "find", lambda store, config: None if config.seed == 5 else config)
    (unfinished,) = study.finished().unfinished
    assert texts.numbers(unfinished) == [5]


def test_given_settings_replace_the_profiles() -> None:
    study = fig02.study("quick", seeds=[5, 6], iterations=7)
    assert {cell.config.seed for cell in study.cells} == {5, 6}
    assert {cell.config.iterations for cell in study.cells} == {7}
    assert texts.numbers(study.title())[-3:] == [7, 5, 6]
    with pytest.raises(ValueError, match=r"^profile must be .*'quik'.*'quick'"):
        fig02.study("quik")


def test_a_setting_that_a_figure_varies_is_not_replaced() -> None:
    with pytest.raises(ValueError, match=r"^batch must be .*fig05.*\b8\b"):
        fig05.study("quick", batch=8)
    with pytest.raises(ValueError, match=r"^workers must be .*fig06bcd.*\b10\b"):
        fig06bcd.study("quick", workers=10)


def test_a_notebook_names_the_profiles_that_it_has() -> None:
    assert for_profile({"smoke": 1, "quick": 2}, "quick") == 2
    with pytest.raises(ValueError, match=r"^profile must be .*\bsmoke\b.*\bquick\b.*'cpu'"):
        for_profile({"smoke": 1, "quick": 2}, "cpu")


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ({"seeds": []}, r"^seeds must be .*\[\]"),
        ({"seeds": [-1]}, r"^seed must be .*-1\b"),
        ({"learning_rate": 0.1}, r"\bsetting must be .*'learning_rate'"),
        ({"itertions": None}, r"\bsetting must be .*'itertions'.*'iterations'"),
        ({"rule": "fa"}, r"\bsetting must be .*'rule'"),
    ],
)
def test_a_setting_that_is_none_is_named(given: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        fig04.study("smoke", **given)


@pytest.mark.parametrize("name", FIGURES)
def test_other_settings_than_the_profiles_do_not_write_over_its_figures(name: str, tmp_path: Path) -> None:
    study = figure_module(name).study
    own_seeds = {} if THREE_SEEDS[:2] == (name, "cpu") else {"seeds": list(PROFILES["cpu"]["seeds"])}
    assert study("cpu").folder.name == "cpu"
    assert study("cpu", lr=PROFILES["cpu"]["lr"], device="cuda", **own_seeds).folder.name == "cpu"
    assert study("cpu", seeds=[1]).folder.name == "cpu-custom"
    assert study("cpu", tmp_path, seeds=[1]).folder == tmp_path


@pytest.mark.parametrize("profile", PROFILES)
def test_every_other_setting_makes_the_figures_custom(profile: str) -> None:
    assert fig02.study(profile).folder.name == profile
    for given in ({"lr": 0.3}, {"iterations": 7}, {"seeds": [1]}, {"dataset": "fashion-mnist"}, {"workers": 21}):
        assert fig02.study(profile, **given).folder.name == f"{profile}-custom"


def test_chance_is_that_of_the_data_set() -> None:
    assert fig02.study("smoke").chance == 0.1
    assert fig02.study("smoke", dataset="tiny-imagenet").chance == 1 / 200
    numbers = table({("mean", f): accuracy for f, accuracy in enumerate((0.2, 0.08, 0.01, 0.01))})
    assert verdicts(fig02.claims(numbers, 0.1)) == [UNTESTABLE]
    assert verdicts(fig02.claims(numbers, 0.005)) == [HOLDS]


def test_a_summary_is_over_the_seeds_of_the_last_iteration() -> None:
    numbers = table({("median", 1): 0.5, ("fa", 1): 0.9, ("fa", 2): 0.8})
    last = (numbers["iteration"] == 20) & (numbers["label"] == "FA") & (numbers["f"] == 1) & (numbers["seed"] == 2)
    numbers.loc[last, "test_accuracy"] = 0.7
    final = summary(numbers)
    assert list(final.index) == [("Median", 1), ("FA", 1), ("FA", 2)]  # as they came
    assert final.loc["FA", 1].to_dict() == pytest.approx({"mean": 0.8, "min": 0.7, "max": 0.9})


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        ((0.9, 0.1, 0.1, 0.1), HOLDS),
        ((0.9, 0.44, 0.1, 0.1), HOLDS),  # half of the accuracy is lost
        ((0.9, 0.46, 0.1, 0.1), IN_PART),
        ((0.9, 0.9, 0.8, 0.8), NOT),
        ((0.1, 0.1, 0.1, 0.1), UNTESTABLE),
    ],
)
def test_the_verdict_on_the_mean(accuracy: tuple[float, ...], expected: str) -> None:
    claims = fig02.claims(table({("mean", f): accuracy[f] for f in range(4)}), 0.1)
    assert verdicts(claims) == [expected]
    assert set(accuracy) <= set(texts.numbers(claims[0].measured))


def test_the_mean_is_judged_once_every_f_is_finished() -> None:
    (claim,) = fig02.claims(table({("mean", f): 0.9 if f == 0 else 0.1 for f in (0, 1, 3)}), 0.1)
    assert claim.verdict == MISSING
    assert 0.9 in texts.numbers(claim.measured)


def with_another_seed(numbers: pd.DataFrame, chosen: pd.Series, accuracy: float) -> pd.DataFrame:
    """Add a run with a seed that no other run has."""
    more = numbers[chosen].assign(seed=numbers["seed"].max() + 1, test_accuracy=accuracy)
    return pd.concat([numbers, more], ignore_index=True)


def test_a_seed_that_only_one_case_has_changes_no_verdict() -> None:
    mean = table({("mean", f): 0.9 if f == 0 else 0.1 for f in range(4)})
    assert verdicts(fig02.claims(with_another_seed(mean, mean["f"] == 0, 0.1), 0.1)) == [HOLDS]
    more = with_ceiling((0.7, 0.75, 0.9))
    assert verdicts(fig06bcd.claims(more, 0.1)) == [HOLDS, HOLDS]
    for chosen in ((more["workers"] == 11) & (more["variant"] == "fa"), more["f"] == 0, more["variant"] == "median"):
        assert verdicts(fig06bcd.claims(with_another_seed(more, chosen, 0.1), 0.1)) == [HOLDS, HOLDS]
    lambdas, _ = lambda_tables({0.0: 0.7, 8.0: 0.7, 16.0: 0.5}, {})
    again = with_another_seed(lambdas, lambdas["lam"] == 0, 0.1)
    assert verdicts(fig08.claims(again, None, 0.1)) == [MISSING]
    parts = [table({("fa", f): 0.9}).assign(workers=p) for p, f in fig09.CROWDS]
    scaling = pd.concat([*parts, table({("mean", 0): 0.9}).assign(workers=15)], ignore_index=True)
    scaling.insert(3, "workers", scaling.pop("workers"))
    rows = pd.DataFrame([{"workers": 15, "n": 10, "rule": rule, "milliseconds": 1.5} for rule in fig09.RULES])
    again = with_another_seed(scaling, scaling["f"] == 0, 0.1)
    assert verdicts(fig09.claims(again, rows, 0.1)) == [HOLDS]


def test_verdicts_on_the_rules_can_go_either_way() -> None:
    assert verdicts(fig04.claims(fig04_table(0.9, 0.5, 0.1), 0.1)) == [HOLDS] * 3
    assert verdicts(fig04.claims(fig04_table(0.9, 0.85, 0.85), 0.1)) == [HOLDS, NOT, NOT]
    assert verdicts(fig04.claims(fig04_table(0.5, 0.9, 0.1), 0.1)) == [NOT, HOLDS, NOT]
    assert verdicts(fig04.claims(fig04_table(0.1, 0.12, 0.1), 0.1)) == [UNTESTABLE] * 3
    one = fig04_table(0.9, 0.5, 0.1)
    one.loc[(one["variant"] == "median") & (one["f"] == 2) & (one["iteration"] == 20), "test_accuracy"] = 0.95
    claims = fig04.claims(one, 0.1)
    assert verdicts(claims) == [IN_PART, HOLDS, IN_PART]
    assert {0.9, 0.95} <= set(texts.numbers(claims[0].measured))
    assert VARIANTS["median"].label in claims[0].measured


def test_a_lead_over_some_rules_says_nothing_of_the_others() -> None:
    def of_two(fa: float, faulty: tuple[int, ...] = fig04.F_VALUES) -> list[str]:
        numbers = fig04_table(fa, 0.8, 0.1)
        chosen = numbers[numbers["f"].isin(faulty) & numbers["variant"].isin(["fa", "multi_krum"])]
        assert len(fig04.draw(chosen, "title").axes) == len(faulty)
        return verdicts(fig04.claims(chosen, 0.1))

    assert of_two(0.96) == [MISSING] * 2  # another rule could be better
    assert of_two(0.9) == [MISSING, NOT]  # and a larger lead is impossible
    assert of_two(0.7) == [NOT] * 2
    assert of_two(0.7, (3,)) == [MISSING] * 2  # it may hold at other f
    study = fig04.study("paper", seeds=[2021], variants=["fa", "multi_krum"], byzantine=[3])
    assert [(cell.variant, cell.case.f) for cell in study.cells] == [("fa", 3), ("multi_krum", 3)]
    assert study.folder.name == "paper-custom"
    assert set(study.configs) < set(fig04.study("paper").configs)
    with pytest.raises(ValueError, match=r"\bvariant must be .*'krum'"):
        fig04.study("quick", variants=["krum"])
    with pytest.raises(ValueError, match=r"^variants must be .*'fa'"):
        fig04.study("quick", variants="fa")
    with pytest.raises(ValueError, match=r" must be .*\b1\b.*\b2\b.*\b3\b.*\b4\b"):
        fig04.study("quick", byzantine=[4])


def test_a_lead_over_seeds_is_tested_and_one_seed_tells_of_no_test() -> None:
    ours, theirs = [0.80, 0.83, 0.85], [0.78, 0.80, 0.84]
    its = Lead("f = 1", ours, "median", theirs)
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    t = math.sqrt(3) * statistics.mean(differences) / statistics.stdev(differences)
    in_closed_form = 0.5 - t / (2 * math.sqrt(2 + t * t))  # Student's t of two degrees
    assert its.p_value == pytest.approx(in_closed_form)
    assert its.difference == pytest.approx(0.02)
    assert its.better()
    assert its.case in its.difference_text
    assert texts.numbers(its.difference_text)[1:] == [0.02, float(f"{its.p_value:.2g}")]
    assert not Lead("", [0.9, 0.7, 0.8], "median", [0.7, 0.75, 0.75]).better()  # ahead by .067, and not in every seed
    assert not Lead("", theirs, "median", ours).better()
    alone = Lead("f = 1", [0.8], "median", [0.7])
    assert alone.p_value is None
    assert alone.better()
    assert not alone.better(0.15)
    assert texts.numbers(alone.difference_text)[1:] == [0.1]  # and no p
    assert Lead("", [0.8, 0.9], "median", [0.7, 0.8]).better()  # equal differences: no spread to divide by


@pytest.mark.parametrize(
    ("fa", "others", "margin", "expected"),
    [
        (0.83, 0.8, 0.02, [HOLDS, NOT]),
        (0.83, 0.8, 0.04, [NOT, NOT]),  # closer than the margin is equal
        (0.921, 0.8, 0.02, [HOLDS, HOLDS]),  # over 15% of the other rule's accuracy
        (0.919, 0.8, 0.02, [HOLDS, NOT]),
        (0.47, 0.4, 0.1, [NOT, NOT]),  # 15%, and within the margin
    ],
)
def test_a_lead_exceeds_the_margin(fa: float, others: float, margin: float, expected: list[str]) -> None:
    three, _, four = fig04.claims(fig04_table(fa, others, 0.1), 0.1, margin)
    assert [three.verdict, four.verdict] == expected


def with_seeds(numbers: pd.DataFrame, fa: dict[int, float]) -> pd.DataFrame:
    """Return the table with several seeds, and FA's accuracy at the end in each."""
    parts = []
    for seed, accuracy in fa.items():
        part = numbers.assign(seed=seed)
        part.loc[(part["variant"] == "fa") & (part["iteration"] == part["iteration"].max()), "test_accuracy"] = accuracy
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def test_a_lead_that_fails_the_test_over_seeds_is_not_established() -> None:
    scattered, tight = {1: 0.95, 2: 0.5, 3: 0.95}, {1: 0.79, 2: 0.8, 3: 0.81}
    numbers = fig04_table(0.9, 0.6, 0.1)
    assert verdicts(fig04.claims(with_seeds(numbers, scattered), 0.1)) == [OPEN, HOLDS, OPEN]
    assert verdicts(fig04.claims(with_seeds(numbers, tight), 0.1)) == [HOLDS] * 3
    few = numbers[numbers["variant"].isin(["fa", "multi_krum"])]
    assert verdicts(fig04.claims(with_seeds(few, scattered), 0.1)) == [MISSING] * 2
    sizes = panels_table("batch", (16, 32, 64), others(0.6, 0.6, 0.6) | {"fa": (0.6, 0.7, 0.7)})
    assert fig05.claims(with_seeds(sizes, scattered), 0.1, profile="quick")[0].verdict == OPEN
    assert fig05.claims(with_seeds(sizes, tight), 0.1, profile="quick")[0].verdict == HOLDS


def test_the_seeds_of_controls_do_not_matter() -> None:
    numbers = with_seeds(fig04_table(0.9, 0.6, 0.1), {1: 0.95, 2: 0.5, 3: 0.95})
    control = numbers[(numbers["variant"] == "mean") & (numbers["seed"] == 1)].assign(variant="mean_unit")
    more = pd.concat([numbers, control], ignore_index=True)
    assert fig04.claims(more, 0.1) == fig04.claims(numbers, 0.1)


def test_runs_without_a_common_seed_are_missing() -> None:
    numbers = fig04_table(0.9, 0.6, 0.1)
    numbers = numbers[numbers["variant"].isin(["fa", "multi_krum", "trimmed_mean"])]
    numbers.loc[numbers["variant"] != "fa", "seed"] += 1
    assert verdicts(fig04.claims(numbers, 0.1)) == [MISSING, HOLDS, MISSING]


def test_the_mean_is_among_the_other_rules_too() -> None:
    numbers = fig04_table(0.9, 0.5, 0.1)
    numbers.loc[(numbers["variant"] == "mean") & (numbers["iteration"] == 20), "test_accuracy"] = 0.95
    assert verdicts(fig04.claims(numbers, 0.1)) == [NOT, HOLDS, NOT]


@pytest.mark.parametrize(("reached", "expected"), [(0.149, HOLDS), (0.151, NOT)])
def test_catastrophic_is_within_a_twentieth_of_chance(reached: float, expected: str) -> None:
    assert fig04.claims(fig04_table(0.9, 0.5, reached), 0.1)[1].verdict == expected


def test_accuracies_are_paired_by_the_seeds_that_all_variants_have() -> None:
    rows = [("fa", 2021, 0.6), ("fa", 2022, 0.7), ("multi_krum", 2021, 0.5), ("multi_krum", 2023, 0.9)]
    table = pd.DataFrame(
        [{"variant": key, "label": key, "f": 3, "seed": seed, "iteration": 1, "test_accuracy": reached}
         for key, seed, reached in rows]
    )  # fmt: skip
    assert final_accuracies(table, "variant", "f") == {("fa", 3): [0.6], ("multi_krum", 3): [0.5]}
    assert final_accuracies(table, "variant") == {"fa": [0.6], "multi_krum": [0.5]}
    assert final_accuracies(table, "label", paired=False) == {"fa": [0.6, 0.7], "multi_krum": [0.5, 0.9]}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_margin_is_twice_the_noise_that_was_measured(profile: str) -> None:
    table = Path(__file__).parents[1] / "figures" / profile / "noise.csv"
    margin = fig02.study(profile).margin
    if table.is_file():
        accuracy = pd.read_csv(table).groupby("rule")["test_accuracy"]
        assert margin == pytest.approx(max(0.02, 2 * accuracy.var().mean() ** 0.5), abs=5e-4)
    else:
        assert margin >= 0.02


def test_missing_runs_are_named_by_seeds_then_rules_then_places(monkeypatch: pytest.MonkeyPatch) -> None:
    study = fig04.study("paper")
    done = {("fa", 1, 2021), ("fa", 3, 2021), ("fa", 3, 2023), ("bulyan", 3, 2021), ("fa_default", 3, 2021)}
    found = {cell.config for cell in study.cells if (cell.variant, cell.case.f, cell.config.seed) in done}
    monkeypatch.setattr(RunStore, "find", lambda store, config: config if config in found else None)
    seed, few, rules, *places = study.finished().unfinished
    assert texts.numbers(seed) == [2022]
    assert texts.numbers(few) == [2023, 3]
    assert VARIANTS["fa"].label in few
    assert {VARIANTS["median"].label, VARIANTS["mean"].label} <= set(rules.split(", "))
    assert VARIANTS["fa"].label not in rules.split(", ")
    assert [texts.numbers(place)[0] for place in places] == [1, 2]
    assert f'"{VARIANTS["fa_default"].label}"' in " ".join(places)  # its name has a comma


@pytest.mark.parametrize(
    ("figure", "done", "places"),
    [
        (fig04, {(key, f) for f in (1, 2, 3) for key in style.LOOKS} - {("median", 1), ("median", 2)}, [[1, 2]]),
        (fig08, {("fa", 0.0), ("fa", 4.0)}, [[], [1, 2, 8, 16, 32, 64]]),  # the other rules are missing everywhere
        (fig06bcd, {("fa", 11), ("fa", 13), ("fa", 15), ("median", 15), ("mean", 15)}, [[], [11, 13]]),
    ],
)
def test_places_where_the_same_runs_are_missing_are_named_together(
    figure: ModuleType, done: set[tuple[str, float]], places: list[list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = figure.study("paper", seeds=[7])
    columns = {fig04: lambda cell: cell.case.f, fig08: lambda cell: cell.config.options.get("lam")}
    value = columns.get(figure, lambda cell: cell.config.workers)
    found = {cell.config for cell in study.cells if (cell.variant, value(cell)) in done}
    monkeypatch.setattr(RunStore, "find", lambda store, config: config if config in found else None)
    assert [texts.numbers(text) for text in study.finished().unfinished] == places


def test_a_legend_has_the_curves_of_every_panel() -> None:
    legend = fig04.draw(table({("fa", 1): 0.5, ("median", 1): 0.5, ("fa", 3): 0.5}), "title").axes[-1].get_legend()
    assert {text.get_text() for text in legend.get_texts()} == {VARIANTS["fa"].label, VARIANTS["median"].label}


def test_fa_and_bulyan_are_the_released_codes_and_the_printed_ones_are_variants() -> None:
    options = {cell.variant: cell.config.options for cell in fig04.study("quick").cells}
    assert options["fa"] == options["bulyan"] == {"formulation": "released"}
    assert options["bulyan_printed"] == {}
    assert {"fa_printed", "bulyan_printed"} <= set(style.FA_VARIANTS) - set(PAPER_RULES)


def test_a_study_of_the_finished_runs_names_those_that_are_missing(tmp_path: Path) -> None:
    study = make_study("fig04", "smoke", [Case("mean", 1), Case("median", 1)], tmp_path, seeds=[5, 6], iterations=1)
    with pytest.raises(ValueError, match=re.escape(str(study.store.root))):
        study.finished()
    one, *_ = study.cells
    replace(study, cells=(one,)).run(progress=False)
    finished = study.finished()
    assert finished.cells == (one,)
    seed, median = finished.unfinished
    assert (texts.numbers(seed), texts.numbers(median)) == ([6], [1])
    assert VARIANTS["median"].label in median
    assert median in " ".join(finished.title().split())
    assert finished.unfinished == replace(study, cells=(one, *study.cells)).finished().unfinished
    replace(study, cells=study.cells[1:]).run(progress=False)
    assert study.finished() == study
    assert not study.title().count("\n")


def test_a_lead_pairs_the_rules_by_seed() -> None:
    rows = table({("fa", 1): 0.8, ("median", 1): 0.7}, seeds=(9,))
    again = rows.assign(seed=7, test_accuracy=rows["test_accuracy"] + 0.1)
    both = pd.concat([rows[rows["variant"] == "fa"], again, rows[rows["variant"] == "median"]])
    found = lead(final_accuracies(both, "variant", "f"), 1, "f")
    assert (found.other, list(found.accuracies), list(found.other_accuracies)) == (
        "median",
        pytest.approx([0.9, 0.8]),
        pytest.approx([0.8, 0.7]),
    )


def results(study: Study, folder: Path) -> Results:
    """Of the study's first two runs, whose records are in the folder, with two seconds of training each."""
    study = replace(study, folder=folder, cells=study.cells[:2])
    for config in study.configs:
        curve = (CurvePoint(config.iterations, 1, 2.0, 1.0, 0.5),)
        study.store.save(
            Run(config=config, curve=curve, workers=(), seconds=2.0, threads=1, checksum=load(config.dataset).checksum)
        )
    return study.run(progress=False)


def test_a_saved_figure_has_its_numbers_and_its_provenance(tmp_path: Path) -> None:
    study = fig02.study("smoke", seeds=[2022])
    numbers = table({(cell.variant, cell.config.byzantine): 0.5 for cell in study.cells})
    kept = results(study, tmp_path)
    digests = []
    for _ in range(2):
        path = save(fig02.draw(numbers, study.title()), numbers, kept, fig02.claims(numbers, study.chance))
        written = sorted(path for path in tmp_path.iterdir() if path.is_file())
        digests.append([hashlib.sha256(p.read_bytes()).hexdigest() for p in written if p.suffix in (".png", ".pdf")])
    assert digests[0] == digests[1]  # the same numbers give the same bytes
    stem = fig02.NAME
    assert path.name == f"{stem}.png"
    names = [f"{stem}.claims.csv", f"{stem}.csv", f"{stem}.json", f"{stem}.pdf", f"{stem}.png"]
    assert [p.name for p in written] == names
    with Image.open(path) as picture:
        assert min(picture.size) > 500
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / f"{stem}.csv"), numbers)
    about = json.loads((tmp_path / f"{stem}.json").read_text())
    assert about["runs"].keys() == {kept.study.store.key(config) for config in kept.study.configs}
    assert about["settings"] == kept.study.title()
    assert about["commit"]
    assert about["seconds_of_training"] == 4
    assert about["command"] is None  # the seed is not the profile's
    for config in about["runs"].values():
        TrainConfig.from_json(json.dumps(config))


def test_a_further_table_of_an_earlier_drawing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "provenance", lambda results: {})
    numbers = table({("mean", 0): 0.5})
    results = Results(fig02.study("smoke", out=tmp_path), {}, 0.0, ())
    (tmp_path / f"{fig02.NAME}_of_another.times.csv").touch()
    for more in ({"times": numbers, "cosines": numbers}, {"times": numbers}):
        save(Figure(), numbers, results, [], **more)
    assert {path.name.partition(".")[2] for path in tmp_path.glob(f"{fig02.NAME}.*.csv")} == {"claims.csv", "times.csv"}
    assert len(list(tmp_path.glob("*_of_another*"))) == 1


def test_a_figure_names_its_commit_and_whether_more_than_figures_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit() -> str:
        return str(provenance(results(study, tmp_path))["commit"])

    study = Study("fig02_mean_tolerance", "smoke", tmp_path, fig02.study("smoke").cells)
    for folder in ("notebooks", "fa", "figures"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text("first")
    monkeypatch.chdir(tmp_path / "notebooks")
    assert commit() == "unknown"
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (tmp_path / "figures" / "file").write_text("second")
    assert commit() == git("rev-parse", "HEAD")
    (tmp_path / "fa" / "file").write_text("changed")
    assert commit() == git("rev-parse", "HEAD") + "+"


def panels_table(column: str, values: tuple[int, ...], final: dict[str, tuple[float, ...]]) -> pd.DataFrame:
    """Of the final accuracies of each variant, one for each value of the column."""
    parts = []
    for i, value in enumerate(values):
        part = table({(variant, 3): accuracies[i] for variant, accuracies in final.items()})
        part.insert(3, column, value)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def others(*final: float) -> dict[str, tuple[float, ...]]:
    return {key: final for key in PAPER_RULES if key != "fa"}


def test_figure_5_and_6_draw_a_panel_for_each_size_with_all_rules() -> None:
    for module, column, symbol in ((fig05, "batch", "B"), (fig06bcd, "workers", "p")):
        panels = module.draw(
            panels_table(column, (8, 16, 32), others(0.5, 0.6, 0.7) | {"fa": (0.9,) * 3}), "title"
        ).axes
        assert [axes.get_title() for axes in panels] == [f"{symbol} = {value}" for value in (8, 16, 32)]
        assert [len(axes.lines) for axes in panels] == [7, 7, 7]
        assert {line.get_label(): line.get_ydata()[-1] for line in panels[1].lines}["Bulyan"] == 0.6


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ((0.8, 0.85, 0.9), [HOLDS, HOLDS]),  # ahead, and more so
        ((0.8, 0.8, 0.8), [HOLDS, NOT]),  # ahead, all alike
        ((0.8, 0.81, 0.82), [HOLDS, NOT]),  # the lead grows by less than the margin
        ((0.8, 0.65, 0.8), [IN_PART, IN_PART]),
        ((0.5, 0.6, 0.6), [NOT, IN_PART]),
        ((0.8, 0.75, 0.705), [IN_PART, NOT]),  # the last lead is too small to count
    ],
)
def test_the_verdict_on_larger_batches(ours: tuple[float, ...], expected: list[str]) -> None:
    claims = fig05.claims(
        panels_table("batch", (16, 32, 64), others(0.7, 0.7, 0.7) | {"fa": ours}), 0.1, profile="quick"
    )
    assert verdicts(claims) == expected
    assert set(ours) <= set(texts.numbers(claims[0].measured))
    assert "20/20/20" in claims[1].measured


@pytest.mark.parametrize("ours", [(0.8, 0.85, 0.9), (0.8, 0.8, 0.8)])
def test_larger_batches_with_other_numbers_of_iterations_are_not_testable(ours: tuple[float, ...]) -> None:
    numbers = panels_table("batch", (16, 32, 64), others(0.7, 0.7, 0.7) | {"fa": ours})
    numbers.loc[numbers["batch"] == 64, "iteration"] //= 2
    claims = fig05.claims(numbers, 0.1, profile="quick")
    assert verdicts(claims) == [HOLDS, UNTESTABLE]
    assert "20/20/10" in claims[1].measured


def test_larger_batches_with_missing_runs_can_fail_and_cannot_hold() -> None:
    def judge(numbers: pd.DataFrame) -> list[str]:
        return verdicts(fig05.claims(numbers, 0.1, profile="quick"))

    ahead, behind = (
        panels_table("batch", (16, 32, 64), others(0.7, 0.7, 0.7) | {"fa": (0.7, ours, ours)}) for ours in (0.9, 0.6)
    )
    assert (judge(ahead), judge(behind)) == ([HOLDS, IN_PART], [NOT, NOT])
    few = ahead["variant"].isin(["fa", "median"])
    assert judge(ahead[few]) == [MISSING, MISSING]  # another rule may be better
    assert judge(behind[few]) == [NOT, MISSING]
    larger = ahead["batch"] > 16
    assert judge(ahead[larger]) == [HOLDS, MISSING]  # the smallest size is not a larger one
    assert judge(behind[larger]) == [NOT, MISSING]
    assert judge(behind[behind["batch"] < 64]) == [MISSING, MISSING]  # the largest size may differ
    low = behind.assign(test_accuracy=0.1)
    assert judge(low) == [UNTESTABLE, UNTESTABLE]
    assert judge(low[few]) == [MISSING, MISSING]  # another rule may learn
    assert judge(ahead[ahead["variant"] == "fa"]) == judge(ahead[ahead["variant"] != "fa"]) == []
    other_lengths = ahead.assign(iteration=ahead["iteration"] * ahead["batch"])
    assert judge(other_lengths[few]) == [MISSING, UNTESTABLE]


def with_ceiling(ours: tuple[float, ...], ceiling: float = 0.7) -> pd.DataFrame:
    """Figure 6b to 6d's table: FA by number of workers, and the mean without Byzantine workers."""
    numbers = panels_table("workers", (11, 13, 15), others(0.7, 0.7, 0.7) | {"fa": ours})
    mean = table({("mean", 0): ceiling}).assign(workers=15, label=fig06bcd.CEILING)
    return pd.concat([numbers, mean[numbers.columns]], ignore_index=True)


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ((0.7, 0.75, 0.9), [HOLDS, HOLDS]),
        ((0.66, 0.66, 0.66), [HOLDS, HOLDS]),  # at most 0.05 below the mean without Byzantine workers
        ((0.66, 0.645, 0.66), [IN_PART, HOLDS]),
        ((0.695, 0.6, 0.695), [IN_PART, IN_PART]),
        ((0.6, 0.5, 0.4), [NOT, NOT]),
    ],
)
def test_the_verdict_on_more_workers(ours: tuple[float, ...], expected: list[str]) -> None:
    claims = fig06bcd.claims(with_ceiling(ours), 0.1)
    assert verdicts(claims) == expected
    assert set(ours) <= set(texts.numbers(claims[1].measured))
    assert "20/20/20" not in claims[1].measured


def test_more_workers_in_longer_runs_are_not_testable() -> None:
    numbers = with_ceiling((0.7, 0.75, 0.9))
    numbers.loc[numbers["workers"] == 15, "iteration"] *= 2
    claim = fig06bcd.claims(numbers, 0.1)[1]
    assert claim.verdict == UNTESTABLE
    assert "20/20/40" in claim.measured


def test_more_workers_are_judged_once_fa_is_finished_at_every_p() -> None:
    numbers = with_ceiling((0.7, 0.75, 0.9))
    fa = numbers["variant"] == "fa"
    alone = fig06bcd.claims(numbers[fa | (numbers["f"] == 0)], 0.1)
    assert verdicts(alone) == [HOLDS, HOLDS]
    assert set(texts.numbers(alone[0].measured)) >= {11, 13, 15, 0.7, 0.75, 0.9}
    assert verdicts(fig06bcd.claims(numbers[~fa | (numbers["workers"] != 13)], 0.1)) == [MISSING, MISSING]
    assert verdicts(fig06bcd.claims(numbers[numbers["f"] > 0], 0.1)) == [MISSING, HOLDS]  # no mean without Byzantine
    assert verdicts(fig06bcd.claims(numbers[numbers["f"] == 0], 0.1)) == [MISSING, MISSING]


def lambda_tables(
    ours: dict[float, float], cosines: dict[str, tuple[float, float]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Figure 8's: FA's final accuracy by lambda, and its cosine with each other rule at lambda 0 and at all others."""
    fa = pd.concat([table({("fa", 1): accuracy}).assign(lam=lam) for lam, accuracy in ours.items()])
    both = pd.concat([fa, table({(key, 1): 0.8 for key in fig08.OTHERS})], ignore_index=True)
    both.insert(3, "lam", both.pop("lam"))
    rows = [
        {"formulation": formulation, "lam": lam, "other": key, "seed": 1, "iteration": i, "cosine": pair[lam > 0]}
        for key, pair in cosines.items()
        for formulation in fig08.FORMULATIONS
        for lam in fig08.LAMBDAS
        for i in range(10)
    ]
    return both, pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("at", "cosines", "expected"),
    [
        ({}, {"multi_krum": (0.5, 0.6), "bulyan": (0.4, 0.5)}, [HOLDS, HOLDS]),
        ({4: 0.701, 8: 0.695}, {"multi_krum": (0.5, 0.6), "bulyan": (0.4, 0.3)}, [HOLDS, IN_PART]),
        ({4: 0.695}, {"multi_krum": (0.5, 0.54), "bulyan": (0.4, 0.3)}, [NOT, NOT]),  # no range of lambda
        ({4: 0.67, 8: 0.67}, {"multi_krum": (0.5, 0.56), "bulyan": (0.4, 0.46)}, [NOT, HOLDS]),  # more than the margin
        ({0: 0.9}, {"multi_krum": (0.5, 0.5), "bulyan": (0.4, 0.4)}, [NOT, NOT]),
    ],
)
def test_the_verdict_on_lambda(
    at: dict[int, float], cosines: dict[str, tuple[float, float]], expected: list[str]
) -> None:
    usual = dict.fromkeys(fig08.LAMBDAS, 0.7 if not at or 0 in at else 0.5) | {0: 0.7}
    numbers, directions = lambda_tables({float(lam): accuracy for lam, accuracy in (usual | at).items()}, cosines)
    claims = fig08.claims(numbers, directions, 0.1)
    assert verdicts(claims) == expected
    assert VARIANTS["multi_krum"].label in claims[0].measured
    assert 0.8 in texts.numbers(claims[0].measured)
    assert verdicts(fig08.claims(numbers, directions[directions["iteration"] < 9], 0.1))[1] == UNTESTABLE
    left, right = fig08.draw(numbers, directions, "title").axes
    assert len(left.lines) == len(fig08.LAMBDAS) + 2
    before, after = cosines["multi_krum"]
    assert list(right.lines[0].get_ydata()) == pytest.approx([before] + [after] * 7)


@pytest.mark.parametrize(
    ("finished", "expected"),
    [
        ({0: 0.7, 4: 0.69, 8: 0.7}, HOLDS),
        ({0: 0.7, 4: 0.69, 16: 0.7}, MISSING),  # no neighbours
        ({0: 0.7, 8: 0.7, 16: 0.5}, MISSING),
        ({0: 0.1, 8: 0.1, 16: 0.1}, MISSING),  # another lambda may learn
        ({}, MISSING),
        ({4: 0.7, 8: 0.7}, MISSING),
        (dict.fromkeys(fig08.LAMBDAS, 0.5) | {0: 0.7}, NOT),
    ],
)
def test_a_range_of_finished_lambda_suffices_and_none_refutes(finished: dict[int, float], expected: str) -> None:
    numbers, _ = lambda_tables({float(lam): accuracy for lam, accuracy in (finished or {0: 0.7}).items()}, {})
    numbers = numbers[numbers["variant"] == "fa"] if finished else numbers[numbers["variant"] != "fa"]
    assert verdicts(fig08.claims(numbers, None, 0.1)) == [expected]
    (axes,) = fig08.draw(numbers, None, "title").axes
    assert len(axes.lines) == (len(finished) or len(fig08.OTHERS))


@pytest.mark.parametrize(
    ("final", "expected"),
    [
        ((0.9,) * 4, HOLDS),
        ((0.86,) * 4, HOLDS),  # at most 0.05 below the mean without Byzantine workers
        ((0.9, 0.9, 0.84, 0.4), IN_PART),
        ((0.84,) * 4, NOT),
        ((0.2,) * 4, NOT),
    ],
)
def test_the_verdict_on_scaling(final: tuple[float, ...], expected: str) -> None:
    parts = [
        table({("fa", f): accuracy}).assign(workers=p) for (p, f), accuracy in zip(fig09.CROWDS, final, strict=True)
    ]
    parts.append(table({("mean", 0): 0.9}).assign(workers=15))
    numbers = pd.concat(parts, ignore_index=True)
    numbers.insert(3, "workers", numbers.pop("workers"))
    rows = [{"workers": p, "n": 10, "rule": rule, "milliseconds": p / 10} for p in (15, 30, 60) for rule in fig09.RULES]
    claims = fig09.claims(numbers, pd.DataFrame(rows), 0.1)
    assert verdicts(claims) == [expected]
    assert {60, 14, *final} <= set(texts.numbers(claims[0].measured))
    assert texts.numbers(claims[0].measured)[-1] == 6.0  # milliseconds, with 60 workers
    left, right = fig09.draw(numbers, pd.DataFrame(rows), "title").axes
    assert [line.get_label() for line in left.lines] == [
        *(f"p = {p}, f = {f}" for p, f in fig09.CROWDS),
        fig09.CEILING,
    ]
    assert [list(line.get_ydata()) for line in right.lines] == [[1.5, 3, 6], [1.5, 3, 6]]
    assert left.get_ylim()[0] == 0


def test_lines_near_one_are_drawn_apart() -> None:
    numbers = table({("fa", f): 0.98 for f in (3, 6, 12)})
    numbers.insert(3, "workers", [{3: 15, 6: 30, 12: 60}[f] for f in numbers["f"]])
    rows = [{"workers": 15, "n": 10, "rule": rule, "milliseconds": 1.5} for rule in fig09.RULES]
    low, high = fig09.draw(numbers, pd.DataFrame(rows), "title").axes[0].get_ylim()
    assert 0.5 < low < 0.98 < 1 <= high


def test_without_a_run_of_fa_no_aggregation_is_timed_or_drawn() -> None:
    numbers = table({("mean", 0): 0.9})
    numbers.insert(3, "workers", 15)
    study = fig09.study("smoke")
    times = fig09.server_times(replace(study, cells=tuple(cell for cell in study.cells if cell.variant == "mean")))
    assert times.empty
    assert verdicts(fig09.claims(numbers, times, 0.1)) == [MISSING]
    left, right = fig09.draw(numbers, times, "title").axes
    assert len(left.lines) == 1
    assert not right.axison


def test_chance_has_a_margin_relative_to_it_where_classes_are_many() -> None:
    final = {(key, f): 0.3 for key in VARIANTS for f in fig04.F_VALUES}
    for trimmed, expected in ((0.05, NOT), (0.01, HOLDS)):  # of 200 classes: 10 times and twice the accuracy of chance
        claims = fig04.claims(table(final | {("trimmed_mean", 1): trimmed}), 1 / 200)
        assert claims[1].verdict == expected


def test_the_seeds_of_a_figure_are_those_of_its_tests_without_those_of_a_tuning() -> None:
    study = figure_module("extra02").study("paper")
    cells = [
        replace(cell, config=replace(cell.config, validation=0.0, seed=seed)) for cell in study.cells for seed in (1, 2)
    ]
    for some, seeds in ((study.cells, 1), ((*study.cells, *cells), 2)):
        assert provenance(Results(replace(study, cells=tuple(some)), {}, 1.0, ()))["seeds"] == seeds


def test_sizes_without_runs_are_missing() -> None:
    """The figure omits them, and the claim is not judged."""
    numbers = table({("fa", 3): 0.9, ("mean", 0): 0.9})
    numbers.insert(3, "workers", 15)
    rows = [{"workers": 15, "n": 10, "rule": rule, "milliseconds": 1.5} for rule in fig09.RULES]
    for some in (numbers, numbers[numbers["variant"] == "fa"]):
        assert verdicts(fig09.claims(some, pd.DataFrame(rows), 0.1)) == [MISSING]
        assert len(fig09.draw(some, pd.DataFrame(rows), "title").axes[0].lines) == some["variant"].nunique()


def test_another_attack_replaces_the_augmented_data_of_figure_9() -> None:
    usual, other = fig09.study("paper"), fig09.study("paper", attack="alie")
    assert {(run.attack, bool(run.augmentation)) for run in other.configs} == {("alie", False)}
    numbers = pd.DataFrame({"variant": ["fa"]})
    numbers.attrs[AUGMENTED] = True
    assert attack_heading(numbers) != attack_heading(pd.DataFrame({"variant": ["fa"]}))
    assert usual.folder != other.folder


@pytest.mark.parametrize(("highest", "top"), [(0.49, 0.5), (0.6, 1.0)])
def test_panels_that_share_an_axis_end_where_the_highest_curve_asks(highest: float, top: float) -> None:
    panels = Figure().subplots(1, 2, sharey=True)
    for axes, accuracy in zip(panels, (highest, 0.2), strict=True):
        axes.plot([1, 2], [0.1, accuracy])
        finish(axes)
    assert [axes.get_ylim() for axes in panels] == [(0, top)] * 2


def test_a_figure_draws_every_curve_it_was_given() -> None:
    numbers = fig04_table(0.9, 0.5, 0.1)
    panels = fig04.draw(numbers, "title").axes
    assert [len(axes.lines) for axes in panels] == [8, 8, 8, 6, 6, 6]
    first = {line.get_label(): list(line.get_ydata()) for line in panels[0].lines}
    assert first["FA"] == [0.1, 0.9]
    assert first["Trimmed Mean"] == [0.1, 0.1]
    assert [text.get_text() for text in panels[2].get_legend().get_texts()] == [
        VARIANTS[key].label for key in PAPER_RULES_AND_MEAN
    ]


def test_provenance_has_the_command_of_a_profile_as_it_is(tmp_path: Path) -> None:
    study = fig02.study("smoke", tmp_path)
    whole = Results(study, {}, 1.0, ())
    assert provenance(whole)["command"].split()[-3:] == ["--profile", "smoke", fig02.NAME]
    assert provenance(Results(fig02.study("smoke", tmp_path, device="cuda"), {}, 1.0, ()))["command"].split()[-2:] == [
        "--device",
        "cuda",
    ]
    assert provenance(Results(fig02.study("smoke", tmp_path, lr=0.2), {}, 1.0, ()))["command"] is None
    finished = replace(study, unfinished=("f = 3: all",)).command
    assert finished == f"fa reproduce --profile smoke --finished {fig02.NAME}"
    assert fig02.study("smoke", tmp_path, seeds=[2021]).command == study.command
    assert fig02.study("smoke", tmp_path, seeds=[2021, 2022]).command is None  # the profile has one seed
    assert fig04.study("smoke", tmp_path, variants=["fa", "mean"]).command is None


def test_versions_and_hardware_are_those_of_the_runs_and_not_of_the_drawing(tmp_path: Path) -> None:
    one = {"seconds": 1.0, "versions": {"torch": "2.9", "fa": "0.1"}, "hardware": {"cpu": "slow", "device": "cpu"}}
    two = one | {"hardware": {"cpu": "fast", "device": "NVIDIA H100"}}
    again = one | {"versions": {"fa": "0.1", "torch": "2.9"}, "seconds": 0.5}
    about = provenance(Results(fig02.study("smoke", tmp_path), {}, 1.0, (one, two, again)))
    assert about["versions"] == [{"torch": "2.9", "fa": "0.1"}]
    assert about["hardware"] == [{"cpu": "slow", "device": "cpu"}, {"cpu": "fast", "device": "NVIDIA H100"}]
    assert about["seconds_of_training"] == 2.5


def test_a_finished_study_describes_its_runs_and_tells_their_curves_apart(tmp_path: Path) -> None:
    """Only the second run names lr."""
    study = make_study("figure", "smoke", [Case("mean", 1), Case("mean", 1, {"lr": 0.1})], tmp_path, iterations=1)
    finished = study.run(progress=False)
    descriptions = finished.descriptions
    assert [TrainConfig.from_json(json.dumps(run["config"])) for run in descriptions] == study.configs
    assert {run["threads"] for run in descriptions} == {1}
    numbers = finished.table()
    assert list(numbers.columns[:6]) == ["variant", "label", "f", "lr", "seed", "iteration"]
    assert len(last_points(numbers)) == 2
