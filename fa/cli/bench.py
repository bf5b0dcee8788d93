"""`fa bench`: how long the rules take."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fa.cli.user_rule_options import rule_option
from fa.utils.files import write_atomically
from fa.utils.validation import check

if TYPE_CHECKING:
    from fa.bench.cases import Row


@click.command()
@click.option("--n", "sizes", type=click.IntRange(min=1), multiple=True, help="Numbers a gradient; may be repeated.")
@click.option("--p", "workers", type=click.IntRange(min=1), multiple=True, help="Workers; may be repeated.")
@click.option("--full", is_flag=True, help="Every usual n with every usual p.")
@click.option("--repeats", type=click.IntRange(min=1), default=10, show_default=True, help="Calls that a median is of.")
@click.option(
    "--patience", type=float, default=10.0, show_default=True, help="Seconds after which a call is not repeated."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads; as many as torch takes if left out.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@rule_option
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for bench.json and bench.png.")
def bench(
    sizes: tuple[int, ...],
    workers: tuple[int, ...],
    full: bool,
    repeats: int,
    patience: float,
    threads: int | None,
    device: str,
    rules: tuple[str, ...],
    out: Path | None,
) -> None:
    """Time each rule beside this package's mean, other libraries, torch, and FA by SVDs, all in turn in one process.

    Without --n and --p: n = 20,000, 1,000,000 and 11,181,642 with 15 workers, and 7, 30 and 60 workers at 1,000,000.
    """
    import torch
    from rich.console import Console

    from fa.bench import cases
    from fa.bench.table import summary, table
    from fa.experiments.runs.user_rules import register_rules
    from fa.utils.devices import find_device

    find_device(device)
    check("patience", patience, patience > 0, "greater than 0")
    if out is not None:
        importlib.import_module("matplotlib")  # here and now: what cannot be drawn need not be measured
        out.mkdir(parents=True, exist_ok=True)
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = cases.all_cases() if full else cases.usual_cases()
    if sizes or workers:
        chosen = [(n, p) for p in workers or (cases.USUAL,) for n in sizes or (cases.MIDDLE,)]
    own = register_rules(rules)
    console = Console(width=120)
    for missing in cases.missing_libraries():
        click.echo(missing, err=True)
    rows: list[Row] = []
    for found in cases.measure(chosen, device, repeats, patience, _tell, own):
        rows += found
        console.print(table(found))
    click.echo("\n".join(summary(rows)))
    if out is not None:
        _write(out, rows, device)


def _tell(text: str) -> None:
    click.echo(text, err=True)


def _write(out: Path, rows: Sequence[Row], device: str) -> None:
    import torch

    from fa.bench.cases import as_records
    from fa.bench.draw import draw
    from fa.experiments.reporting.artifacts import save_png
    from fa.training.records import hardware, versions

    threads = torch.get_num_threads()
    about: dict[str, Any] = {"hardware": hardware(device), "versions": versions(), "threads": threads}
    write_atomically(out / "bench.json", json.dumps(about | {"rows": as_records(rows)}, indent=1) + "\n")
    where = (
        f"{threads} thread{'s' * (threads > 1)} of {about['hardware']['cpu']}"
        if device == "cpu"
        else about["hardware"]["device"]
    )
    save_png(draw(rows, f"float32, medians, {where}"), out / "bench.png")
    click.echo(f"{out / 'bench.json'} and {out / 'bench.png'} written")
