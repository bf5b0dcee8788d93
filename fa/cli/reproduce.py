"""`fa reproduce`: execute the notebooks of figures and theory."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from fa.cli.notebook_parameters import command, parameter_option, parse, show
from fa.cli.torchrun import check_device
from fa.cli.user_rule_options import applicable_figures, study_options


@click.command()
@click.argument("name", nargs=-1)
@study_options
@parameter_option
@click.option("--list", "listed", is_flag=True, help="List the notebooks with their parameters, and the variants.")
@click.option("--finished", is_flag=True, help="Draw from finished runs only, and list the missing ones.")
def reproduce(
    name: tuple[str, ...],
    profile: str,
    jobs: int | None,
    device: str | None,
    finished: bool,
    listed: bool,
    parameters: tuple[tuple[str, str], ...],
    rules: tuple[str, ...],
    attack: str | None,
    out: Path | None,
) -> None:
    """Execute each notebook NAME, such as fig02 or theory01, or a family: fig (default), extra, supp or theory.

    Figures and executed notebooks go to figures/PROFILE; with -p, --rule or --attack, to figures/PROFILE-custom.
    Options without a parameter in a notebook do not apply to it.
    """
    from fa.experiments.notebooks import execute, find, record_parameters
    from fa.experiments.paths import figures_dir

    if listed:
        show(find(name or ("fig", "supp", "extra", "theory", "explore", "augmentation")))
        return
    if not finished:  # Runs that a GPU has finished can be drawn without one.
        check_device(device)
    paths = {path.stem: path for path in find(name)}
    names, custom = applicable_figures(list(paths), rules, attack)
    values = parse(parameters, [paths[stem] for stem in names])
    target = figures_dir(profile, out, custom=bool(custom or values)).resolve()
    for stem, options in names.items():
        path = paths[stem]
        click.echo(f"{path.stem}, profile {profile}")
        try:
            arguments = {"profile": profile, "out": str(target), "jobs": jobs, "device": device, "finished": finished}
            execute(path, target, **arguments, **options, **values)
        except KeyboardInterrupt:
            # The interrupted cell is an asyncio task without a waiter, which would log a traceback.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            click.echo("finished runs are saved; the same command resumes", err=True)
            raise
        if values:
            again = command(profile, stem, values, options.get("rules", ()), options.get("attack"), device)
            record_parameters(target / f"{stem}.json", again, values)
    from fa.experiments.reporting.report import (  # imports torch, which an invalid name must not wait for
        figure_files,
        write,
    )

    click.echo(f"figures and executed notebooks: {target}")
    if figure_files(target):
        click.echo(f"verdicts on the paper's claims: {write(target)}")
