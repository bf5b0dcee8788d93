"""`fa report`: which of the paper's claims hold, on one page."""

from __future__ import annotations

from pathlib import Path

import click

from fa.experiments.runs.profiles import PROFILES


@click.command()
@click.option("--profile", type=click.Choice(list(PROFILES)), default="quick", show_default=True, help="Size.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of figures in place of figures/PROFILE.")
def report(profile: str, out: Path | None) -> None:
    """Write REPORT.md and REPORT.html beside the figures that fa reproduce has drawn."""
    from fa.experiments.paths import figures_dir
    from fa.experiments.reporting.report import write

    click.echo(write(figures_dir(profile, out).resolve()))
