"""Write the numbers and verdicts in README.md and docs/*.md from the committed figures: `python docs/generate.py`.

HTML comments mark generated text. All other text is free.

`<!-- table: KIND ARGUMENTS -->` ... `<!-- /table -->` encloses a table:

- `claims PROFILE ...`: the paper's claims, with the verdicts of each profile. Theory has no size; its verdicts stand in
  the first column.
- `accuracy PROFILE/FIGURE COLUMN [CONDITION]`: the final test accuracy of each variant, at each value of a column. Only
  seeds are averaged: a condition of `DataFrame.query` must select one value of every other setting.
- `worst FOLDER/GRID`: the worst accuracy over attacks of each rule of a grid, and that attack, for each f and split.
- `distances FOLDER/GRID MARGIN`: how far below the best rule's each worst accuracy is, for the rules that are best, or
  closer than the margin, for some f and split.
- `times N P`: the time of each rule in benchmarks/bench.json, and the time of other libraries as a multiple of it.
- `runs PROFILE`: the number of runs, the seeds, the iterations and the time of each figure's runs, by device.

`<!-- = KIND ARGUMENTS -->` ... `<!-- /= -->` encloses a few words in a sentence:

- `verdict PROFILE CLAIM PART`: the verdict on a part of a claim, counted from 1.
- `measured PROFILE CLAIM PART PATTERN`: all matches of a regular expression's group in the text of what was measured.
- `final PROFILE/FIGURE CONDITION`: the final test accuracies in the rows that fulfil a condition of `DataFrame.query`.
- `range PROFILE/FIGURE CONDITION`: the least and the largest of those.
- `lowest FOLDER/GRID CONDITION`: the worst accuracy over attacks in the rows of a grid that fulfil a condition.
- `behind PROFILE/FIGURE`: the best other rule's final test accuracy less FA's, in each of the figure's settings.
- `multiple RULE N`: the range of a rule's time in benchmarks/bench.json, as a multiple of the mean's, from size N on.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from fa.bench.cases import OURS, PAPER
from fa.bench.peers import LIBRARIES
from fa.experiments.reporting.report import STATEMENTS, figure_files, verdict_text
from fa.experiments.runs.results import last_points
from fa.experiments.runs.variants import OTHER_RULES

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "figures"
TABLE = re.compile(r"(<!-- table: (\w+) (.*?) -->\n).*?(<!-- /table -->)", re.DOTALL)
INLINE = re.compile(r"(<!-- = (\w+) ([^>]*?) -->).*?(<!-- /= -->)", re.DOTALL)

_NUMBER = re.compile(r"[-+]?[\d.]+")

ORDINALS = ("first", "second", "third", "fourth")
PARTS = {
    "C3": ("robustness", "Trimmed Mean"),
    "C5": ("accuracy", "growth with B"),
    "C6": ("accuracy", "iterations"),
    "C7": ("resilience", "more workers"),
    "C8": ("accuracy", "stability", "explained variances"),
    "C9": ("range of lambda", "interpolation"),
    "C11": ("cost", "time to accuracy", "final accuracy", "complexity"),
    "C13": ("second order", "speed"),
    "C14": ("objective", "likelihood"),
    "C16": ("accuracy loss", "offloading"),
}
"""Parts of the claims that docs/claims.md judges separately, in its order."""

FIRST_PART = {("theory07", "C11"): 4}
"""Part that a figure's first row judges, where that is not the first."""

Verdicts = dict[tuple[str, int], str]
"""Verdict by claim and part."""


def main() -> None:
    """Write all documents."""
    for path in pages():
        path.write_text(generated(path.read_text(encoding="utf-8")))


def pages() -> list[Path]:
    """Return the paths of the documents."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def generated(text: str) -> str:
    """Return a document with its marked text written anew."""
    text = TABLE.sub(lambda match: match[1] + TABLES[match[2]](*match[3].split()) + match[4], text)
    return INLINE.sub(lambda match: match[1] + WORDS[match[2]](*match[3].split(maxsplit=1)) + match[4], text)


def claims(*profiles: str) -> str:
    """Return the table of the paper's claims: a row for each claim, a column for each profile."""
    theory = verdicts("quick", "theory*")
    columns = [verdicts(profile, "fig*") | verdicts(profile, "extra*") for profile in profiles]
    rows = []
    for number, statement in STATEMENTS.items():
        parts = [(number, k + 1) for k in range(len(PARTS.get(number, ("",))))]
        cells = [_cell(parts, columns[0] | theory)]
        cells += [_cell([part for part in parts if part not in theory], column) for column in columns[1:]]
        rows.append([number, statement.words, cells[0] or f"not tested at the {profiles[0]}'s size", *cells[1:]])
    return table(["", "claim of the paper", *profiles], rows)


def verdicts(profile: str, pattern: str) -> Verdicts:
    """Return the verdicts of a profile's figures with a name of the pattern."""
    return {key: verdict_text(row["verdict"], about) for key, row, about in judged(profile, pattern)}


