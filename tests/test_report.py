"""The report says of every claim what the figures in a folder say of it, and nothing else."""

import csv
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fa.cli import cli, main
from fa.experiments import EXTRAS, FIGURES, figure_module
from fa.experiments.reporting.claims import HOLDS, IN_PART, NOT, OPEN, UNTESTABLE
from fa.experiments.reporting.report import ONE_RUN, REDUCED, REPRODUCED, STATEMENTS, verdict_text, write
from fa.experiments.runs.profiles import MARGIN, MARGINS
from tests import texts

QUICK = Path(__file__).parents[1] / "figures" / "quick"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in QUICK.glob("fig0[24]*"):
        shutil.copy(path, tmp_path)
    return tmp_path


def rows(report: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines() if line.startswith("| C")
    ]


def test_every_claim_has_a_row_and_every_figure_its_section(folder: Path) -> None:
    report = write(folder).read_text()
    claims = rows(report)
    assert list(dict.fromkeys(row[0] for row in claims)) == [f"C{i}" for i in range(1, 19)]
    with (folder / "fig04_byzantine_workers.claims.csv").open(newline="") as file:
        claimed = list(csv.DictReader(file))
    provenance = json.loads((folder / "fig04_byzantine_workers.json").read_text())
    of_fig04 = [
        [c["number"], c["words"], c["measured"], f"**{verdict_text(c['verdict'], provenance)}**"] for c in claimed
    ]
    assert [row[:3] + row[4:] for row in claims if "fig04" in row[3]] == of_fig04
    untested, *rest = next(row for row in claims if row[0] == "C10")[2:]
    assert rest == ["", ""]
    assert "fig09" in untested
    about = json.loads((folder / "fig02_mean_tolerance.json").read_text())
    for said in (
        about["settings"],
        about["commit"],
        about["command"],
        "![fig02_mean_tolerance](fig02_mean_tolerance.png)",
    ):
        assert said in report
    for link in re.findall(r"\]\(([^)#]+)\)", report):
        assert ((QUICK if link.startswith("..") else folder) / link).exists()
    for anchor in re.findall(r"\]\(#([^)]+)\)", report):
        assert f'<a id="{anchor}"></a>' in report


def preamble(report: str, name: str) -> list[str]:
    """The lines above the table of claims that name a figure."""
    return [line for line in report.partition("\n| ")[0].splitlines() if name in line]


def test_all_tables_of_a_figure_are_linked_and_own_settings_are_told(folder: Path) -> None:
    name = "fig04_byzantine_workers"
    usual = write(folder).read_text()
    assert not preamble(usual, name)
    (folder / f"{name}.values.csv").write_text("value\n1\n")
    about = json.loads((folder / f"{name}.json").read_text())
    (folder / f"{name}.json").write_text(json.dumps(about | {"command": None}))
    report = write(folder).read_text()
    assert f"[{name}.csv]({name}.csv), [{name}.values.csv]({name}.values.csv)" in report
    (warning,) = preamble(report, name)
    assert "fig02_mean_tolerance" not in warning


def test_the_page_has_the_same_table(folder: Path) -> None:
    report = write(folder).read_text()
    page = (folder / "REPORT.html").read_text()
    assert page.count("<tr>") == len(rows(report)) + 1
    assert '<a id="fig02_mean_tolerance"></a>' in page
    assert page.count("<img ") == 2
    tested = [row for row in rows(report) if row[4]]
    assert page.count("<details>") == len(tested)
    assert len(re.findall(r'<td class="(?:holds|part|fails|open)">', page)) == len(tested)


def test_the_summary_counts_the_parts_of_claims(folder: Path) -> None:
    report = write(folder).read_text()
    tested = Counter(row[4] for row in rows(report) if row[4])
    counted = dict(re.findall(r"^- (\*\*[^*]+):\*\* (\d+)$", report, flags=re.MULTILINE))
    assert {f"{words}**": int(count) for words, count in counted.items()} == tested
    untested = {row[0] for row in rows(report) if not row[4]}
    (line,) = (line for line in report.splitlines() if line.startswith("- **") and "C10" in line)
    assert set(re.findall(r"C\d+", line)) == untested


def test_each_figure_has_its_claims_and_verdicts_as_headlines(folder: Path) -> None:
    _, _, section = write(folder).read_text().partition("## fig04_byzantine_workers")
    headlines = section.partition("![")[0]
    with (folder / "fig04_byzantine_workers.claims.csv").open(newline="") as file:
        claimed = list(csv.DictReader(file))
    for claim in claimed:
        assert f"{claim['words']}: **{REDUCED[claim['verdict']]}**" in headlines


