"""Keep the numbers of README.md and docs/*.md those of the committed figures: `python docs/generate.py`.

Two kinds of HTML comment say what is held. All other text is free.

`<!-- table: KIND ARGUMENTS -->` ... `<!-- /table -->` encloses a table that is rewritten:

- `claims PROFILE ...`: the paper's claims, with the verdicts of each profile.
- `accuracy PROFILE/FIGURE COLUMN`: the final test accuracy of each variant, at each value of a column.

`<!-- numbers: KIND ARGUMENTS; ... -->` stands in a paragraph or list item, which must quote each of these numbers, with
two decimals or more:

- `each PROFILE/FIGURE CONDITION`: the final test accuracies in the rows that fulfil a condition of `DataFrame.query`.
- `range PROFILE/FIGURE CONDITION`: the least and the largest of those.
- `behind PROFILE/FIGURE`: how far FA ends below the best other rule, in each of the figure's settings.
- `runs PROFILE`: how many runs the figures of a profile are drawn from, a whole number.

The exit code is 1 if a number is not quoted.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pandas as pd

from fa.experiments.reporting.report import STATEMENTS
from fa.experiments.runs.study import last_points
from fa.experiments.runs.variants import RIVALS

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "figures"
TABLE = re.compile(r"(<!-- table: (\w+) (.*?) -->\n).*?(<!-- /table -->)", re.DOTALL)
NUMBERS = re.compile(r"<!-- numbers: (.*?) -->", re.DOTALL)
BLOCK = re.compile(r"\n\s*\n|\n(?=- )")


def main() -> int:
    """Rewrite the tables, and name the numbers that are not quoted."""
    unquoted = []
    for path in pages():
        text = path.read_text()
        path.write_text(generated(text))
        unquoted += [f"{path.relative_to(ROOT)}: {line}" for line in missing(text)]
    print(*unquoted, sep="\n", file=sys.stderr)
    return 1 if unquoted else 0


def pages() -> list[Path]:
    """The documents."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def generated(text: str) -> str:
    """Return a document with its tables written anew."""
    return TABLE.sub(lambda found: found[1] + TABLES[found[2]](*found[3].split()) + found[4], text)


def missing(text: str) -> list[str]:
    """Return a line for each number that a document must quote and does not."""
    lines = []
    for block in BLOCK.split(text):
        stated = re.findall(r"\d+(?:\.\d+)?", NUMBERS.sub("", block))
        for query in (query for queries in NUMBERS.findall(block) for query in queries.split("; ")):
            values = measured(" ".join(query.split()))
            lines += [f"{value:.4g} is not quoted ({query})" for value in values if not quoted(value, stated)]
    return lines


def quoted(value: float, stated: list[str]) -> bool:
    """Return whether a number is among those stated: a whole one as it is, another rounded to 2 decimals or more."""
    if isinstance(value, int):
        return str(value) in stated
    rounded = [(float(text), len(text.partition(".")[2])) for text in stated]
    return any(digits >= 2 and abs(number - value) <= 0.501 * 10.0**-digits for number, digits in rounded)


def measured(query: str) -> list[float]:
    """Return the numbers that a query asks for."""
    kind, name, condition = [*query.split(" ", 2), ""][:3]
    if kind == "runs":
        return [
            len({run for path in (FIGURES / name).glob("fig*.json") for run in json.loads(path.read_text())["runs"]})
        ]
    final = ends(name)
    if kind == "behind":
        settings = [column for column in final if column not in ("variant", "label", "test_accuracy")]
        by = final.pivot_table("test_accuracy", settings, "variant")
        return list(by[[key for key in RIVALS if key in by]].max(axis=1) - by["fa"])
    found = list(final.query(condition)["test_accuracy"]) if condition else list(final["test_accuracy"])
    if not found:
        raise ValueError(f"no row of {name} fulfils {condition}")
    return {"each": found, "range": [min(found), max(found)]}[kind]


def ends(name: str) -> pd.DataFrame:
    """Return the final test accuracy of each variant in each setting of a figure, the mean over seeds."""
    last = last_points(pd.read_csv(FIGURES / f"{name}.csv"))
    settings = list(last.columns[: list(last.columns).index("seed")])
    return last.groupby(settings, sort=False, dropna=False)["test_accuracy"].mean().reset_index()


def claims(*profiles: str) -> str:
    """Return the table of the paper's claims: what it says, and the verdicts of each profile in the report's order."""
    verdicts: dict[tuple[str, str], list[str]] = {}
    for profile in profiles:
        for path in sorted((FIGURES / profile).glob("*.claims.csv")):
            for row in csv.DictReader(path.read_text().splitlines()):
                verdicts.setdefault((row["number"], profile), []).append(row["verdict"])
    rows = [
        [number, said.words, *("; ".join(verdicts.get((number, profile), [])) for profile in profiles)]
        for number, said in STATEMENTS.items()
    ]
    return table(["", "the paper", *profiles], rows)


def accuracy(name: str, column: str) -> str:
    """Return a table of final test accuracies: variants down, the values of a column across."""
    by = ends(name).pivot_table("test_accuracy", "label", column, sort=False)
    by = by[sorted(by.columns)]
    rows = [
        [str(label), *(f"{value:.3f}" for value in row)] for label, row in zip(by.index, by.to_numpy(), strict=True)
    ]
    return table(["rule", *(f"{column} = {value}" for value in by.columns)], rows)


def table(heading: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (heading, ["---"] * len(heading), *rows))


TABLES = {"claims": claims, "accuracy": accuracy}

if __name__ == "__main__":
    sys.exit(main())
