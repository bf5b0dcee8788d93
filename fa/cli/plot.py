"""`fa plot`: a picture of one run and of its workers' weights."""

from __future__ import annotations

from pathlib import Path

import click

from fa.cli.paths import UserPath
from fa.utils.validation import check


@click.command()
@click.argument("folder", type=UserPath())
@click.option("--out", type=UserPath(dir_okay=False), help="Output file.  [default: FOLDER/run.png]")
def plot(folder: Path, out: Path | None) -> None:
    """Draw the run in FOLDER, which `fa train --out FOLDER` or a sweep wrote.

    The picture has accuracy and loss, and for every worker and iteration its weight, its explained variance, and
    whether it was excluded.
    """
    from fa.experiments.reporting.artifacts import save_png
    from fa.experiments.reporting.run_plot import draw, read

    target = out or folder / "run.png"
    fits = out is None or (target.suffix == ".png" and target.parent.is_dir())
    check("out", str(target), fits, "a .png file in an existing folder")
    save_png(draw(read(folder)), target)
    click.echo(target)
