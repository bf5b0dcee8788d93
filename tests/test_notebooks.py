"""The notebooks: stripped, parameterised, and executed at smoke size from a folder that is not theirs."""

import base64
import io
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from click.testing import CliRunner
from PIL import Image

from fa import irls
from fa.cli import cli, main
from fa.cli.notebook_parameters import command, parse
from fa.experiments import EXTRAS, FIGURES, SUPPLEMENT, figure_module, match_names, notebooks
from fa.experiments.notebooks import LIMIT, execute, find, parameters_of
from fa.experiments.reporting.artifacts import save_claims
from fa.experiments.reporting.claims import UNTESTABLE
from fa.experiments.runs.store import Record
from fa.experiments.runs.study import Study
from fa.experiments.runs.sweep import Outcome
from fa.experiments.runs.variants import VARIANTS
from fa.training import TrainConfig
from tests.notebook_cells import run_cells
from tests.texts import check_refusal

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OF_FIGURES, OF_EXTRAS, OF_SUPPLEMENT, OF_THEORY = (
    [path for path in NOTEBOOKS if path.stem.startswith(family)] for family in ("fig", "extra", "supp", "theory")
)
EXECUTED = sorted((ROOT / "figures").glob("*/notebooks/*.ipynb"))
NEEDED = {
    "fig": {"profile", "out", "jobs", "seeds", "iterations", "dataset", "device"},
    "theory": {"profile", "seed"},
}


def pictures(executed: Path) -> int:
    cells = json.loads(executed.read_text())["cells"]
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))


def test_every_figure_has_its_notebook() -> None:
    for family, names in (("fig", FIGURES), ("extra", EXTRAS), ("supp", SUPPLEMENT)):
        assert [path.stem for path in find([family])] == [figure_module(name).NAME for name in names] == list(names)


def test_the_help_names_the_notebooks_that_are_drawn_from_finished_runs() -> None:
    (option,) = (option for option in cli.get_command(None, "reproduce").params if option.name == "finished")
    named = set(re.findall(r"\b(?:fig|extra)\d+\w*", option.help))
    drawn = [path.stem for path in NOTEBOOKS if "finished" in papermill.inspect_notebook(path)]
    assert named == {stem.partition("_")[0] for stem in drawn}


