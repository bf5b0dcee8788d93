"""`fa reproduce`: execute the notebooks of figures and theory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from fa.cli.notebook_parameters import command, parameter_option, parse, show
from fa.cli.runs import check_device, resumable
from fa.cli.study_options import applicable_figures, study_options

_FINISHED = (
    "Draw fig02, fig04, fig05, fig06a, fig06bcd, fig08, fig09, extra06, extra07, extra11 or extra12 from finished"
    " runs, and list the missing ones."
)


@click.command()
@click.argument("name", nargs=-1)
@study_options
@parameter_option
@click.option("--list", "listed", is_flag=True, help="List the notebooks with their parameters, and the variants.")
@click.option("--finished", is_flag=True, help=_FINISHED)
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
    --jobs and --device do not apply to notebooks without runs.
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
    arguments = {"profile": profile, "out": str(target), "jobs": jobs, "device": device, "finished": finished}
    for stem, options in names.items():
        click.echo(f"{stem}, profile {profile}")
        with resumable(), _without_asyncio_errors():
            execute(paths[stem], target, **arguments, **options, **values)
        if values:
            again = command(profile, stem, values, options.get("rules", ()), options.get("attack"), device, finished)
            record_parameters(target / f"{stem}.json", again, values)
    _report(target)


@contextmanager
def _without_asyncio_errors() -> Iterator[None]:
    """Hide the traceback of an interrupted cell, which is an asyncio task without a waiter."""
    try:
        yield
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise


def _report(target: Path) -> None:
    """Name the folder, and write the verdicts on the figures in it."""
    from fa.experiments.reporting.report import figure_files, write  # imports torch

    click.echo(f"figures and executed notebooks: {target}")
    if figure_files(target):
        click.echo(f"verdicts on the paper's claims: {write(target)}")
