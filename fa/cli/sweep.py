"""`fa sweep`: the runs behind a figure, without drawing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fa.cli.runs import check_device, resumable
from fa.cli.study_options import applicable_figures, study_options
from fa.experiments import ALL, figure_module, match_names
from fa.utils import plugins

if TYPE_CHECKING:
    from fa.experiments.runs.study import Study


@click.command()
@click.argument("figure", nargs=-1)
@study_options
@click.option("--shard", "part", metavar="I/K", help="Every K-th run, from the I-th: one of K machines.")
@click.option("--why", is_flag=True, help="List for each run whether it will run, and the reason; run nothing.")
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
    """Do the runs of each FIGURE: a name such as fig02 or extra03, or a family, fig (default), extra or supp.

    Finished runs are reused. With --rule or --attack, the folder is figures/PROFILE-custom. Failed runs are listed at
    the end, with exit code 1, and the others are saved.
    """
    check_device(device)
    names, _ = applicable_figures(match_names(figure or ("fig",), ALL), rules, attack)
    modules = {figure_module(name): options for name, options in names.items()}
    studies = {module: module.study(profile, out, device=device, **options) for module, options in modules.items()}
    if why:
        for study in studies.values():
            _explain(study, part)
        return
    succeeded = [_run(study, jobs, part, module) for module, study in studies.items()]  # a failure stops no other
    if not all(succeeded):
        raise click.exceptions.Exit(1)


def _run(study: Study, jobs: int | None, part: str | None, module: Any) -> bool:
    """Do the runs of a figure's study, those that follow from its results too, and return True if all succeeded."""
    succeeded = _sweep(study, jobs, part)
    if not succeeded or not hasattr(module, "tested"):
        return succeeded
    if part is not None:
        click.echo(f"{study.name}: its other runs follow from these; do them by fa reproduce {study.name}")
        return True
    return _sweep(module.tested(study, study.run(progress=False).table()), jobs)


def _sweep(study: Study, jobs: int | None, part: str | None = None) -> bool:
    """Do the runs of a study, print the outcome, and return True if all succeeded."""
    if study.live and study.shard(part):
        click.echo(f"{study.name}: trains when `fa reproduce` draws it; nothing to do")
        return True
    with resumable():
        outcomes = study.sweep(jobs, shard=part)
    failed = [outcome for outcome in outcomes if outcome.record is None]
    for outcome in failed:
        click.echo(f"fa: {study.name}: {outcome}", err=True)
    click.echo(f"{study.name}: {len(outcomes) - len(failed)} of {len(outcomes)} runs are in {study.store.root}")
    return not failed


def _explain(study: Study, part: str | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from fa.experiments.runs.sweep import differing_settings

    table = Table("rule", "f", "seed", "settings", "run", "reason", title=study.name)
    configs, store = study.shard(part), study.store
    settings = differing_settings(configs)
    for config in configs:
        finished = store.find(config) is not None
        rule, numbers = plugins.display_name(config.rule, config.options), (str(config.byzantine), str(config.seed))
        table.add_row(rule, *numbers, settings[config], "no" if finished else "yes", store.explain(config))
    console = Console(markup=False)
    if not console.is_terminal:
        console.width = 1000  # One line a run, for other programs.
    console.print(table)
    for variant, reason in study.skipped.items():
        click.echo(f"{variant} is excluded: {reason}")
