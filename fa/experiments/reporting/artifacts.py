"""Save a figure with its tables, claims and provenance."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fa.experiments.paths import figures_dir, project_root
from fa.experiments.reporting.claims import Claim, claims_frame
from fa.experiments.runs.results import Results
from fa.experiments.runs.study import Study, reproduce_command
from fa.training.config import TrainConfig
from fa.training.records import hardware, versions
from fa.utils.files import new_file, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


def save(figure: Figure, table: DataFrame, results: Results, claims: list[Claim], **more: DataFrame) -> Path:
    """Write a figure with its table, claims and provenance.

    The files are NAME.png, NAME.pdf, NAME.csv, NAME.claims.csv, NAME.json and NAME.KEYWORD.csv for each further table.
    Further tables of an earlier drawing are removed.

    Args:
        figure: The figure.
        table: Its tidy table.
        results: The runs that it shows.
        claims: Its claims.
        **more: Further tables by keyword.

    Returns:
        The path of the PNG.
    """
    study = results.study
    study.folder.mkdir(parents=True, exist_ok=True)
    tables = {"": table, **{f".{name}": rows for name, rows in more.items()}, ".claims": claims_frame(claims)}
    path = save_files(figure, study.folder / study.name, tables, provenance(results))
    for old in study.folder.glob(f"{study.name}.*.csv"):
        if old.name.removeprefix(study.name).removesuffix(".csv") not in tables:
            old.unlink()  # of an earlier drawing, such as one of all runs
    _print_place(path)
    return path


def save_files(figure: Figure, base: Path, tables: Mapping[str, DataFrame], about: Mapping[str, Any]) -> Path:
    """Write a figure as PNG and PDF, its tables as CSV, and its provenance as JSON.

    Args:
        figure: The figure.
        base: Path of the files without a suffix.
        tables: Tables by the end of their name, such as "" or ".claims".
        about: The provenance.

    Returns:
        The path of the PNG.
    """
    places = {end: base.with_name(base.name + end) for end in (".png", ".pdf", ".json")}  # The name may have dots.
    save_png(figure, places[".png"])
    save_pdf(figure, places[".pdf"])
    for end, table in tables.items():
        save_csv(table, base.with_name(f"{base.name}{end}.csv"))
    write_atomically(places[".json"], json.dumps(about, indent=2) + "\n")
    return places[".png"]


def _print_place(path: Path) -> None:
    """Print where a file is, unless the notebook runs in its own folder, as `fa reproduce` and `make lab` run it."""
    if Path.cwd().resolve() != (project_root() / "notebooks").resolve():
        print(f"written to {path.resolve()}")


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, without matplotlib's version: equal figures give equal files.

    Args:
        figure: The figure, which is written with 150 pixels per inch.
        path: File to create or overwrite, in a folder that exists.
    """
    with new_file(path) as unfinished:
        figure.savefig(unfinished, dpi=150, metadata={"Software": None})


def save_pdf(figure: Figure, path: Path) -> None:
    """Write a figure as PDF, without date and program: equal figures give equal files.

    Args:
        figure: The figure.
        path: File to create or overwrite, in a folder that exists.
    """
    with new_file(path) as unfinished:
        figure.savefig(unfinished, metadata={"CreationDate": None, "Producer": None, "Creator": None})


def save_csv(table: DataFrame, path: Path) -> None:
    """Write a table as CSV, with the same line ends on every system.

    Args:
        table: The table. Its index is not written.
        path: File to create or overwrite, in a folder that exists.
    """
    write_atomically(path, table.to_csv(index=False, lineterminator="\n"))


def save_claims(name: str, profile: str, claims: list[Claim], out: str | Path | None = None) -> list[Claim]:
    """Write NAME.claims.csv and NAME.json of a notebook without a figure.

    Args:
        name: Name of the notebook.
        profile: Name of the profile.
        claims: Its claims.
        out: Folder; default: the profile's.

    Returns:
        The claims.
    """
    folder = figures_dir(profile, out)
    folder.mkdir(parents=True, exist_ok=True)
    save_csv(claims_frame(claims), folder / f"{name}.claims.csv")
    about = {
        **_origin(name, profile, reproduce_command(profile, name)),
        "versions": [versions()],
        "hardware": [hardware("cpu")],
    }
    write_atomically(folder / f"{name}.json", json.dumps(about, indent=2) + "\n")
    _print_place(folder / f"{name}.claims.csv")
    return claims


def provenance(results: Results) -> dict[str, Any]:
    """Collect the origin of a figure: its runs, their versions and hardware, and the commit and time of drawing.

    Args:
        results: Results of the figure's study.

    Returns:
        The content of NAME.json. "runs" has each configuration by the name of its record. "seconds" is the time until
        all runs were finished, and "seconds_of_training" the sum over all runs. "versions" and "hardware" are lists,
        because runs may differ. "command" is None if no command draws the same runs.
    """
    study = results.study
    return {
        **_origin(study.name, study.profile, study.command),
        "settings": study.title(),
        "attack": study.attack,
        "runs": dict(_run(results, config) for config in study.configs),
        "skipped": study.skipped,
        "unfinished": list(study.unfinished),
        "seeds": _fewest_seeds(study),
        "initial_accuracy": results.initial_accuracies() if results.outcomes else {},
        "seconds": round(results.seconds, 1),
        "seconds_of_training": round(sum(run["seconds"] for run in results.descriptions), 1),
        "versions": _distinct(run["versions"] for run in results.descriptions),
        "hardware": _distinct(run["hardware"] for run in results.descriptions),
    }


def _origin(name: str, profile: str, command: str | None) -> dict[str, Any]:
    """Return what every NAME.json has: the command that draws it, and the commit and time of drawing."""
    return {
        "figure": name,
        "profile": profile,
        "command": command,
        "commit": _commit(),
        "drawn": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _run(results: Results, config: TrainConfig) -> tuple[str, dict[str, Any]]:
    """Return the key and the configuration of the run that a figure shows for a configuration."""
    outcome = results.outcomes.get(config)
    if outcome is None or outcome.record is None:  # The run has no record.
        return results.study.store.key(config), json.loads(config.to_json())
    return outcome.record.folder.name, outcome.record.description["config"]


def _fewest_seeds(study: Study) -> int:
    """Return the number of seeds of the label with the fewest; its cases may have different options."""
    tests = [cell for cell in study.cells if not cell.config.validation] or study.cells  # without those of a tuning
    pairs = {(str(cell.case), cell.config.seed) for cell in tests}
    return min(Counter(label for label, _ in pairs).values())


def _distinct(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({json.dumps(item, sort_keys=True): item for item in items}.values())


def _commit() -> str:
    """Return the commit, with "+" if tracked files except figures differ from it; "unknown" outside of git."""
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)figures")
        return _git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=project_root(), capture_output=True, text=True, check=True)
    return done.stdout.strip()
