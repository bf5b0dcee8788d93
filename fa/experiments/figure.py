"""Saving a figure with all that is needed to trust it and to draw it again."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fa.experiments import figure_module
from fa.experiments.claims import Claim
from fa.experiments.paths import project
from fa.experiments.study import Results, Study
from fa.experiments.style import VARIANTS
from fa.training.records import hardware, versions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame


def save(figure: Figure, table: DataFrame, results: Results, claims: list[Claim]) -> Path:
    """Write NAME.png, NAME.pdf, NAME.csv (the tidy table), NAME.claims.csv and NAME.json (provenance); return the
    PNG's path.
    """
    study = results.study
    study.folder.mkdir(parents=True, exist_ok=True)
    base = study.folder / study.name
    figure.savefig(base.with_suffix(".png"), dpi=150, metadata={"Software": None})
    figure.savefig(base.with_suffix(".pdf"), metadata={"CreationDate": None, "Producer": None, "Creator": None})
    table.to_csv(base.with_suffix(".csv"), index=False, lineterminator="\n")
    claims_csv(claims, base.with_suffix(".claims.csv"))
    base.with_suffix(".json").write_text(json.dumps(provenance(results), indent=2) + "\n")
    return base.with_suffix(".png")


def claims_csv(claims: list[Claim], path: Path) -> None:
    """The claims as a file, for a report."""
    import pandas

    pandas.DataFrame([vars(claim) for claim in claims]).to_csv(path, index=False, lineterminator="\n")


def provenance(results: Results) -> dict[str, Any]:
    """Which runs a figure shows, and by what code, machine and when it was drawn."""
    study = results.study
    return {
        "figure": study.name,
        "profile": study.profile,
        "settings": study.title(),
        "command": _command(study),
        "runs": {study.store.key(config): json.loads(config.to_json()) for config in study.configs},
        "gaps": study.gaps,
        "commit": _commit(),
        "drawn": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(results.seconds, 1),
        "seconds_of_training": round(sum(_seconds(results)), 1),
        "versions": versions(),
        "hardware": hardware("cpu"),
    }


def _command(study: Study) -> str | None:
    """What draws this figure again; None where its settings are not the profile's."""
    as_it_comes = figure_module(study.name).study(study.profile)
    return f"fa reproduce --profile {study.profile} {study.name}" if study.configs == as_it_comes.configs else None


def _seconds(results: Results) -> list[float]:
    return [o.record.description["seconds"] for o in results.outcomes.values() if o.record is not None]


def _commit() -> str:
    """The checkout's commit, with "+" where files differ from it; "unknown" outside of git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=project(), capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def draw_curves(axes: Axes, table: DataFrame, variants: tuple[str, ...]) -> None:
    """Test accuracy against iterations, one line a variant: the mean over seeds, and their range as a band."""
    for key in variants:
        rows = table[table["variant"] == key]
        if len(rows):
            look = VARIANTS[key]
            draw_line(axes, rows, look.label, look.colour, look.marker, look.dashes)
    finish(axes)


def draw_line(axes: Axes, rows: DataFrame, label: str, colour: str, marker: str, dashes: tuple[int, ...] = ()) -> None:
    """One line: the mean over the seeds of `rows`, and their range as a band."""
    points = rows.groupby("iteration")["test_accuracy"].agg(["mean", "min", "max"])
    every = max(1, len(points) // 8)
    line = (0, dashes) if dashes else "-"
    look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5, "linestyle": line, "label": label}
    axes.plot(points.index, points["mean"], markevery=every, **look)
    if rows["seed"].nunique() > 1:
        axes.fill_between(points.index, points["min"], points["max"], color=colour, alpha=0.15, linewidth=0)


def finish(axes: Axes) -> None:
    """The axes' names and limits, the same in all figures of accuracy."""
    axes.set(xlabel="iteration", ylabel="test accuracy (fraction)", ylim=(0, 1))
    axes.set_xlim(left=0)
