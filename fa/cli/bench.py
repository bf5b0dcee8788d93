"""`fa bench`: time of the rules."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fa.cli.paths import UserPath
from fa.cli.study_options import rule_option
from fa.utils.files import write_atomically
from fa.utils.validation import MOST_THREADS, check_positive

if TYPE_CHECKING:
    from fa.bench.cases import RuleTiming

MAX_LOAD = 0.5
"""Number of running processes, in the last minute's mean, above which they may slow the benchmark's threads."""


@click.command()
@click.option("--n", "sizes", type=click.IntRange(min=1), multiple=True, help="Number of coordinates; may be repeated.")
@click.option("--p", "workers", type=click.IntRange(min=1), multiple=True, help="Number of workers; may be repeated.")
@click.option("--full", is_flag=True, help="Every default n with every default p.")
@click.option(
    "--repeats", type=click.IntRange(min=1), default=10, show_default=True, help="Number of timed calls per rule."
)
@click.option(
    "--patience",
    type=float,
    default=10.0,
    show_default=True,
    help="Total time after which a call is not repeated, in seconds.",
)
@click.option("--threads", type=click.IntRange(1, MOST_THREADS), help="Number of threads.  [default: torch's]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@rule_option
@click.option("--out", type=UserPath(file_okay=False), help="Output folder for bench.json and bench.png.")
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
    """Time each rule, the same rules of other libraries and of torch, and FA by SVDs, in turn in one process.

    By default n = 20,000, 1,000,000 and 11,181,642 with 15 workers, and 7, 30 and 60 workers at n = 1,000,000.
    """
    import torch

    from fa.bench.cases import check_cases
    from fa.experiments.runs.user_rules import register_rules
    from fa.utils.devices import find_device

    find_device(device)
    check_positive("patience", patience)
    sizes_and_workers, user_rules = _cases(sizes, workers, full), register_rules(rules)
    check_cases(sizes_and_workers, user_rules)
    if out is not None:
        importlib.import_module("matplotlib")  # fails before the measurements if it is missing
        out.mkdir(parents=True, exist_ok=True)
    if threads is not None:
        torch.set_num_threads(threads)
    _warn_of_load()
    rows: list[RuleTiming] = []
    try:
        _measure(rows, sizes_and_workers, device, repeats, patience, user_rules)
    finally:  # A case that fails loses no finished one.
        if out is not None and rows:
            _write(out, rows, device)


def _warn_of_load() -> None:
    """Print a warning if other processes keep the cores busy that the benchmark needs."""
    import torch

    load, idle = 0.0, (os.cpu_count() or 1) - torch.get_num_threads()
    with suppress(OSError, AttributeError):  # Some systems have no load average.
        load = os.getloadavg()[0]
    if load > max(0, idle) + MAX_LOAD:
        click.echo(f"the load of this machine is {load:.1f}: other processes may make the times longer", err=True)


def _cases(sizes: Sequence[int], workers: Sequence[int], full: bool) -> Sequence[tuple[int, int]]:
    """Return the pairs of n and p to measure."""
    from fa.bench import cases

    if sizes or workers:
        return [(n, p) for p in workers or (cases.DEFAULT_P,) for n in sizes or (cases.DEFAULT_N,)]
    return cases.all_cases() if full else cases.default_cases()


def _measure(
    rows: list[RuleTiming],
    sizes_and_workers: Sequence[tuple[int, int]],
    device: str,
    repeats: int,
    patience: float,
    user_rules: Sequence[str],
) -> None:
    """Append the rows of each case to `rows`, and print its table as soon as it is measured, then a summary."""
    from rich.console import Console

    from fa.bench import cases
    from fa.bench.table import summary, table

    console = Console(width=120, markup=False)
    for missing in cases.missing_libraries():
        click.echo(missing, err=True)
    for case in cases.measure_times(
        sizes_and_workers, device, repeats, patience, partial(click.echo, err=True), user_rules
    ):
        rows += case
        console.print(table(case))
    click.echo("\n".join(summary(rows)))


def _write(out: Path, rows: Sequence[RuleTiming], device: str) -> None:
    import torch

    from fa.bench.cases import as_records
    from fa.bench.draw import draw
    from fa.experiments.reporting.artifacts import save_png
    from fa.training.records import hardware, versions

    threads = torch.get_num_threads()
    environment: dict[str, Any] = {"hardware": hardware(device), "versions": versions(), "threads": threads}
    write_atomically(out / "bench.json", json.dumps(environment | {"rows": as_records(rows)}, indent=1) + "\n")
    processor = (
        f"{threads} thread{'s' * (threads > 1)} of {environment['hardware']['cpu']}"
        if device == "cpu"
        else environment["hardware"]["device"]
    )
    save_png(draw(rows, f"float32, medians, {processor}"), out / "bench.png")
    click.echo(f"{out / 'bench.json'} and {out / 'bench.png'} written")
