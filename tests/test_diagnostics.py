"""The picture of a run: what every rule records of its decisions, and that the picture shows it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import fa
from fa.cli import cli, main
from fa.experiments.reporting import run_plot
from fa.rules.decision import NOT_FINITE
from fa.training import TrainConfig, train
from fa.training.record_schema import SCHEMA_VERSION
from fa.training.records import EXCLUDED, EXCLUDED_BEFORE, USED
from tests.texts import check_refusal, numbers

SHORT = {"workers": 11, "byzantine": 2, "iterations": 3, "batch": 4, "attack": "random"}
KRUM = {"preaggregators": ("krum", "median_norm")}


def run(folder: Path, rule: str, **options: object) -> run_plot.RunTables:
    train(TrainConfig(rule=rule, rule_options=options, **SHORT), out=folder / "run")
    return run_plot.read(folder / "run")


@pytest.mark.parametrize(
    ("rule", "options", "weighs", "excluded"),
    [
        ("krum", {}, True, 10),
        ("multi_krum", {}, True, 4),
        ("bulyan", {}, False, 4),
        ("fa", {}, True, 0),
        ("fa", KRUM, True, 2),
        ("mean", {"preaggregators": ("nnm",)}, True, 0),
        ("median", {"preaggregators": ("krum",)}, False, 2),
        ("median", {}, False, 0),
    ],
)
def test_the_records_are_the_rules_decisions(
    rule: str, options: dict, weighs: bool, excluded: int, tmp_path: Path
) -> None:
    """Against the rule called again on the gradients that the run saw."""
    decisions = []

    def look(progress: object) -> None:
        aggregate = fa.make_rule(rule, f=2, **options).aggregate(progress.G, progress.iteration - 1)
        decisions.append(aggregate.decision)

    train(TrainConfig(rule=rule, rule_options=options, **SHORT), out=tmp_path / "run", progress=look)
    read = run_plot.read(tmp_path / "run")
    for iteration, decision in enumerate(decisions, start=1):
        rows = read.workers[read.workers["iteration"] == iteration].set_index("worker")
        assert set(rows.index[rows["status"] == "used"]) == set(decision.selected)
        assert {w: r for w, r in rows["reason"].items() if r} == decision.excluded
        assert len(decision.excluded) == excluded
        if weighs:
            np.testing.assert_allclose(rows["weight"], decision.weights, rtol=1e-4, atol=1e-6)
            share = np.abs(decision.weights) / np.abs(decision.weights).sum()
            np.testing.assert_allclose(rows["share"].abs(), share, rtol=1e-4, atol=1e-6)
            part = read.byzantine_share().set_index("iteration")["part"]
            assert part[iteration] == pytest.approx(share[:2].sum(), abs=1e-5)
        else:
            assert rows["weight"].isna().all()
            part = read.byzantine_share().set_index("iteration")["part"][iteration]
            assert part == len({0, 1} & set(decision.selected)) / len(decision.selected)
        assert rows["value"].notna().all() == (decision.values is not None)


def test_the_picture_shows_numbers_faulty_workers_and_who_was_left_out(tmp_path: Path) -> None:
    read = run(tmp_path, "fa", **KRUM)
    figure = run_plot.draw(read)
    maps = [axes for axes in figure.axes if axes.images]
    weight, value = (axes.get_title() for axes in maps)
    assert weight.startswith("weight")
    assert "$v_i$" in value
    np.testing.assert_allclose(maps[0].images[0].get_array(), read.grid("share"))
    np.testing.assert_allclose(maps[1].images[0].get_array(), read.grid("value"))
    labels = [label.get_text() for label in maps[0].get_yticklabels()]
    assert {worker for worker, label in enumerate(labels) if label != str(worker)} == {0, 1}  # the faulty ones
    (patch,) = maps[0].patches
    cells = {(x, y) for (y, x) in zip(*np.nonzero(read.grid("reason").to_numpy() != ""), strict=True)}
    shape = read.grid("reason").shape
    inside = {(x, y) for y in range(shape[0]) for x in range(shape[1]) if patch.get_path().contains_point((x + 1, y))}
    assert inside == cells != set()
    title = figure.get_suptitle()
    assert all(name in title for name in ("fa", *KRUM["preaggregators"], "random"))
    assert {11, 2} <= set(numbers(title))
    assert "\n" not in title


def test_a_rule_of_coordinates_says_that_it_has_no_weights(tmp_path: Path) -> None:
    figure = run_plot.draw(run(tmp_path, "bulyan"))
    (only,) = [axes for axes in figure.axes if axes.images]
    assert not only.get_title().startswith("weight")
    assert only.patches
    assert len(figure.get_suptitle().splitlines()) == 2  # the second line says so


def test_reasons_are_told_apart(tmp_path: Path) -> None:
    workers = run(tmp_path, "multi_krum").workers
    (score,) = set(workers["reason"]) - {""}
    (status,) = set(workers["status"]) - {USED}
    file = tmp_path / "run" / "workers.csv"
    lines = file.read_text().splitlines()
    reasons = (NOT_FINITE, "a", "b", NOT_FINITE)
    lines[1:5] = [f"1,{w},none,none,{status.replace(score, reason)}" for w, reason in enumerate(reasons)]
    lines[5] += "; 6 lost"
    file.write_text("\n".join(lines) + "\n")
    read = run_plot.read(tmp_path / "run")
    hatches = run_plot._hatches(read)
    assert list(hatches)[:2] == [score, NOT_FINITE]
    assert hatches["a"] == hatches["b"] != hatches[NOT_FINITE]
    labels = [handle.get_label() for handle in run_plot._legend(read)]
    assert all(label.endswith(end) for label, end in zip(labels, (score, NOT_FINITE, "a; b"), strict=True))
    run_plot.draw(read)


def test_records_of_older_releases_have_the_same_reasons(tmp_path: Path) -> None:
    reasons = run(tmp_path, "krum").workers["reason"]
    file = tmp_path / "run" / "workers.csv"
    older = file.read_text().replace(EXCLUDED, EXCLUDED_BEFORE)
    assert older != file.read_text()
    file.write_text(older)
    assert run_plot.read(tmp_path / "run").workers["reason"].equals(reasons)


def test_a_place_that_is_none_is_told(tmp_path: Path) -> None:
    run(tmp_path, "median")
    place = str(tmp_path / "none" / "run.png")
    with pytest.raises(ValueError, match=f"^out must be .*{re.escape(place)}"):
        CliRunner().invoke(cli, ["plot", str(tmp_path / "run"), "--out", place], catch_exceptions=False)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "fa")
    done = CliRunner().invoke(cli, ["plot", str(tmp_path / "run")], catch_exceptions=False)
    assert done.output == f"{tmp_path / 'run' / 'run.png'}\n"
    with Image.open(tmp_path / "run" / "run.png") as image:
        assert np.asarray(image).std() > 10
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    newer = tmp_path / "newer"
    shutil.copytree(tmp_path / "run", newer)
    (newer / "config.json").write_text(json.dumps(described | {"schema_version": 99}))
    del described["config"]["byzantine"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(described))
    for folder, pattern in (
        (newer, rf"\b99\b.*\b{SCHEMA_VERSION}\b"),
        (tmp_path / "run", "'byzantine'"),
        (tmp_path, r"\bcurve\.csv\b"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["plot", str(folder)])
        check_refusal(ended.value.code, capsys.readouterr().err, f"^fa: {re.escape(str(folder))}\\b.*{pattern}")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("curve.csv", "train_loss", "loss"),
        ("curve.csv", "iteration", ""),
        ("curve.csv", r"^\d.*$", "1,x,x,x,x,x"),
        ("workers.csv", r"^1,0,.*\n", ""),  # a row less
        ("workers.csv", r"(^1,0,.*\n)", r"\1\1"),  # a row twice
        ("workers.csv", "^1,10,", "1,11,"),  # a rank that does not exist
        ("workers.csv", r"^1,0,[^,]*,[^,]*", "1,0,0.5,1e400"),
        ("workers.csv", "^1,0,", "x,0,"),
        ("workers.csv", r"^\d.*\n", ""),  # the header alone
    ],
)
def test_damaged_records_are_named(file: str, old: str, new: str, tmp_path: Path) -> None:
    run(tmp_path, "fa")
    path = tmp_path / "run" / file
    changed = re.sub(old, new, path.read_text(), flags=re.MULTILINE)
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path / 'run'))} must hold "):
        run_plot.read(tmp_path / "run")
