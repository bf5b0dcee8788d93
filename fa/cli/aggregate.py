"""`fa aggregate`: the direction of gradients in files, which may be larger than memory."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fa.cli.help_texts import RULE
from fa.cli.paths import UserPath
from fa.cli.rule_options import pop_rule_options, rule_options
from fa.utils.validation import MOST_THREADS, check

if TYPE_CHECKING:
    from fa.rules import Decision, Rule


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=UserPath())
@click.option("--rule", default="fa", show_default=True, help=RULE)
@click.option("--f", type=int, help="Number of Byzantine workers to tolerate.  [default: 0]")
@rule_options
@click.option("--threads", type=click.IntRange(1, MOST_THREADS), help="Number of threads.  [default: torch's]")
@click.option(
    "--out", required=True, type=UserPath(), help="Output file for d, .npy or .safetensors; it is overwritten."
)
@click.option("--json", "as_json", is_flag=True, help="Print the decision as JSON.")
def aggregate(
    files: tuple[Path, ...], rule: str, f: int | None, threads: int | None, out: Path, as_json: bool, **options: Any
) -> None:
    """Aggregate the gradients in FILE, and write the direction d with their dtype.

    One .npy or .safetensors file has all gradients, (p, n), one row per worker. Or each file has one worker's: a
    vector, or .safetensors with the same tensors. Files and result are memory-mapped.
    """
    import torch

    from fa.rules import make_rule

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        aggregator = make_rule(rule, f=f, **pop_rule_options(options))
    for warning in caught:
        click.echo(f"fa: {warning.message}", err=True)
    aggregator.check_decides_in_gram("for files, which are not read into memory")
    if threads is not None:
        torch.set_num_threads(threads)
    overwrites = out.exists() and any(out.samefile(path) for path in files)
    check("out", str(out), not overwrites, "different from the files of the gradients")
    started = time.perf_counter()
    decision, size = _aggregate(aggregator, files, out)
    seconds, p = time.perf_counter() - started, len(decision.selected) + len(decision.excluded)
    if as_json:
        click.echo(json.dumps(_description(decision, p), indent=2))
        return
    for worker, reason in decision.excluded.items():
        file = f" ({files[worker].name})" if len(files) > 1 else ""
        click.echo(f"worker {worker}{file} excluded: {reason}")
    click.echo(f"{rule} of {p} gradients with {size} coordinates in {seconds:.1f} s, compilation included: {out}")


def _aggregate(rule: Rule, files: Sequence[Path], out: Path) -> tuple[Decision, int]:
    """Write the direction to `out`; return the decision and the number of coordinates."""
    from fa.gradients.memory_map import create_output, open_gradients, read_state_dicts, write_state_dict

    if state_dicts := read_state_dicts(files):
        result = rule.aggregate(state_dicts)
        write_state_dict(out, result.direction)
        return result.decision, sum(tensor.numel() for tensor in result.direction.values())
    G, layout = open_gradients(files)
    rule.check_workers(len(G))
    with create_output(out, layout, G.shape[1]) as d:
        return rule.aggregate(G, out=d).decision, G.shape[1]


def _description(decision: Decision, p: int) -> dict[str, Any]:
    """Return the decision for JSON, with null where the rule has no such number."""
    from fa.rules import per_worker

    return {
        "selected": decision.selected,
        "excluded": decision.excluded,
        "weights": per_worker(decision.weights, p),
        "values": per_worker(decision.values, p),
    }
