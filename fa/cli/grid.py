"""`fa grid`: every rule under every attack, from one file."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fa.cli.paths import UserPath
from fa.cli.runs import check_device, resumable

if TYPE_CHECKING:
    from fa.experiments.runs.grid import GridResult
    from fa.training import TrainConfig


@click.command()
@click.argument("file", type=UserPath(dir_okay=False))
@click.option("--out", type=UserPath(), help="Output folder.  [default: runs/NAME of the file]")
@click.option("--jobs", type=click.IntRange(min=1), help="Number of parallel runs.  [default: cores]")
@click.option("--device", help="cpu, cuda or cuda:N.  [default: the file's]")
@click.option("--dry-run", is_flag=True, help="Check the file and count the runs; run nothing.")
def grid(file: Path, out: Path | None, jobs: int | None, device: str | None, dry_run: bool) -> None:
    """Train with each rule, attack, number of Byzantine workers, split and seed of FILE, and draw heat maps.

    FILE is TOML, as examples/grid.toml. Finished runs in the output folder are reused, and the same command resumes.
    The last column of a heat map is the worst attack. Failed runs are listed at the end, with exit code 1.
    """
    from fa.experiments.runs.grid import read, run
    from fa.experiments.runs.store import RunStore

    plan, text = read(file, device=device)
    folder = out or Path("runs") / file.stem
    store = RunStore(folder / "records")
    for pair, reason in plan.skipped().items():
        click.echo(f"excluded: {pair}: {reason}")
    tuning, reported = ({cell.config for cell in cells} for cells in (plan.tuning_cells(), plan.cells()))
    _check_surroundings(reported)
    if dry_run:
        click.echo(
            f"{len(tuning)} runs to choose learning rates, {len(reported)} runs to report; records: {store.root}"
        )
        return
    import fa.experiments.reporting.grid_map  # noqa: F401 (a missing pandas is reported before the runs)

    with resumable():
        result = run(plan, store, jobs)
    words = ["fa", "grid", str(file), *(["--out", str(out)] if out else []), *(["--device", device] if device else [])]
    _report(result, folder, file.stem, {"command": shlex.join(words), "file": text})


def _check_surroundings(configs: Collection[TrainConfig]) -> None:
    """Raise an error for a missing device or data set, or an unknown model, before any run would."""
    from fa import models
    from fa.data.registry import REGISTRY, check_present

    for name in {config.device for config in configs}:
        check_device(name)
    for dataset, model in {(config.dataset, config.model) for config in configs}:
        check_present(dataset)
        models.build(model, REGISTRY[dataset].shape, REGISTRY[dataset].classes, seed=0)


def _report(result: GridResult, folder: Path, name: str, about: dict[str, str]) -> None:
    """Print failed runs and learning rates, and draw the heat maps."""
    from fa.experiments.reporting.grid_map import save

    for outcome in result.failed:
        click.echo(f"fa: {outcome}", err=True)
    for rule, rate in result.rates.items():
        click.echo(f"learning rate of {rule}: {rate:g}")
    click.echo(f"heat maps, tables and records: {save(result, folder, name, about)}")
    if result.failed:
        raise click.exceptions.Exit(1)
