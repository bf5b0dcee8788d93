"""Report of a profile: verdicts on the paper's claims, and every figure with its settings and provenance.

It is generated only from the files that the notebooks have written to the profile's folder.
"""

from __future__ import annotations

import csv
import html
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from fa.experiments.paths import figures_dir
from fa.experiments.reporting.claims import HOLDS, IN_PART, LEARNED, NOT, UNTESTABLE
from fa.experiments.reporting.equivalence import LEVEL
from fa.experiments.runs.profiles import MARGIN, MARGINS
from fa.utils.files import write_atomically
from fa.utils.validation import check


class Statement(NamedTuple):
    """A claim of the paper.

    Attributes:
        words: The claim in short.
        tested_by: Short names of the figures and theory notebooks that test it.
    """

    words: str
    tested_by: str


STATEMENTS = {
    "C1": Statement("one Byzantine worker heavily impacts the mean", "fig02"),
    "C2": Statement("explained variances spike near 1 under FA's subspace, unlike under the mean", "fig03"),
    "C3": Statement("FA is more robust than others at f = 1, 2, 3; one Byzantine worker ruins Trimmed Mean", "fig04"),
    "C4": Statement("about 20% better accuracy", "fig04"),
    "C5": Statement("significantly better accuracy at larger batch sizes", "fig05"),
    "C6": Statement("under 10% packet loss a higher accuracy, in fewer iterations", "fig06a"),
    "C7": Statement("resilient as p grows with f fixed", "fig06bcd"),
    "C8": Statement("more stable with augmented data", "fig07"),
    "C9": Statement(
        "a range of lambda improves FA or does no harm; lambda interpolates Multi-Krum and Bulyan", "fig08"
    ),
    "C10": Statement("feasible at p = 60, f up to 14", "fig09"),
    "C11": Statement("a costlier iteration, O(n N (sum k_i)^2), and a better time to accuracy", "fig10, theory07"),
    "C12": Statement("better accuracy and less communication at once", "fig10"),
    "C13": Statement("IRLS converges to second-order points, slower for higher a than 2", "theory06"),
    "C14": Statement("Flag Median is the maximum likelihood estimate of Beta(1, 1/2) with a = 2", "theory02"),
    "C15": Statement("FA is a right multiplication through the Lagrange multipliers", "theory06"),
    "C16": Statement("a quantised SVD is accurate enough to offload to a switch", "theory07"),
    "C17": Statement("significantly enhances the robustness of other Byzantine-resilient rules", "extra11"),
    "C18": Statement("the subspace gives a sparse linear combination of the gradients", "extra11"),
}
"""The paper's claims, with the numbers of the figures' tables."""

REPRODUCED = {HOLDS: "reproduced", IN_PART: "in part", NOT: "not reproduced", UNTESTABLE: "not testable"}
"""Verdicts on theory, and on two seeds or more at the paper's size."""

ONE_RUN = {
    HOLDS: "one run: holds",
    IN_PART: "one run: in part",
    NOT: "one run: does not hold",
    UNTESTABLE: "not testable",
}
"""Verdicts on one seed at the paper's size."""

REDUCED = {
    HOLDS: "holds here",
    IN_PART: "holds here in part",
    NOT: "does not hold here",
    UNTESTABLE: "not testable here",
}
"""Verdicts on runs smaller than the paper's, which can neither reproduce nor refute a claim."""

_P_VALUE = re.compile(r"\(p = ([^()\s,]+)\)")  # p alone is the number of workers.

FAMILIES = ("fig", "supp", "extra")  # In the order of the report: the paper, its supplement, our extras.


def write(folder: Path) -> Path:
    """Write REPORT.md and REPORT.html into a profile's folder.

    Theory does not depend on the profile. If the folder has no theory notebooks, the report uses those of `quick`.

    Args:
        folder: Folder of the profile's figures.

    Returns:
        The path of REPORT.md.

    Raises:
        ValueError: The folder has no figure, or the claims or provenance of one are missing or damaged.
    """
    figures = [_read(path) for path in figure_files(folder)]
    check("the folder", str(folder), bool(figures), "one with figures, which fa reproduce draws")
    profile = figures[0]["profile"]  # A folder has the figures of one profile.
    heading = folder.name if folder.name.startswith(profile) else profile
    text = "\n".join(_lines(heading, profile, figures, [_read(path) for path in _theory(folder)]))
    for name, content in (("REPORT.md", text), ("REPORT.html", _page(heading, text))):
        write_atomically(folder / name, content)
    return folder / "REPORT.md"


