"""`fa sweep`: the runs behind a figure, without drawing it."""

from __future__ import annotations

from pathlib import Path

import click

from fa.experiments import FIGURES, figure_module
from fa.experiments.profiles import PROFILES


@click.command()
@click.argument("figure", nargs=-1)
@click.option("--profile", type=click.Choice(list(PROFILES)), default="quick", show_default=True, help="Size.")
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Runs at a time; as many as cores and memory allow if left out."
)
@click.option("--shard", "part", metavar="I/K", help="Only every K-th run, from the I-th: for K machines.")
@click.option("--why", is_flag=True, help="Say for each run why it will run or not, and run nothing.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder in place of figures/PROFILE.")
def sweep(
    figure: tuple[str, ...], profile: str, jobs: int | None, part: str | None, why: bool, out: Path | None
) -> None:
    """Do the runs behind each FIGURE (fig02, fig04; all if none is named), reusing those that are finished."""
    studies = [figure_module(name).study(profile, out) for name in figure or FIGURES]
    for study in studies:
        if why:
            _explain(study, part)
        else:
            study.run(jobs, part=part)
            click.echo(f"{study.name}: its runs are in {study.store.root}")


def _explain(study: object, part: str | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from fa.experiments.study import Study
    from fa.experiments.sweep import shard

    assert isinstance(study, Study)
    table = Table("rule", "f", "seed", "run", "because", title=study.name)
    for config in study.configs if part is None else shard(study.configs, part):
        finished = study.store.find(config) is not None
        options = ", ".join(f"{name}={value}" for name, value in config.options.items())
        rule = f"{config.rule} ({options})" if options else config.rule
        row = (rule, str(config.byzantine), str(config.seed), "no" if finished else "yes", study.store.why(config))
        table.add_row(*row)
    console = Console()
    console.print(table, soft_wrap=not console.is_terminal)
    for variant, reason in study.gaps.items():
        click.echo(f"{variant} is left out: {reason}")
