"""`fa sweep`: the runs behind a figure, without drawing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fa.cli.torchrun import check_device
from fa.cli.user_rule_options import concerned, study_options
from fa.experiments import ALL, figure_module, match_names
from fa.utils import plugins

if TYPE_CHECKING:
    from fa.experiments.runs.study import Study


@click.command()
@click.argument("figure", nargs=-1)
@study_options
@click.option("--shard", "part", metavar="I/K", help="Only every K-th run, from the I-th: for K machines.")
@click.option("--why", is_flag=True, help="Say for each run why it will run or not, and run nothing.")
def sweep(
    figure: tuple[str, ...],
    profile: str,
    jobs: int | None,
    part: str | None,
    why: bool,
    device: str | None,
    rules: tuple[str, ...],
    attack: str | None,
    out: Path | None,
) -> None:
    """Do the runs behind each FIGURE, such as fig02 or extra03, or all of a family: fig (if none is named), extra or
    supp. Those that are finished are reused. With --rule or --attack, the folder is figures/PROFILE-custom.

    A run that fails is named at the end, with exit code 1; the others are done and kept.
    """
    check_device(device)
    names, _ = concerned(match_names(figure or ("fig",), ALL), rules, attack)
    studies = [figure_module(name).study(profile, out, device=device, **own) for name, own in names.items()]
    if why:
        for study in studies:
            _explain(study, part)
        return
    succeeded = [_run(study, jobs, part) for study in studies]  # a failure does not stop the next study
    if not all(succeeded):
        raise click.exceptions.Exit(1)


def _run(study: Study, jobs: int | None, part: str | None) -> bool:
    """Do the runs of a study and report; whether all of them succeeded."""
    try:
        outcomes = study.sweep(jobs, shard=part)
    except KeyboardInterrupt:
        click.echo("finished runs are kept; the same command goes on from there", err=True)
        raise
    if not outcomes and study.shard(part):
        click.echo(f"{study.name}: trains when it is drawn, by fa reproduce; there is nothing to do before")
        return True
    failed = [outcome for outcome in outcomes if outcome.record is None]
    for outcome in failed:
        click.echo(f"fa: {study.name}: {outcome}", err=True)
    click.echo(f"{study.name}: {len(outcomes) - len(failed)} of {len(outcomes)} runs are in {study.store.root}")
    return not failed


def _explain(study: Study, part: str | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("rule", "f", "seed", "run", "because", title=study.name)
    for config in study.shard(part):
        finished = study.store.find(config) is not None
        options = ", ".join(f"{name}={value}" for name, value in config.options.items())
        rule = plugins.display_name(config.rule) + (f" ({options})" if options else "")
        row = (rule, str(config.byzantine), str(config.seed), "no" if finished else "yes", study.store.explain(config))
        table.add_row(*row)
    console = Console()
    console.print(table, soft_wrap=not console.is_terminal)
    for variant, reason in study.skipped.items():
        click.echo(f"{variant} is left out: {reason}")