def figure_files(folder: Path) -> list[Path]:
    """Find the provenance files of the figures in a profile's folder.

    Args:
        folder: Folder such as figures/quick.

    Returns:
        The files NAME.json in the order of the report, which begins with the paper's figures and ends with the extras.
        Empty if the folder does not exist.
    """
    return [path for family in FAMILIES for path in sorted(folder.glob(f"{family}[0-9]*.json"))]


def _theory(folder: Path) -> list[Path]:
    """Return those of the folder, else those of `quick` beside it, else the committed ones."""
    folders = (folder, folder.parent / "quick", figures_dir("quick"))
    return next((found for place in folders if (found := sorted(place.glob("theory*.json")))), [])


def _read(path: Path) -> dict[str, Any]:
    """Read a figure's provenance and claims."""
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        with path.with_suffix(".claims.csv").open(newline="", encoding="utf-8") as file:
            claims = list(csv.DictReader(file))
        whole = all(None not in (*claim, *claim.values()) for claim in claims)
        check("its claims", "cut short", whole, "rows of as many cells as there are columns")
        return about | {"claims": claims, "tables": _tables(path)}
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path.stem} must have its .json and .claims.csv, whole; draw it again ({error})") from error


def _tables(path: Path) -> list[str]:
    """Return the names of a figure's further tables, on which its claims also depend."""
    return sorted(csv.name for csv in path.parent.glob(f"{path.stem}.*.csv") if not csv.name.endswith(".claims.csv"))


def _lines(heading: str, profile: str, figures: list[dict[str, Any]], theory: list[dict[str, Any]]) -> list[str]:
    return [
        f"# What reproduces, at profile {heading}",
        "",
        "The table has each claim of the paper, what was measured, and the verdict. A verdict follows from the numbers"
        " by the rules of [docs/claims.md](../../docs/claims.md). `fa report` writes this"
        " page; each figure names the command that draws it again.",
        "",
        *_about_size(figures),
        "",
        *_summary(figures, theory),
        "",
        f'Accuracies closer than {MARGINS.get(profile, MARGIN):g} are equal. With two seeds or more, "better" also'
        f" needs a paired t test at level {LEVEL:g}. Where no run exceeds {LEARNED:g} times the accuracy of chance,"
        " accuracy cannot tell rules apart. A statement about several cases holds in part if it holds in some of them.",
        *_about_settings(figures),
        "",
        "| | the paper | measured here | figure | verdict |",
        "|---|---|---|---|---|",
        *_claims([*figures, *theory]),
        "",
        *_findings(figures),
        *(line for figure in figures for line in _section(figure)),
        *(line for notebook in theory for line in _short_section(notebook)),
    ]


def _summary(figures: list[dict[str, Any]], theory: list[dict[str, Any]]) -> list[str]:
    """Return how many parts of the paper's claims have each verdict, and which claims have no test."""
    tested = {claim["number"] for figure in (*figures, *theory) for claim in figure["claims"]}
    untested = [number for number in STATEMENTS if number not in tested]
    return [
        *_counts("parts of claims that these runs test", figures),
        *([f"- **not tested at this profile:** {', '.join(untested)}"] if untested else []),
        "",
        *_counts("parts of claims on theory and cost, for which the paper has no experiment", theory),
    ]


def _counts(what: str, figures: list[dict[str, Any]]) -> list[str]:
    """Return how many parts of claims have each verdict."""
    claims = [(figure, claim) for figure in figures for claim in figure["claims"] if claim["number"] in STATEMENTS]
    counts = Counter(verdict_text(claim["verdict"], figure) for figure, claim in claims)
    order = [words[verdict] for words in (REDUCED, ONE_RUN, REPRODUCED) for verdict in words]
    lines = [f"- **{words}:** {counts[words]}" for words in dict.fromkeys([*order, *counts]) if counts[words]]
    return [f"Of {len(claims)} {what}:", "", *lines]