def test_notebooks_are_found_by_whole_and_short_names_and_by_family() -> None:
    stems = ["fig02_mean", "fig06bcd_more", "theory01_flags", "theory02_beta"]
    assert match_names(["fig"], stems) == match_names(["figs"], stems) == stems[:2]
    assert match_names(["theory02", "fig06bcd", "theory02_beta"], stems) == ["fig06bcd_more", "theory02_beta"]
    assert match_names(["theory"], stems) == stems[2:]
    for name in ("fig0", "fig02_", "theory03", "mean", ""):
        with pytest.raises(ValueError, match=rf"^name must be .*\bfig02, .*'{name}'"):
            match_names([name], stems)
    assert find(["theory"]) == OF_THEORY
    assert find(["theory01"]) == OF_THEORY[:1]
    assert [path.name for path in find(["augmentation"])] == ["augmentation.ipynb"]
    assert find() == find(["fig"]) == OF_FIGURES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermill_lists_typed_and_commented_parameters(path: Path) -> None:
    """From one cell; that outputs are stripped is a test in test_conventions.py."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell["metadata"].get("tags", []) for cell in notebook["cells"]].count(["parameters"]) == 1
    parameters = papermill.inspect_notebook(path)
    assert NEEDED["fig" if path in (*OF_FIGURES, *OF_EXTRAS, *OF_SUPPLEMENT) else "theory"] <= parameters.keys()
    for parameter in parameters.values():
        assert parameter["inferred_type_name"] != "None"
        assert parameter["help"]


def long_unless(quick: tuple[str, ...], paths: list[Path]) -> list[Any]:
    """Return the notebooks as parameters; those that are not quick are long tests."""
    return [
        pytest.param(path, id=path.stem, marks=() if path.stem.startswith(quick) else pytest.mark.long)
        for path in paths
    ]


@pytest.mark.parametrize("path", long_unless(("theory",), [*OF_THEORY, *find(["augmentation", "explore"])]))
def test_a_notebook_of_no_figure_runs_at_smoke_size(path: Path, tmp_path: Path) -> None:
    """With all that `fa reproduce` passes, most of which it has no parameter for."""
    assert run_cells(path, profile="smoke", out=str(tmp_path), jobs=None, device=None) > 0


@pytest.mark.parametrize("path", long_unless(("fig02", "fig03", "fig06a", "fig08", "fig09"), OF_FIGURES))
def test_a_notebook_runs_at_smoke_size_and_writes_its_figure(path: Path, tmp_path: Path) -> None:
    assert run_cells(path, profile="smoke", out=str(tmp_path), iterations=2) > 0
    for suffix in (".png", ".pdf", ".csv", ".json", ".claims.csv"):
        assert (tmp_path / path.stem).with_suffix(suffix).is_file()
    table = pd.read_csv((tmp_path / path.stem).with_suffix(".csv"))
    assert set(table["iteration"]) == {2}
    claims = pd.read_csv((tmp_path / path.stem).with_suffix(".claims.csv"))
    judged = claims[claims["verdict"] != UNTESTABLE]  # two iterations teach nothing, and the table must say so
    assert list(judged["number"]) == (["C11"] if path.stem.startswith("fig10") else [])  # a cost needs no learning


def sources(path: Path) -> list[tuple[str, str]]:
    """Return kind and text of each cell, without the cell that papermill adds."""
    cells = nbformat.read(path, as_version=4).cells
    return [
        (cell.cell_type, cell.source) for cell in cells if "injected-parameters" not in cell.metadata.get("tags", ())
    ]


def test_notebooks_of_theory_are_committed_as_executed() -> None:
    names = {path.name for path in EXECUTED if path.parts[-3] == "quick"}
    assert {path.name for path in (*OF_THEORY, *find(["augmentation", "explore"]))} <= names


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_an_executed_copy_has_the_cells_of_its_source(path: Path) -> None:
    """Else execute it again: `fa reproduce NAME --profile PROFILE`."""
    assert sources(path) == sources(ROOT / "notebooks" / path.name)
    assert pictures(path) > 0
    if path.parts[-3] != "smoke":
        assert path.stat().st_size < LIMIT


def test_an_executed_copy_has_neither_times_nor_paths(tmp_path: Path) -> None:
    image = Image.effect_noise((200, 200), 100).convert("RGB").resize((600, 600), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "PNG")
    encoded = base64.b64encode(file.getvalue()).decode()
    output = nbformat.v4.new_output("display_data", {"image/png": encoded})
    timed = {"papermill": {"duration": 1.0}, "execution": {}, "tags": []}
    cell = nbformat.v4.new_code_cell(f"out = '{ROOT}/figures/quick'", outputs=[output], metadata=timed)
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {"duration": 1.0}})
    nbformat.write(notebook, tmp_path / "copy.ipynb")
    notebooks.tidy(tmp_path / "copy.ipynb")
    copy = nbformat.read(tmp_path / "copy.ipynb", as_version=4)
    assert (copy.metadata, copy.cells[0].metadata) == ({}, {})
    assert copy.cells[0].source == "out = 'figures/quick'"
    reduced = copy.cells[0].outputs[0].data["image/png"]
    assert len(reduced) < len(encoded)
    assert Image.open(io.BytesIO(base64.b64decode(reduced))).size == (600, 600)


def test_a_cell_that_fails_is_one_line_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^fig02_mean_tolerance\.ipynb\b.*\bValueError: profile must be .*'tiny'"):
        execute(find(["fig02"])[0], tmp_path, profile="tiny", out=str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["theory04", "explore"])
def test_a_notebook_takes_the_users_gradients(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a file whose path is relative to the working directory, which is not the notebook's."""
    G = np.random.default_rng(0).standard_normal((4, 50))
    np.save(tmp_path / "G.npy", G)
    values = parse([("gradients", os.path.relpath(tmp_path / "G.npy"))], find([name]))
    assert run_cells(find([name])[0], profile="smoke", **values) > 0
    if name == "theory04":
        assert f"{irls.solve(G).objective:.4f}" in capsys.readouterr().out


def test_the_index_links_every_notebook() -> None:
    index = (ROOT / "notebooks" / "README.md").read_text()
    assert sorted(re.findall(r"\]\((\w+\.ipynb)\)", index)) == [path.name for path in NOTEBOOKS]


def test_a_figure_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match=r"^name must be .*\bfig02, .*'fig99'"):
        find(["fig99"])


def columns(output: str) -> dict[str, int]:
    """How many runs are to be done, and how many are not."""
    return {word: len(re.findall(rf"│ {word} +│", output)) for word in ("yes", "no")}


def test_sweep_does_the_runs_and_tells_why(tmp_path: Path) -> None:
    sweep = ["sweep", "fig02", "--profile", "smoke", "--out", str(tmp_path)]
    before = CliRunner().invoke(cli, [*sweep, "--why"], catch_exceptions=False)
    assert columns(before.output) == {"yes": 4, "no": 0}
    CliRunner().invoke(cli, [*sweep, "--jobs", "2", "--shard", "1/2"], catch_exceptions=False)
    after = CliRunner().invoke(cli, [*sweep, "--why"], catch_exceptions=False)
    assert columns(after.output) == {"yes": 2, "no": 2}
    assert "byzantine" not in before.output
    assert after.output.count("byzantine") == 2


