"""`fa report`: the verdicts on the paper's claims, on one page."""

from __future__ import annotations

from pathlib import Path

import click

from fa.cli.paths import UserPath
from fa.cli.study_options import profile_option


@click.command()
@profile_option
@click.option("--out", type=UserPath(), help="Folder of the figures.  [default: figures/PROFILE]")
def report(profile: str, out: Path | None) -> None:
    """Write REPORT.md and REPORT.html beside the figures of a profile."""
    from fa.experiments.paths import figures_dir
    from fa.experiments.reporting.report import write

    click.echo(write(figures_dir(profile, out).resolve()))
