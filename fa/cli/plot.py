"""`fa plot`: a picture of one run and of its workers' weights."""

from __future__ import annotations

from pathlib import Path

import click

from fa.utils.validation import check


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Output file.  [default: FOLDER/run.png]")
def plot(folder: Path, out: Path | None) -> None:
    """Draw the run in FOLDER, which `fa train --out FOLDER` or a sweep wrote.

    The picture has accuracy and loss, and for every worker and iteration its weight, its explained variance, and
    whether it was excluded.
    """
    from fa.experiments.reporting.artifacts import save_png
    from fa.experiments.reporting.run_plot import draw, read

    figure = draw(read(folder))
    target = out or folder / "run.png"
    check("--out", str(target), target.parent.is_dir(), "a file in an existing folder")
    save_png(figure, target)
    click.echo(target)
