"""Keep the numbers of README.md and docs/*.md those of the committed figures: `python docs/generate.py`.

Two kinds of HTML comment say what is held. All other text is free.

`<!-- table: KIND ARGUMENTS -->` ... `<!-- /table -->` encloses a table that is rewritten:

- `claims PROFILE ...`: the paper's claims, with the verdicts of each profile. Theory has no size; its verdicts stand in
  the first column.
- `accuracy PROFILE/FIGURE COLUMN`: the final test accuracy of each variant, at each value of a column.
- `times N P`: the time of each rule in benchmarks/bench.json, and the time of other libraries as a multiple of it.

`<!-- numbers: KIND ARGUMENTS; ... -->` stands in a paragraph or list item, which must quote each of these numbers, with
two decimals or more:

- `each PROFILE/FIGURE CONDITION`: the final test accuracies in the rows that fulfil a condition of `DataFrame.query`.
- `range PROFILE/FIGURE CONDITION`: the least and the largest of those.
- `behind PROFILE/FIGURE`: the best other rule's final test accuracy less FA's, in each of the figure's settings.
- `runs PROFILE`: the number of runs behind the figures of a profile, a whole number.

The exit code is 1 if a number is not quoted.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pandas as pd

from fa.bench.cases import OURS, PAPER
from fa.bench.peers import LIBRARIES
from fa.experiments.reporting.report import STATEMENTS, worded
from fa.experiments.runs.study import last_points
from fa.experiments.runs.variants import RIVALS

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "figures"
TABLE = re.compile(r"(<!-- table: (\w+) (.*?) -->\n).*?(<!-- /table -->)", re.DOTALL)
NUMBERS = re.compile(r"<!-- numbers: (.*?) -->", re.DOTALL)
ORDINALS = ("first", "second", "third", "fourth")
PARTS = {
    "C3": ("robustness", "Trimmed Mean"),
    "C5": ("accuracy", "growth with B"),
    "C6": ("accuracy", "iterations"),
    "C7": ("resilience", "more workers"),
    "C8": ("accuracy", "stability", "values of workers"),
    "C9": ("range of lambda", "interpolation"),
    "C11": ("cost", "time to accuracy", "final accuracy", "complexity"),
    "C13": ("second order", "speed"),
    "C14": ("objective", "likelihood"),
    "C16": ("accuracy loss", "offloading"),
}
"""Parts of the claims that docs/claims.md judges separately, in its order."""

NOT_RUN = {"paper": "not tested at the paper's size", "cpu": "", "quick": ""}
"""Cell of a claim without a verdict, by profile."""

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
    """Return the table of the paper's claims: a row for each claim, a column for each profile."""
    theory = verdicts(FIGURES / "quick", "theory*")
    columns = [verdicts(FIGURES / profile, "[fs]*") for profile in profiles]
    columns[0] |= theory
    rows = []
    for number, statement in STATEMENTS.items():
        of_theory = {part for claim, part in theory if claim == number}
        cells = [cell(number, column, of_theory if column is not columns[0] else set()) for column in columns]
        rows.append(
            [
                number,
                statement.words,
                *(text or NOT_RUN[profile] for text, profile in zip(cells, profiles, strict=True)),
            ]
        )
    return table(["", "claim of the paper", *profiles], rows)


def verdicts(folder: Path, pattern: str) -> dict[tuple[str, int], str]:
    """Return the verdicts of a folder's figures, by claim and by place of its part in `PARTS`."""
    found = {}
    for path in sorted(folder.glob(f"{pattern}.claims.csv")):
        about = json.loads(path.with_name(path.name.replace(".claims.csv", ".json")).read_text())
        counts: dict[str, int] = {}
        for row in csv.DictReader(path.read_text().splitlines()):
            number = row["number"]
            first = 3 if (path.stem.partition("_")[0], number) == ("theory07", "C11") else 0
            found[number, first + counts.get(number, 0)] = worded(row["verdict"], about)
            counts[number] = counts.get(number, 0) + 1
    return found


def cell(number: str, found: dict[tuple[str, int], str], elsewhere: set[int]) -> str:
    """Return the verdicts on the parts of a claim, a line for each; nothing if no part has one."""
    parts = PARTS.get(number, ("",))
    if not any((number, place) in found for place in range(len(parts))):
        return ""
    lines = []
    for place, part in enumerate(parts):
        if place not in elsewhere:
            verdict = found.get((number, place), "not tested")
            lines.append(f"{ORDINALS[place]} ({part}): {verdict}" if part else verdict)
    return "<br>".join(lines)


def times(n: str, p: str) -> str:
    """Return a table of the benchmark at one size: milliseconds, and other libraries as multiples of them."""
    cases = json.loads((ROOT / "benchmarks" / "bench.json").read_text())["rows"]
    seconds = {(row["rule"], row["by"]): row["seconds"] for row in cases if (row["n"], row["p"]) == (int(n), int(p))}
    mean = seconds["mean", OURS]
    rows = [
        [f"`{rule}`", f"{1e3 * ours:.0f}", f"{ours / mean:.1f}"]
        + [_two_digits(seconds[rule, by] / ours) if (rule, by) in seconds else "" for by in LIBRARIES]
        for (rule, by), ours in seconds.items()
        if by == OURS
    ]
    rows += [
        [rule, f"{1e3 * ours:,.0f}", f"{ours / mean:.0f}", *[""] * len(LIBRARIES)]
        for (rule, by), ours in seconds.items()
        if by == PAPER
    ]
    return table(["rule", "ms", "/ mean", *(f"{by} / ours" for by in LIBRARIES)], rows)


def accuracy(name: str, column: str) -> str:
    """Return a table of final test accuracies: variants down, the values of a column across."""
    by = ends(name).pivot_table("test_accuracy", "label", column, sort=False)
    by = by[sorted(by.columns)]
    rows = [
        [str(label), *(f"{value:.3f}" for value in row)] for label, row in zip(by.index, by.to_numpy(), strict=True)
    ]
    return table(["rule", *(f"{column} = {value}" for value in by.columns)], rows)


def _two_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.1f}"


def table(heading: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (heading, ["---"] * len(heading), *rows))


TABLES = {"claims": claims, "accuracy": accuracy, "times": times}

if __name__ == "__main__":
    sys.exit(main())