def judged(profile: str, pattern: str) -> Iterator[tuple[tuple[str, int], dict[str, str], dict[str, Any]]]:
    """Yield claim and part, the row of the claims' table, and the provenance, of figures with a name of the pattern."""
    for path in sorted((FIGURES / profile).glob(f"{pattern}.claims.csv")):
        figure = path.name.removesuffix(".claims.csv")
        about = json.loads((path.parent / f"{figure}.json").read_text(encoding="utf-8"))
        following: dict[str, int] = {}
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
            number = row["number"]
            part = following.get(number, FIRST_PART.get((figure.partition("_")[0], number), 1))
            yield (number, part), row, about
            following[number] = part + 1


def _cell(parts: list[tuple[str, int]], found: Verdicts) -> str:
    """Return the verdicts on the parts of a claim, one per line; nothing if no part has one."""
    if not any(part in found for part in parts):
        return ""
    lines = []
    for number, part in parts:
        name = f"{ORDINALS[part - 1]} ({PARTS[number][part - 1]}): " if number in PARTS else ""
        lines.append(name + found.get((number, part), "not tested"))
    return "<br>".join(lines)


def accuracy(name: str, column: str, *condition: str) -> str:
    """Return a table of final test accuracies: variants down, the values of a column across.

    Raises:
        ValueError: Rows differ in another setting than the column, whose accuracies would be averaged.
    """
    selected = ends(name)
    selected = selected.query(" ".join(condition)) if condition else selected
    varied = [key for key in selected if key not in ("variant", "label", "test_accuracy", column)]
    for label, variant in selected.groupby("label", sort=False):
        several = [key for key in varied if variant[key].nunique(dropna=False) > 1]
        if variant[column].duplicated().any():
            raise ValueError(f"condition must select one value of {several} for {label!r}, got {' '.join(condition)!r}")
    by = selected.pivot_table("test_accuracy", "label", column, sort=False)
    by = by[sorted(by.columns)]
    texts = by.map(lambda value: "" if pd.isna(value) else f"{value:.3f}")  # A run that is not finished has none.
    rows = [[str(label), *row] for label, row in zip(by.index, texts.to_numpy(), strict=True)]
    return table(["rule", *(f"{column} = {value}" for value in by.columns)], rows)


def ends(name: str) -> pd.DataFrame:
    """Return the final test accuracy of each variant in each setting of a figure, the mean over seeds."""
    last = last_points(pd.read_csv(FIGURES / f"{name}.csv"))
    settings = list(last.columns[: list(last.columns).index("seed")])
    return last.groupby(settings, sort=False, dropna=False)["test_accuracy"].mean().reset_index()


def worst(name: str) -> str:
    """Return a table of the worst accuracy over attacks: rules down, best for the greatest f and first split first."""
    cells = pd.read_csv(FIGURES / f"{name}.csv")
    columns = list(dict.fromkeys(zip(cells["f"], cells["split"], strict=True)))
    columns.sort(key=lambda column: column[0])  # The order of splits stays.
    by = cells.set_index(["f", "split", "rule"])
    first = cells[(cells["f"] == cells["f"].max()) & (cells["split"] == columns[0][1])]
    rules = first.sort_values("worst", ascending=False, kind="stable")["rule"]

    def cell(column: tuple[int, str], rule: str) -> str:
        row = by.loc[(*column, rule)]
        return f"{row['worst']:.2f} ({row['worst_attack']})"

    rows = [[rule, *(cell(column, rule) for column in columns)] for rule in rules]
    return table(["rule", *(f"f = {f}, {split}" for f, split in columns)], rows)


def distances(name: str, margin: str) -> str:
    """Return a table of the distances to the best worst accuracy: rules down, f and splits across."""
    rows = pd.read_csv(FIGURES / f"{name}.csv").sort_values("f", kind="stable")  # The order of splits stays.
    parts = rows.groupby(["f", "split"], sort=False)
    worst_of = {key: part.set_index("rule")["worst"] for key, part in parts}
    behind_best = pd.DataFrame({key: accuracies.max() - accuracies for key, accuracies in worst_of.items()})

    def cell(distance: float) -> str:
        if distance == 0:
            return "best"
        return f"{distance:.3f}, level" if distance < float(margin) else f"{distance:.3f}"

    shown = behind_best[(behind_best < float(margin)).any(axis=1)]
    body = [[str(rule), *map(cell, distances)] for rule, distances in zip(shown.index, shown.to_numpy(), strict=True)]
    return table(["rule", *(f"f = {f}, {split}" for f, split in worst_of)], body)


def times(n: str, p: str) -> str:
    """Return a table of the benchmark at one size."""
    cases = json.loads((ROOT / "benchmarks" / "bench.json").read_text(encoding="utf-8"))["rows"]
    seconds = {(row["rule"], row["by"]): row["seconds"] for row in cases if (row["n"], row["p"]) == (int(n), int(p))}
    libraries = [library for library in LIBRARIES if any(by == library for _, by in seconds)]
    rows = []
    for (rule, by), ours in seconds.items():
        if by in (OURS, PAPER):
            others = [seconds.get((rule, library)) for library in libraries]
            ratios = ["" if other is None else _two_digits(other / ours) for other in others]
            rows.append([rule, _two_digits(1e3 * ours), _two_digits(ours / seconds["mean", OURS]), *ratios])
    return table(["rule", "ms", "x mean", *(f"{library}, x ours" for library in libraries)], rows)