def test_sweep_says_that_a_figure_has_nothing_to_do_before_it_is_drawn(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["sweep", "fig03", "--profile", "smoke", "--out", str(tmp_path)])
    assert done.exit_code == 0
    (line,) = done.output.splitlines()
    assert line.startswith("fig03_explained_variance: ")
    assert "fa reproduce" in line
    assert not list(tmp_path.rglob("config.json"))


def test_a_run_that_fails_is_named_at_the_end_and_the_next_figure_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_once(configs: list[TrainConfig], *_: object) -> list[Outcome]:
        kept = [Outcome(config, Record(tmp_path)) for config in configs]
        return [Outcome(configs[0], None, "Traceback\nValueError: no reason"), *kept[1:]]

    monkeypatch.setattr("fa.experiments.runs.study.sweep", fail_once)
    done = CliRunner().invoke(cli, ["sweep", "fig02", "fig04", "--profile", "smoke", "--out", str(tmp_path)])
    assert done.exit_code == 1
    first, second = done.stderr.splitlines()
    assert re.match(r"fa: fig02_mean_tolerance: mean\b.*\bf = 0, seed 2021: .*ValueError: no reason", first)
    assert re.match(r"fa: fig04_byzantine_workers: fa\b.*\breleased\b.*\bf = 1, seed 2021: .*ValueError", second)
    assert "3 of 4 " in done.stdout
    assert "35 of 36 " in done.stdout
    study = figure_module("fig02").study("smoke", tmp_path)
    with pytest.raises(ValueError, match=r"\b1 of 4\b.*\bmean, f = 0, .*no reason"):
        study.run()


@pytest.mark.parametrize("command", ["sweep", "reproduce"])
def test_ctrl_c_says_how_to_go_on(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Study, "sweep", interrupt)
    monkeypatch.setattr(notebooks, "execute", interrupt)
    stopped = CliRunner().invoke(cli, [command, "fig02", "--profile", "smoke", "--out", str(tmp_path)])
    assert stopped.exit_code == 130
    assert "Traceback" not in stopped.stderr
    *_, last = stopped.stderr.splitlines()
    assert last.startswith("fa: ")


def test_parameters_go_through_the_command_and_into_the_provenance(tmp_path: Path) -> None:
    words = ["reproduce", "fig02", "--profile", "smoke", "--jobs", "1", "--out", str(tmp_path)]
    parameters = ["-p", "seeds", "[2021, 2022]", "-p", "iterations", "2", "-p", "lr", "0.1"]
    done = CliRunner().invoke(cli, [*words, *parameters], catch_exceptions=False)
    assert done.exit_code == 0
    about = json.loads((tmp_path / "fig02_mean_tolerance.json").read_text())
    assert about["parameters"] == {"seeds": [2021, 2022], "iterations": 2, "lr": 0.1}
    runs = about["runs"].values()
    assert {(run["seed"], run["iterations"], run["lr"]) for run in runs} == {(2021, 2, 0.1), (2022, 2, 0.1)}
    again = shlex.split(about["command"])
    assert again[:5] == ["fa", "reproduce", "--profile", "smoke", "fig02_mean_tolerance"]
    assert again[5:] == parameters


@pytest.mark.parametrize(
    ("name", "parameters", "pattern"),
    [
        (
            "fig04",
            ["iteration", "10"],
            r"^fa: parameter of fig04_byzantine_workers must be .*'iteration'.*'iterations'",
        ),
        ("fig04", ["variants", "fa"], r"^fa: variants must be .*\blist\b.*'fa'"),
        ("fig04", ["iterations", "2.5"], r"^fa: iterations must be .*\bint\b.*2\.5"),
        ("fig04", ["iterations", "true"], r"^fa: iterations must be .*\bint\b.*True"),
        ("theory01", ["iterations", "3"], r"^fa: parameter of theory01_flag_aggregator must be .*'iterations'"),
        ("fig04", ["profile", "cpu"], r"^fa: parameter must be .*'profile'.*--profile"),
    ],
)
def test_a_wrong_parameter_is_refused_before_a_notebook_runs(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    parameters: list[str],
    pattern: str,
) -> None:
    monkeypatch.setattr(notebooks, "execute", lambda *_, **__: pytest.fail("executed"))
    with pytest.raises(SystemExit) as leaving:
        main(["reproduce", name, "--out", str(tmp_path), "-p", *parameters])
    output = capsys.readouterr()
    assert isinstance(leaving.value.code, int)
    check_refusal(leaving.value.code, output.err, pattern)


def test_the_rules_of_a_notebook_without_runs_are_a_parameter() -> None:
    assert parse([("rules", "['fa']")], find(["explore"])) == {"rules": ["fa"]}
    with pytest.raises(ValueError, match=r"--rule\b"):
        parse([("rules", "['fa']")], find(["explore", "fig04"]))