def _about_size(figures: list[dict[str, Any]]) -> list[str]:
    if any(map(_has_paper_size, figures)):
        return ["These runs have the paper's size. Curves with other settings have names that say so."]
    return [
        "These runs are smaller than the paper's. They show what holds at this size, and can neither reproduce a claim"
        " nor fail to."
    ]


def _about_settings(figures: list[dict[str, Any]]) -> list[str]:
    """Return a warning if some figures have other settings than the profile."""
    changed = [figure["figure"] for figure in figures if _is_changed(figure)]
    if not changed:
        return []
    return ["", f"Figures with other settings, or with a part of the profile's runs: {', '.join(changed)}."]


def _claims(figures: list[dict[str, Any]]) -> list[str]:
    """Return a row for each tested part of a claim, and one for each claim without a test."""
    rows = _rows(figures)
    untested = {
        number: f"| {number} | {said.words} | not tested at this profile: see {said.tested_by} | | |"
        for number, said in STATEMENTS.items()
    }
    return [line for number, said in untested.items() for line in rows.get(number, [said])]


def _is_changed(figure: dict[str, Any]) -> bool:
    """Return True if a figure has other settings than its profile, or only a part of the profile's cases."""
    return figure["command"] is None or bool(figure.get("parameters")) or figure.get("attack") is not None


def _has_paper_size(figure: dict[str, Any]) -> bool:
    return bool(figure["profile"] == "paper" and not _is_changed(figure))


def verdict_text(verdict: str, figure: dict[str, Any]) -> str:
    """Return a verdict in the words of the size that it was reached at.

    Args:
        verdict: One of the constants of `fa.experiments.reporting.claims`.
        figure: The provenance of the figure or notebook that has the claim.
    """
    if figure["figure"].startswith("theory"):
        words = REPRODUCED
    elif not _has_paper_size(figure):
        words = REDUCED
    else:
        words = REPRODUCED if figure.get("seeds", 1) > 1 else ONE_RUN
    return words.get(verdict, verdict)


def _findings(figures: list[dict[str, Any]]) -> list[str]:
    """Return the extras' own statements as a table; empty if there are none."""
    lines = [line for number, rows in _rows(figures).items() if number not in STATEMENTS for line in rows]
    if not lines:
        return []
    return [
        "## Beyond the paper",
        "",
        "These statements are not the paper's, but its claims depend on them. Their rules are fixed in the code too.",
        "",
        "| | statement | measured here | figure | verdict |",
        "|---|---|---|---|---|",
        *lines,
        "",
    ]