def test_a_folder_of_any_name_has_the_margin_of_its_figures(folder: Path) -> None:
    margin = MARGINS["quick"]
    assert margin != MARGIN
    (line,) = (line for line in write(folder).read_text().splitlines() if line.startswith("Accuracies closer"))
    assert margin in texts.numbers(line)


def test_p_values_and_subsets_are_named(folder: Path) -> None:
    name = "fig02_mean_tolerance"
    claims, about = folder / f"{name}.claims.csv", folder / f"{name}.json"
    with claims.open(newline="") as file:
        (cells,) = csv.DictReader(file)
    with claims.open("w", newline="") as file:
        writer = csv.DictWriter(file, cells)
        writer.writeheader()
        writer.writerow(cells | {"measured": "p = 15: lead +0.1 (p = 0.03)"})
    about.write_text(json.dumps(json.loads(about.read_text()) | {"unfinished": ["Mean, f = 1"]}))
    (row,) = (row for row in rows(write(folder).read_text()) if row[0] == "C1")
    assert row[2] == "p = 15: lead +0.1 (p-value 0.03)"
    assert "subset" in row[3]


def test_a_verdict_is_that_of_the_figure(folder: Path) -> None:
    claims = folder / "fig02_mean_tolerance.claims.csv"
    (cells,) = csv.DictReader(claims.read_text().splitlines())
    with claims.open("w", newline="") as file:
        writer = csv.DictWriter(file, cells)
        writer.writeheader()
        writer.writerow(cells | {"verdict": NOT, "measured": f"f = 0 | 1 {cells['measured']}"})
    row = next(line for line in write(folder).read_text().splitlines() if line.startswith("| C1 "))
    assert row.endswith(f"| **{REDUCED[NOT]}** |")
    assert "f = 0 \\| 1" in row  # a bar does not break the table


@pytest.mark.parametrize("verdict", [HOLDS, IN_PART, NOT, UNTESTABLE])
def test_a_verdict_says_the_size_and_the_number_of_seeds(verdict: str) -> None:
    def words(figure: str, profile: str, **about: Any) -> str:
        return verdict_text(verdict, {"figure": figure, "profile": profile, "command": "fa reproduce"} | about)

    for profile in ("smoke", "quick", "cpu"):
        assert words("fig04_x", profile, seeds=3) == REDUCED[verdict]
    assert words("fig04_x", "paper", seeds=1) == words("fig04_x", "paper") == ONE_RUN[verdict]
    assert words("fig04_x", "paper", seeds=3) == words("fig04_x", "paper", seeds=3, attack=None) == REPRODUCED[verdict]
    for changed in ({"command": None}, {"parameters": {"iterations": 10}}, {"attack": "sign_flip"}):
        assert words("fig04_x", "paper", seeds=3, **changed) == REDUCED[verdict]
    assert words("theory06_x", "quick") == REPRODUCED[verdict]  # theory has no size
    if verdict != UNTESTABLE:
        assert len({REDUCED[verdict], ONE_RUN[verdict], REPRODUCED[verdict]}) == 3
    assert verdict_text(OPEN, {"figure": "extra05_x", "profile": "quick"}) == OPEN


def test_the_statements_name_figures_and_notebooks_that_there_are() -> None:
    there = {name.partition("_")[0] for name in (*FIGURES, *EXTRAS)}
    there |= {path.stem.partition("_")[0] for path in (QUICK.parents[1] / "notebooks").glob("theory*")}
    named = {name for said in STATEMENTS.values() for name in said.tested_by.split(", ") if name}
    assert named <= there
    assert {figure_module(name).NAME for name in FIGURES} == set(FIGURES)


def test_a_folder_without_figures_and_a_broken_figure_are_named(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(SystemExit) as ended:
        main(["report", "--out", str(empty)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fa: ")
    assert repr(str(empty)) in line
    before = write(folder).read_text()
    (folder / "fig02_mean_tolerance.json").write_text('{"figure": "fig')
    with pytest.raises(ValueError, match=r"\bfig02_mean_tolerance\b.*\.json\b.*\.claims\.csv\b"):
        write(folder)
    assert (folder / "REPORT.md").read_text() == before
    shutil.copy(QUICK / "fig02_mean_tolerance.json", folder)
    assert CliRunner().invoke(cli, ["report", "--out", str(folder)]).output.strip() == str(
        (folder / "REPORT.md").resolve()
    )
