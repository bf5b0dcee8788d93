"""Figures whose runs take hours are drawn from committed records alone, without the data and without any training."""

import csv
import html
import inspect
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fa.experiments import figure_module
from fa.experiments.reporting.claims import Claim
from fa.experiments.runs import sweep
from fa.experiments.runs.study import Study

FIGURES = Path(__file__).parents[1] / "figures"
MANY = ("extra03", "extra06", "extra13")  # have hundreds of runs, whose records are not kept
COMMITTED = sorted(path for profile in ("cpu", "paper") for path in (FIGURES / profile).glob("*.claims.csv"))
DRAWN = [path for path in COMMITTED if not path.name.startswith(MANY)]
TABLES = [path for path in COMMITTED if path.name.startswith(MANY)]
TABLES += [path for kind in ("fig", "extra") for path in sorted((FIGURES / "quick").glob(f"{kind}*.claims.csv"))]
TRUSTED = "extra04"  # judges by all runs' workers.csv, which are not kept
EXECUTED = [
    path
    for path in sorted(FIGURES.glob("*/notebooks/*.ipynb"))
    if (path.parents[1] / f"{path.stem}.claims.csv").is_file()
]
WATCHED = "fig03"  # looks at gradients while it trains: its table is itself the record


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The run store is all there is: neither data nor a way to do what is missing."""

    def refuse(configs: list, *_: object) -> Any:
        if configs:
            pytest.fail(f"{len(configs)} records are missing")
        return iter(())

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sweep, "check_present", lambda name: None)
    monkeypatch.setattr(sweep, "_run_all", refuse)
    monkeypatch.setattr(sweep, "_in_turn", refuse)


def test_some_are_there() -> None:
    assert {"fig02", "fig04"} <= {path.name.partition("_")[0] for path in DRAWN if path.parent.name == "cpu"}


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: f"{path.parent.name}-{path.name.partition('_')[0]}")
def test_a_committed_figure_comes_from_committed_records(path: Path, tmp_path: Path) -> None:
    name = path.name.removesuffix(".claims.csv")
    module = figure_module(name)
    drawn = pd.read_csv(path.parent / f"{name}.csv")
    study = study_of(module, path.parent, name, drawn)
    tables = {"table": drawn} if name.startswith(WATCHED) else rebuilt(module, study)
    if tables["table"] is not drawn:
        tables["table"].to_csv(tmp_path / "again.csv", index=False, lineterminator="\n")
        assert (tmp_path / "again.csv").read_text() == (path.parent / f"{name}.csv").read_text()
    assert stated(path) == judged(module, path, tables, study)


@pytest.mark.parametrize(
    "path", [path for path in TABLES if not path.name.startswith(TRUSTED)], ids=lambda path: path.name.partition("_")[0]
)
def test_claims_follow_from_the_tables_beside_them_where_records_are_not_kept(path: Path) -> None:
    """The tables and the judgement are kept."""
    module = figure_module(path.name.removesuffix(".claims.csv"))
    drawn = pd.read_csv(path.with_name(path.name.replace(".claims", "")))
    assert stated(path) == judged(module, path, {"table": drawn}, module.study(path.parent.name))


def stated(path: Path) -> list[Claim]:
    """The claims as they are kept."""
    return [Claim(**row) for row in pd.read_csv(path).to_dict("records")]


def judged(module: Any, path: Path, tables: dict[str, Any], study: Study) -> list[Claim]:
    """Judge the claims by these tables and by those that lie beside the figure."""
    name, takes = path.name.removesuffix(".claims.csv"), inspect.signature(module.claims).parameters
    settings = {argument: getattr(study, argument) for argument in ("chance", "margin", "profile") if argument in takes}
    for argument in takes:
        if argument not in tables and argument not in settings:
            file = path.parent / f"{name}.{argument}.csv"
            unmeasured = study.unfinished and not file.exists()
            tables[argument] = None if unmeasured else pd.read_csv(file)
    return module.claims(**{argument: tables[argument] for argument in tables if argument in takes}, **settings)


def study_of(module: Any, folder: Path, name: str, drawn: pd.DataFrame) -> Study:
    """The figure's study, or the part of it that was drawn."""
    about = json.loads((folder / f"{name}.json").read_text())
    devices = {run["device"] for run in about["runs"].values()}
    whole = module.study(folder.name, folder, device=devices.pop() if len(devices) == 1 else "cpu")
    if about["unfinished"]:
        return whole.finished()
    if about["command"] is not None:
        return whole
    chosen = {"variants": list(dict.fromkeys(drawn["variant"])), "byzantine": sorted(set(drawn["f"]))}
    return module.study(folder.name, folder, seeds=sorted(set(drawn["seed"])), **chosen)


def rebuilt(module: Any, study: Study) -> dict[str, Any]:
    """From the records: the figure's table, and what else it reads from them."""
    both = hasattr(module, "tested")  # Runs at the best rates follow those that choose them.
    results = module.run(study) if both else study.run(progress=False)
    if hasattr(module, "tables"):
        table, values = module.tables(results)
        return {"table": table, "values": values}
    if hasattr(module, "detection"):
        workers = module.workers(results)
        return {"table": results.table(), "workers": workers, "detections": module.detection(workers)}
    return {"table": results.table()}


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_an_executed_notebook_has_the_claims_of_its_table(path: Path) -> None:
    """The notebook, the table of its claims and the report are from one execution."""
    table = path.parents[1] / f"{path.stem}.claims.csv"
    shown = [
        "".join(output.get("data", {}).get("text/html", ""))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        for output in cell.get("outputs", [])
    ]
    page = html.unescape(" ".join(shown))
    with table.open(newline="", encoding="utf-8") as file:
        for claim in csv.DictReader(file):
            assert claim["measured"] in page
            assert f">{claim['verdict']}<" in page