def _two_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}" if number >= 1 else f"{number:.2f}"


def runs(profile: str) -> str:
    """Return a table of a profile's runs: a row for each figure and device."""
    rows = []
    for path in figure_files(FIGURES / profile):
        name = path.stem.partition("_")[0]
        by_device: dict[str, list[dict[str, Any]]] = {}
        for key in json.loads(path.read_text(encoding="utf-8"))["runs"]:
            record = json.loads((FIGURES / profile / "records" / key / "config.json").read_text(encoding="utf-8"))
            hardware = record["hardware"]
            on_cpu = record["config"]["device"] == "cpu"
            device = f"{hardware['cpu']}, {hardware['instructions']}, one core" if on_cpu else hardware["device"]
            by_device.setdefault(device, []).append(record)
        for device, records in sorted(by_device.items()):
            seeds, iterations = ({str(record["config"][key]) for record in records} for key in ("seed", "iterations"))
            minutes = [record["seconds"] / 60 for record in records]
            spent = " to ".join(dict.fromkeys(f"{bound:.0f}" for bound in (min(minutes), max(minutes))))
            listed = (", ".join(sorted(words, key=int)) for words in (seeds, iterations))
            rows.append([f"[{name}](../figures/{profile}/{path.stem}.png)", str(len(records)), *listed, device, spent])
    return table(["figure", "runs", "seeds", "iterations", "device", "minutes"], rows)


def table(heading: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (heading, ["---"] * len(heading), *rows))


def verdict(profile: str, rest: str) -> str:
    """Return the verdict on a part of a claim."""
    number, part = rest.split()
    return verdicts(profile, "*")[number, int(part)]


def measured(profile: str, rest: str) -> str:
    """Return what matches a pattern's group in the measured text of a part of a claim, with numbers shortened."""
    number, part, pattern = rest.split(maxsplit=2)
    text = next(row["measured"] for key, row, _ in judged(profile, "*") if key == (number, int(part)))
    found = re.findall(" ".join(pattern.split()), text)
    if not found:
        raise ValueError(f"pattern must be one that {number} of {profile} has, got {pattern!r}")
    return ", ".join(_shortened(word) for word in found)


def _shortened(word: str) -> str:
    """Return a number with two digits or decimals; other words, and numbers below 0.01, are unchanged."""
    return _two_digits(float(word)) if _NUMBER.fullmatch(word) and abs(float(word)) >= 0.01 else word


def final(name: str, condition: str) -> str:
    """Return the final test accuracies in some rows of a figure."""
    return ", ".join(f"{value:.2f}" for value in _selected(name, condition))


def bounds(name: str, condition: str) -> str:
    """Return the range of the final test accuracies in some rows of a figure."""
    values = _selected(name, condition)
    return f"{min(values):.2f} to {max(values):.2f}"


def lowest(name: str, condition: str) -> str:
    """Return the worst accuracies over attacks in the rows of a grid that fulfil the condition, in order."""
    return ", ".join(f"{value:.2f}" for value in pd.read_csv(FIGURES / f"{name}.csv").query(condition)["worst"])


def multiple(rule: str, n: str) -> str:
    """Return the range of a rule's time as a multiple of the mean's, over the benchmark's sizes of at least n."""
    cases = json.loads((ROOT / "benchmarks" / "bench.json").read_text(encoding="utf-8"))["rows"]
    seconds = {(row["n"], row["p"], row["rule"]): row["seconds"] for row in cases if row["by"] == OURS}
    ratios = [
        time / seconds[size_n, size_p, "mean"]
        for (size_n, size_p, name), time in seconds.items()
        if name == rule and size_n >= int(n)
    ]
    return " to ".join(dict.fromkeys(_two_digits(ratio) for ratio in (min(ratios), max(ratios))))


def _selected(name: str, condition: str) -> list[float]:
    last = ends(name)
    settings = [column for column in last if column not in ("variant", "label", "test_accuracy")]
    values = list(last.sort_values(settings).query(" ".join(condition.split()))["test_accuracy"])
    if not values:
        raise ValueError(f"condition must be one that a row of {name} fulfils, got {condition!r}")
    return values


def behind(name: str) -> str:
    """Return FA's distance to the best other rule in each setting of a figure."""
    last = ends(name)
    settings = [column for column in last if column not in ("variant", "label", "test_accuracy")]
    by = last.pivot_table("test_accuracy", settings, "variant").dropna(subset="fa")  # runs that are no other rule's
    gaps = by[[key for key in OTHER_RULES if key in by]].max(axis=1) - by["fa"]
    return ", ".join(f"{gap:.2f}" for gap in gaps)


TABLES = {"claims": claims, "accuracy": accuracy, "worst": worst, "distances": distances, "times": times, "runs": runs}
WORDS = {
    "verdict": verdict,
    "measured": measured,
    "final": final,
    "range": bounds,
    "lowest": lowest,
    "behind": behind,
    "multiple": multiple,
}

if __name__ == "__main__":
    main()
