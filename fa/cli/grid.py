"""`fa grid`: every rule under every attack, from one file."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from fa.cli.torchrun import check_device


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path), help="Output folder.  [default: runs/NAME of the file]")
@click.option("--jobs", type=click.IntRange(min=1), help="Number of parallel runs.  [default: cores]")
@click.option("--device", help="cpu, cuda or cuda:N.  [default: the file's]")
@click.option("--dry-run", is_flag=True, help="Check the file and count the runs; run nothing.")
def grid(file: Path, out: Path | None, jobs: int | None, device: str | None, dry_run: bool) -> None:
    """Train with each rule, attack, number of Byzantine workers, split and seed of FILE, and draw heat maps.

    FILE is TOML, as examples/grid.toml. Finished runs in the output folder are reused, and the same command resumes.
    The last column of a heat map is the worst attack. Failed runs are listed at the end, with exit code 1.
    """
    from fa import models
    from fa.data.registry import REGISTRY, check_present
    from fa.experiments.runs.grid import read, run
    from fa.experiments.runs.store import RunStore

    check_device(device)
    plan = read(file, device=device)
    folder = out or Path("runs") / file.stem
    store = RunStore(folder / "records")
    tuning, reported = ({cell.config for cell in cells} for cells in (plan.tuning_cells(), plan.cells()))
    for pair, reason in plan.skipped().items():
        click.echo(f"excluded: {pair}: {reason}")
    for dataset, model in {(config.dataset, config.model) for config in reported}:
        check_present(dataset)
        channels, size, _ = REGISTRY[dataset].shape
        models.build(model, channels, REGISTRY[dataset].classes, size, seed=0)  # Fail before any run.
    if dry_run:
        click.echo(
            f"{len(tuning)} runs to choose learning rates, {len(reported)} runs to report; records: {store.root}"
        )
        return
    try:
        result = run(plan, store, jobs)
    except KeyboardInterrupt:
        click.echo("finished runs are saved; the same command resumes", err=True)
        raise
    from fa.experiments.reporting.grid_map import save  # imports pandas, which an invalid file must not wait for

    for outcome in result.failed:
        click.echo(f"fa: {outcome}", err=True)
    for rule, rate in result.rates.items():
        click.echo(f"learning rate of {rule}: {rate:g}")
    words = ["fa", "grid", str(file), *(["--out", str(out)] if out else []), *(["--device", device] if device else [])]
    about = {"command": shlex.join(words), "file": file.read_text(encoding="utf-8")}
    click.echo(f"heat maps, tables and records: {save(result, folder, file.stem, about)}")
    if result.failed:
        raise click.exceptions.Exit(1)