@pytest.mark.parametrize("name", [*FIGURES, *EXTRAS, *SUPPLEMENT])
def test_a_notebook_has_the_parameters_that_its_figure_accepts(name: str) -> None:
    parameters, module = parameters_of(*find([name])), figure_module(name)
    for parameter, refused in (("rules", "NO_RULES"), ("attack", "NO_ATTACK")):
        assert (parameter in parameters) != hasattr(module, refused)


def test_an_argument_that_a_notebook_lacks_is_refused(tmp_path: Path) -> None:
    for parameter, value in (("attack", "zero"), ("rules", ["fa"]), ("finished", True)):
        with pytest.raises(ValueError, match=rf"^{parameter} must be .*theory01"):
            execute(*find(["theory01"]), tmp_path, **{parameter: value})


@pytest.mark.parametrize("finished", [False, True])
def test_the_command_of_a_drawing_is_quoted_and_says_whether_it_trains(finished: bool) -> None:
    words = shlex.split(command("paper", "fig04", {"variants": ["fa"]}, ["a b.py:R"], None, "cpu", finished))
    assert words == [
        *("fa", "reproduce", "--profile", "paper", *(["--finished"] if finished else []), "fig04"),
        *("-p", "variants", "['fa']", "--rule", "a b.py:R", "--device", "cpu"),
    ]


def test_parameters_change_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(notebooks, "execute", lambda _, target, **__: seen.append(target))
    monkeypatch.setattr("fa.experiments.reporting.report.figure_files", lambda _: [])
    for more in ([], ["-p", "seed", "3"]):
        CliRunner().invoke(cli, ["reproduce", "theory01", "--profile", "smoke", *more], catch_exceptions=False)
    assert [folder.name for folder in seen] == ["smoke", "smoke-custom"]


def test_the_list_names_figures_parameters_and_variants() -> None:
    done = CliRunner().invoke(cli, ["reproduce", "--list"], catch_exceptions=False)
    assert done.exit_code == 0
    assert all(path.stem in done.output for path in NOTEBOOKS)
    assert all(key in done.output for key in VARIANTS)
    assert all(f"    {name} (" in done.output for name in ("seeds", "iterations", "variants", "byzantine", "seed"))


def git(*words: str, folder: Path) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_an_executed_notebook_is_unchanged_for_git(tmp_path: Path) -> None:
    """With the filter that `make lab` configures; git starts it for each notebook, and here are three of them."""
    changed_source, *others = (OF_THEORY[0], OF_FIGURES[0], OF_EXTRAS[0])
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "strip.py", tmp_path / "notebooks")
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    for path in (changed_source, *others):
        shutil.copy(path, tmp_path / "notebooks")
    (command,) = re.findall(r"filter\.notebook\.clean '(.*)'", (ROOT / "Makefile").read_text())
    git("init", "-q", folder=tmp_path)
    git("add", ".", folder=tmp_path)
    git("config", "filter.notebook.clean", command, folder=tmp_path)
    changed = tmp_path / "notebooks" / changed_source.name
    notebook = nbformat.read(changed, as_version=4)
    for count, cell in enumerate(notebook.cells):
        cell.metadata["jupyter"] = {"outputs_hidden": True}
        if cell.cell_type == "code":
            cell.execution_count = count
            cell.outputs = [nbformat.v4.new_output("stream", text="é 1\n")]
    notebook.metadata.language_info["version"] = "3.13"
    nbformat.write(notebook, changed)
    for path in others:
        (tmp_path / "notebooks" / path.name).touch()
    assert git("diff", "--stat", folder=tmp_path) == ""
    notebook.cells[-1].source += "more"
    nbformat.write(notebook, changed)
    assert git("diff", "--name-only", folder=tmp_path).split() == [f"notebooks/{changed.name}"]


def test_papermill_itself_refuses_a_parameter_that_a_notebook_lacks(tmp_path: Path) -> None:
    parameters = {"profile": "smoke", "iteration": 10}
    with pytest.raises(papermill.PapermillExecutionError, match=r"parameter must be .*'iteration'.*'iterations'"):
        papermill.execute_notebook(
            str(find(["fig02"])[0]), str(tmp_path / "out.ipynb"), parameters, kernel_name="python3", progress_bar=False
        )


def test_every_notebook_checks_its_parameters() -> None:
    assert all("\ncheck_parameters()" in "\n".join(text for _, text in sources(path)) for path in NOTEBOOKS)


def test_a_notebook_in_another_folder_prints_where_its_files_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, printed in ((ROOT / "notebooks", False), (tmp_path, True)):
        monkeypatch.chdir(folder)
        save_claims("theory02_beta_mle", "smoke", [], tmp_path)
        assert (str(tmp_path / "theory02_beta_mle.claims.csv") in capsys.readouterr().out) == printed
