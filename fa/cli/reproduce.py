"""`fa reproduce`: the notebooks of figures and theory, executed."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from fa.cli.torchrun import check_device
from fa.cli.user_rule_options import concerned, study_options


@click.command()
@click.argument("name", nargs=-1)
@study_options
@click.option("--finished", is_flag=True, help="Run nothing; show the finished runs and name the others.")
def reproduce(
    name: tuple[str, ...],
    profile: str,
    jobs: int | None,
    device: str | None,
    finished: bool,
    rules: tuple[str, ...],
    attack: str | None,
    out: Path | None,
) -> None:
    """Execute the notebook of each NAME, such as fig02 or theory01, or all of a family: fig (if no NAME is given),
    extra, supp or theory. Figures and executed notebooks go to figures/PROFILE; with --rule or --attack, to
    figures/PROFILE-custom.

    An option that a notebook has no parameter for does not concern it.
    """
    from fa.experiments.notebooks import execute, find
    from fa.experiments.paths import figures_dir

    check_device(device)
    paths = {path.stem: path for path in find(name)}
    names, given = concerned(list(paths), rules, attack)
    target = figures_dir(profile, out, custom=bool(given)).resolve()
    for stem, own in names.items():
        path = paths[stem]
        click.echo(f"{path.stem}, profile {profile}")
        try:
            execute(path, target, profile=profile, out=str(target), jobs=jobs, device=device, finished=finished, **own)
        except KeyboardInterrupt:
            # The cell that was cut off is an asyncio task that nobody waits for any more: no traceback of it.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            click.echo("finished runs are kept; the same command goes on from there", err=True)
            raise
    from fa.experiments.reporting.report import figure_files, write  # loads torch, for which a wrong name need not wait

    click.echo(f"figures and executed notebooks are in {target}")
    if figure_files(target):
        click.echo(f"what they say of the paper's claims is in {write(target)}")
