"""`fa aggregate`: one direction from gradients in files, which may be larger than memory."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fa.cli.rule_options import rule_options, take
from fa.utils.validation import check

if TYPE_CHECKING:
    from fa.rules import Decision


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--rule", default="fa", show_default=True, help="Aggregation rule.")
@click.option("--f", type=int, default=0, show_default=True, help="Faulty workers that the rule is to withstand.")
@rule_options
@click.option("--threads", type=click.IntRange(min=1), help="Threads; as many as torch takes if left out.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File for d: .npy or .safetensors.")
@click.option("--json", "as_json", is_flag=True, help="Print the decision as JSON.")
def aggregate(
    files: tuple[Path, ...], rule: str, f: int, threads: int | None, out: Path, as_json: bool, **given: Any
) -> None:
    """Aggregate the gradients in FILE and write the direction d, of their dtype, to --out.

    One file, .npy or .safetensors, holds all gradients, (p, n), one worker a row; or each file holds one worker's:
    vectors, or .safetensors with the same tensors. They are mapped, not read into memory, and so is the result.
    """
    import torch

    from fa.gradients.memory_map import create_output, open_gradients
    from fa.rules import make_rule

    its = make_rule(rule, f=f, **take(given))
    its.check_within_span("for files, which are not read into memory")
    if threads is not None:
        torch.set_num_threads(threads)
    started = time.perf_counter()
    G, layout = open_gradients(files)
    its.check_workers(len(G))
    taken = out.exists() and any(out.samefile(path) for path in files)
    check("out", str(out), not taken, "another file than those of the gradients")
    with create_output(out, layout, G.shape[1]) as d:
        decision = its.aggregate(G, out=d).decision
    seconds = time.perf_counter() - started
    if as_json:
        click.echo(json.dumps(_description(decision, len(G)), indent=2))
        return
    for worker, reason in decision.left_out.items():
        click.echo(f"worker {worker} ({files[worker].name})" if len(files) > 1 else f"worker {worker}", nl=False)
        click.echo(f" left out: {reason}")
    click.echo(f"{rule} of {len(G)} gradients of {G.shape[1]} numbers in {seconds:.1f} s: {out}")


def _description(decision: Decision, p: int) -> dict[str, Any]:
    """What was decided about each worker; null where the rule has no such number."""
    from fa.rules import per_worker

    return {
        "selected": decision.selected,
        "left_out": decision.left_out,
        "weights": per_worker(decision.weights, p),
        "values": per_worker(decision.values, p),
    }
