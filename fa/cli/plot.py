"""`fa plot`: a picture of one run, and of whom its rule trusted."""

from __future__ import annotations

from pathlib import Path

import click

from fa.utils.validation import check


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File in place of FOLDER/run.png.")
def plot(folder: Path, out: Path | None) -> None:
    """Draw the run that `fa train --out FOLDER` or a sweep left in FOLDER: accuracy, loss, and for every worker and
    iteration its weight and explained variance, where the rule has them, and who was left out.
    """
    from fa.experiments.reporting.artifacts import save_png
    from fa.experiments.reporting.run_plot import draw, read

    figure = draw(read(folder))
    target = out or folder / "run.png"
    check("--out", str(target), target.parent.is_dir(), "a file in a folder that is there")
    save_png(figure, target)
    click.echo(target)
