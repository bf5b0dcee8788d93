"""Grids from one file: which runs they are, what is refused, and the worst attack of each rule."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from fa.cli import main
from fa.experiments.reporting.artifacts import save_files
from fa.experiments.reporting.grid_map import WORST, cells_table, draw, heading, runs_table
from fa.experiments.runs.grid import Grid, choose_rates, parse, read, run
from fa.experiments.runs.store import RunStore
from fa.training.config import TrainConfig
from tests.texts import check_refusal

SMALL: dict[str, Any] = {
    "rules": ["mean", {"rule": "multi_krum", "label": "Krum"}],
    "attacks": ["random", {"attack": "alie", "factor": 2.0, "label": "little"}],
    "byzantine": [0, 1],
    "splits": ["iid", {"split": "dirichlet", "alpha": 0.5}],
    "seeds": [1],
    "settings": {"workers": 5, "batch": 4, "iterations": 2},
}
FILE = """
rules = ["mean", { rule = "median", label = "med" }]
attacks = ["random", "sign_flip"]
byzantine = [1]
seeds = [1]
[settings]
workers = 3
batch = 4
iterations = 2
[tuning]
lr = [0.1, 0.01]
seeds = [7]
"""


def small(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (SMALL | changes).items() if value is not None}


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    captured = capsys.readouterr()
    return int(exit.value.code or 0), captured.out, captured.err


def test_a_grid_has_each_rule_attack_f_split_and_seed() -> None:
    grid = parse(small(seeds=[1, 2]))
    cells = grid.cells()
    places = {(cell.rule, cell.attack, cell.f, cell.split, cell.config.seed) for cell in cells}
    assert len(cells) == len(places) == 2 * 2 * 2 * 2 * 2
    flipped = next(cell.config for cell in cells if (cell.rule, cell.attack, cell.f) == ("Krum", "little", 1))
    assert (flipped.rule, flipped.attack, dict(flipped.attack_options)) == ("multi_krum", "alie", {"factor": 2.0})


def test_a_split_has_its_parameter_in_its_entry() -> None:
    splits = [{"split": "dirichlet", "alpha": 0.5}, {"split": "gamma", "gamma": 0.25}]
    cells = parse(small(splits=splits)).cells()
    assert {(cell.config.split, cell.config.alpha, cell.config.gamma) for cell in cells} == {
        ("dirichlet", 0.5, None),
        ("gamma", None, 0.25),
    }


def test_without_byzantine_workers_one_run_stands_for_all_attacks() -> None:
    configs = {cell.config for cell in parse(small()).cells() if cell.f == 0}
    assert {config.attack for config in configs} == {"none"}
    assert len(configs) == 2 * 2


def test_a_rule_that_needs_more_workers_is_excluded_with_the_reason() -> None:
    grid = parse(small(rules=["mean", "bulyan"]))
    assert list(grid.skipped()) == ["bulyan, f = 1"]
    assert {cell.f for cell in grid.cells() if cell.rule == "bulyan"} == {0}


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"rulez": []}, r"^a key of a grid\b.*rules.*'rulez'"),
        ({"rules": None}, r"^rules\b.*None"),
        ({"rules": []}, r"^rules\b"),
        ({"rules": ["meen"]}, r"'meen'"),
        ({"rules": [{"rule": "multi_krum", "n": 1}]}, r"'n'"),
        ({"rules": [3]}, r"^an entry of rules\b.*3"),
        ({"rules": [{"rule": "multi_krum", "f": 2}]}, r"^options of a rule\b.*byzantine"),
        ({"rules": [{"rule": "multi_krum", "name": "x"}]}, r"^options of a rule\b.*'name'"),
        ({"attacks": [{"attack": "alie", "name": "x"}]}, r"^attack_options\b.*'name'"),
        ({"rules": ["mean", "mean"]}, r"^rules\b.*'mean'"),
        ({"rules": [{"rule": "mean", "label": 3}]}, r"^label in rules\b.*3"),
        ({"attacks": ["sing_flip"]}, r"'sing_flip'"),
        ({"attacks": [{"attack": "sign_flip", "speed": 3}]}, r"'speed'"),
        ({"attacks": None}, r"^attacks\b.*None"),
        ({"byzantine": [-1]}, r"^an entry of byzantine\b.*-1"),
        ({"byzantine": [True]}, r"^an entry of byzantine\b.*True"),
        ({"byzantine": [9]}, r"^byzantine\b.*9"),
        ({"byzantine": 1}, r"^byzantine\b.*1"),
        ({"splits": ["even"]}, r"^split\b.*'even'"),
        ({"splits": ["dirichlet"]}, r"^alpha\b"),
        ({"splits": [{"split": "iid", "beta": 1}]}, r"^a key of an entry of splits\b.*'beta'"),
        ({"seeds": []}, r"^seeds\b"),
        ({"settings": {"worker": 3}}, r"^a key of \[settings\].*'worker'"),
        ({"settings": {"rule": "mean"}}, r"^a key of \[settings\].*'rule'"),
        ({"settings": {"batch": 0}}, r"^batch\b.*0"),
        ({"settings": 3}, r"^settings\b.*3"),
        ({"settings": {"workers": "11"}}, r"^workers\b.*'11'"),
        ({"settings": {"workers": 2.5}}, r"^workers\b.*2\.5"),
        ({"settings": {"workers": [11]}}, r"^workers\b.*\[11\]"),
        ({"tuning": {"lr": [0.1], "seeds": [1]}}, r"^seeds of \[tuning\].*1"),
        ({"tuning": {"lr": [], "seeds": [2]}}, r"^lr of \[tuning\]"),
        ({"tuning": {"lr": ["x"], "seeds": [2]}}, r"^a rate in lr of \[tuning\].*'x'"),
        ({"tuning": {"lr": [0.0], "seeds": [2]}}, r"^a rate in lr of \[tuning\].*0\.0"),
        ({"tuning": {"lr": [0.1]}}, r"^seeds of \[tuning\].*None"),
        ({"tuning": {"lr": [0.1], "seeds": [2], "validation": 1}}, r"^validation of \[tuning\].*1"),
        ({"tuning": {"lr": [0.1], "seeds": [2], "byzantine": [9]}}, r"^byzantine of \[tuning\].*9"),
        ({"tuning": {"rates": [0.1]}}, r"^a key of \[tuning\].*'rates'"),
        ({"tuning": {"lr": [0.1], "seeds": [2]}, "settings": {"lr": 0.1}}, r"^lr of \[settings\].*0\.1"),
    ],
)
def test_an_invalid_grid_is_refused_before_any_run(changes: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        parse(small(**changes))


@pytest.mark.parametrize("text", [None, "rules = [", "rules = ['mean']\nattack = ['random']"])
def test_an_invalid_file_is_one_line_with_its_name(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.toml"
    if text is not None:
        path.write_text(text)
    code, out, err = call(capsys, "grid", str(path), "--out", str(tmp_path / "out"))
    check_refusal(code, err, r"bad\.toml")
    assert out == ""
    assert not (tmp_path / "out").exists()


def test_the_worst_attack_is_the_least_mean_over_seeds_and_a_failed_run_leaves_a_gap() -> None:
    grid = parse(small(byzantine=[1], splits=["iid"]))
    rows = [
        {"rule": rule, "attack": attack, "f": 1, "split": "iid", "test_accuracy": value}
        for rule, attack, values in (
            ("mean", "random", (0.1, 0.3)),
            ("mean", "little", (0.5, 0.1)),
            ("Krum", "random", (0.9, 0.9)),
            ("Krum", "little", (0.8, math.nan)),
        )
        for value in values
    ]
    table = cells_table(grid, pd.DataFrame(rows)).set_index("rule")
    assert table.loc["mean", WORST] == pytest.approx(0.2)
    assert table.loc["mean", "worst_attack"] == "random"
    assert math.isnan(table.loc["Krum", "little"])
    assert math.isnan(table.loc["Krum", WORST])


def drawn(tmp_path: Path, grid: Grid) -> Figure:
    result = run(grid, RunStore(tmp_path), jobs=1, progress=False)
    return draw(grid, cells_table(grid, runs_table(result)), heading(result))


@pytest.mark.slow
def test_a_heat_map_has_a_panel_for_each_f_and_split_with_the_worst_attack_last(tmp_path: Path) -> None:
    figure = drawn(tmp_path, parse(small(rules=["mean", "bulyan"])))
    panels = [axes for axes in figure.axes if axes.images and axes.get_title()]
    assert len(panels) == 4
    labels = [text.get_text() for text in panels[-1].get_xticklabels()]
    assert labels == ["random", "little", WORST]
    assert [text.get_text() for text in panels[0].get_yticklabels()] == ["mean", "bulyan"]


@pytest.mark.parametrize(("setting", "value"), [("model", "resnet81"), ("device", "foo"), ("dataset", "mnits")])
def test_a_setting_that_does_not_exist_is_named_before_any_run(
    setting: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.toml"
    path.write_text(f'rules = ["mean"]\nattacks = ["random"]\nbyzantine = [1]\n[settings]\n{setting} = "{value}"\n')
    code, _, err = call(capsys, "grid", str(path), "--dry-run")
    assert code == 2
    assert value in err


@pytest.mark.slow
def test_the_command_resumes_and_chooses_rates_on_other_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "small.toml", tmp_path / "out"
    path.write_text(FILE)
    code, printed, _ = call(capsys, "grid", str(path), "--out", str(out), "--dry-run")
    assert (code, out.exists()) == (0, False)
    code, _, err = call(capsys, "grid", str(path), "--out", str(out), "--jobs", "2")
    assert (code, err) == (0, "")
    assert {file.name for file in out.iterdir()} >= {
        *(f"small.{suffix}" for suffix in ("png", "pdf", "csv", "runs.csv", "json")),
        "records",
    }
    with (out / "small.runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    about = json.loads((out / "small.json").read_text())
    assert {row["seed"] for row in runs} == {"1"}
    assert about["rates"].keys() == {"mean", "med"}
    assert all(float(row["lr"]) == about["rates"][row["rule"]] for row in runs)
    before = {record: record.stat().st_ino for record in (out / "records").iterdir()}
    tables = (out / "small.csv").read_bytes(), (out / "small.png").read_bytes()
    assert call(capsys, "grid", str(path), "--out", str(out))[0] == 0
    assert {record: record.stat().st_ino for record in (out / "records").iterdir()} == before
    assert ((out / "small.csv").read_bytes(), (out / "small.png").read_bytes()) == tables


@pytest.mark.slow
def test_rates_are_the_best_by_mean_validation_accuracy_and_the_lowest_of_equals(tmp_path: Path) -> None:
    tuning = {"lr": [0.2, 0.1], "seeds": [7], "validation": 0.5}
    grid = parse(small(byzantine=[1], splits=["iid"], tuning=tuning))
    result = run(grid, RunStore(tmp_path), jobs=1, progress=False)
    cells = grid.tuning_cells()
    assert {(cell.config.seed, cell.config.validation) for cell in cells} == {(7, 0.5)}
    assert {(cell.config.seed, cell.config.validation) for cell in result.cells} == {(1, 0.0)}
    for rule in ("mean", "Krum"):
        reached: dict[float, list[float]] = {0.1: [], 0.2: []}
        for cell in cells:
            if cell.rule == rule:
                reached[cell.config.lr].append(result.accuracy(cell.config))
        expected = 0.1 if sum(reached[0.1]) >= sum(reached[0.2]) else 0.2
        assert choose_rates(cells, result.outcomes)[rule] == expected == result.rates[rule]


def test_the_example_is_a_grid() -> None:
    path = Path(__file__).parents[1] / "examples" / "grid.toml"
    grid, text = read(path)
    assert text == path.read_text()
    assert grid.skipped() == {}
    assert len({cell.config for cell in grid.cells()}) == 24


def test_the_committed_robustness_table_follows_from_its_runs() -> None:
    root = Path(__file__).parents[1]
    (grid, _), name = read(root / "examples" / "robustness.toml"), root / "figures" / "robustness" / "robustness"
    runs, cells = (pd.read_csv(f"{name}.{suffix}") for suffix in ("runs.csv", "csv"))
    rates = json.loads(Path(f"{name}.json").read_text())["rates"]
    expected = [(cell.rule, cell.attack, cell.split, cell.config.seed, cell.config.lr) for cell in grid.cells(rates)]
    assert list(runs[["rule", "attack", "split", "seed", "lr"]].itertuples(index=False, name=None)) == expected
    pd.testing.assert_frame_equal(cells_table(grid, runs), cells)


def test_settings_that_a_file_omits_are_those_of_a_run() -> None:
    default = TrainConfig(byzantine=0)
    for cell in parse(small()).cells():
        for name in ("lr_decay_epochs", "evaluate_every", "local_steps", "sampling"):
            assert getattr(cell.config, name) == SMALL["settings"].get(name, getattr(default, name))


def test_an_option_that_does_not_fit_the_workers_is_an_error_and_no_gap() -> None:
    with pytest.raises(ValueError, match=r"^m must be .*\b99\b"):
        parse(small(rules=[{"rule": "fa", "m": 99}, "median"]))


def test_every_reported_rule_has_a_rate() -> None:
    tuning = {"lr": [0.2], "seeds": [7], "byzantine": [3]}
    content = small(rules=["median", "krum"], byzantine=[1, 3], settings={"workers": 7}, tuning=tuning)
    with pytest.raises(ValueError, match=r"^byzantine of \[tuning\] must .*\bkrum\b.*\[3\]"):
        parse(content)
    assert parse(content | {"rules": ["median"]}).tuning is not None


def test_files_of_a_grid_whose_name_has_a_dot_have_its_whole_name(tmp_path: Path) -> None:
    path = save_files(Figure(), tmp_path / "lr0.05", {"": pd.DataFrame(), ".runs": pd.DataFrame()}, {})
    assert path.name == "lr0.05.png"
    assert {file.name for file in tmp_path.iterdir()} == {
        f"lr0.05.{end}" for end in ("png", "pdf", "json", "csv", "runs.csv")
    }


def test_rates_may_be_chosen_at_some_f() -> None:
    tuning = {"lr": [0.2], "seeds": [7], "byzantine": [1]}
    grid = parse(small(byzantine=[0, 1], splits=["iid"], tuning=tuning))
    assert {cell.f for cell in grid.tuning_cells()} == {1}
    assert {cell.f for cell in grid.cells()} == {0, 1}