def _rows(figures: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the rows of all figures by number of the claim."""
    rows: dict[str, list[str]] = {}
    for figure in figures:
        name = figure["figure"]
        for claim in figure["claims"]:
            link = f"[{name.partition('_')[0]}](#{name})" + (", subset" if figure.get("unfinished") else "")
            cells = (
                claim["number"],
                claim["words"],
                _P_VALUE.sub(r"(p-value \1)", claim["measured"]),
                link,
                f"**{verdict_text(claim['verdict'], figure)}**",
            )
            row = "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
            rows.setdefault(claim["number"], []).append(row)
    return rows


def _section(figure: dict[str, Any]) -> list[str]:
    name, hardware = figure["figure"], "; ".join(_machine(machine) for machine in figure["hardware"])
    command = f"`{figure['command']}`" if figure["command"] else "its notebook with other parameters"
    versions = "; ".join(", ".join(f"{k} {v}" for k, v in found.items()) for found in figure["versions"])
    settings = figure["settings"].replace("\n", "; ")
    tables = [f"{name}.csv", *figure["tables"]]
    numbers = ", ".join(f"[{table}]({table})" for table in tables)
    lines = [
        f"![{name}]({name}.png)",
        "",
        f"- {settings}",
        f"- {len(figure['runs'])} runs, {figure['seconds_of_training']:.0f} s of training on {hardware}; {versions}",
        f"- drawn {figure['drawn']} at commit {figure['commit']}, by {command}",
        f"- numbers: {numbers}; code: notebooks/{name}.ipynb",
    ]
    return [*_heading(name), *_headlines(figure), "", *lines, ""]


def _headlines(figure: dict[str, Any]) -> list[str]:
    """Return what a figure is about: each of its claims in words, with the verdict beside it."""
    return [
        f"- {claim['number']}, {claim['words']}: **{verdict_text(claim['verdict'], figure)}**"
        for claim in figure["claims"]
    ]


def _heading(name: str) -> list[str]:
    return [f'<a id="{name}"></a>', "", f"## {name}", ""]


def _short_section(notebook: dict[str, Any]) -> list[str]:
    """Return the section of a theory notebook, which holds its own pictures."""
    name, hardware = notebook["figure"], "; ".join(_machine(machine) for machine in notebook["hardware"])
    about = f"executed {notebook['drawn']} at commit {notebook['commit']}, by `{notebook['command']}`, on {hardware}"
    return [*_heading(name), *_headlines(notebook), f"- notebooks/{name}.ipynb, {about}", ""]


def _machine(hardware: dict[str, Any]) -> str:
    kind = f", {hardware['instructions']}" if "instructions" in hardware else ""  # Older records lack it.
    return f"{hardware['cores']} cores of {hardware['cpu']} ({hardware['device']}{kind})"


_STYLE = """body { font: 15px/1.45 sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse }
td, th { border: 1px solid #ccc; padding: .3em .5em; text-align: left; vertical-align: top; overflow-wrap: anywhere }
img { max-width: 100% } code { background: #f3f3f3; overflow-wrap: anywhere }
td:first-child, td:nth-child(4) { white-space: nowrap }
a, li { overflow-wrap: anywhere } summary { cursor: pointer; color: #555 }
.holds { background: #cfe3f5 } .part { background: #fdf1c2 } .fails { background: #f6cfae }
.open { background: #e6e6e6 }
@media (max-width: 45em) {
  table, tbody, tr, td { display: block } thead { display: none } tr { margin-bottom: 1em }
}"""
"""Backgrounds are blue, yellow, orange and grey, which color-blind readers can tell; each also has a sign."""

_SIGNS = {HOLDS: ("holds", "&#10003;"), IN_PART: ("part", "&#8764;"), NOT: ("fails", "&#10007;")}
_LOOKS = {words[verdict]: look for verdict, look in _SIGNS.items() for words in (REPRODUCED, ONE_RUN, REDUCED)}
_OPEN = ("open", "?")


def _page(profile: str, text: str) -> str:
    import mistune

    # Texts of figures are escaped, so that a copied figure cannot bring a script; only our anchors are markup.
    escaped = str(mistune.create_markdown(escape=True, plugins=["table"])(text))
    body = _styled(re.sub(r"&lt;a id=&quot;([\w.-]+)&quot;&gt;&lt;/a&gt;", r'<a id="\1"></a>', escaped))
    title = html.escape(f"fa, profile {profile}")
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{_STYLE}\n</style></head>\n<body>\n{body}</body>\n</html>\n"
    )


def _styled(body: str) -> str:
    """Fold the numbers of each claim, and give each verdict in a table its color and sign."""

    def row(match: re.Match[str]) -> str:
        number, words, measured, figure, verdict = match.groups()
        kind, sign = _LOOKS.get(verdict, _OPEN)
        return (
            f"<tr>\n  <td>{number}</td>\n  <td>{words}</td>\n"
            f"  <td><details><summary>numbers</summary>{measured}</details></td>\n  <td>{figure}</td>\n"
            f'  <td class="{kind}">{sign} <strong>{verdict}</strong></td>\n</tr>'
        )

    cells = r"\s*".join(r"<td>(.*?)</td>" for _ in range(4))
    return re.sub(rf"<tr>\s*{cells}\s*<td><strong>(.*?)</strong></td>\s*</tr>", row, body)
