"""`fa certify`: how far FA's subspace can be from the best one, for gradients in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--m", type=int, help="Columns of the subspace; ceil((p + 1)/2) if left out.")
@click.option("--lam", type=float, default=0.0, show_default=True, help="Weight of the pairwise term.")
@click.option("--a", type=float, default=2.0, show_default=True, help="The root in the objective.")
@click.option("--max-iter", type=int, default=5, show_default=True, help="Iterations of IRLS at most.")
@click.option("--exact", is_flag=True, help="Also solve the relaxation, by cvxpy.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def certify(
    files: tuple[Path, ...], m: int | None, lam: float, a: float, max_iter: int, exact: bool, as_json: bool
) -> None:
    """Run IRLS on the gradients in FILE and bound its distance from the best subspace.

    One file, .npy or .safetensors, holds all gradients, (p, n), one worker a row; or each file holds one worker's. None
    is read into memory at once.
    """
    from fa import irls, sdp
    from fa.gradients.memory_map import open_gradients

    G, _ = open_gradients(files)
    solution = irls.solve(G, m=m, lam=lam, a=a, max_iter=max_iter)
    certificate = sdp.certify(G, solution)
    report: dict[str, Any] = {
        "p": len(G),
        "m": solution.m,
        "lam": solution.lam,
        "a": solution.a,
        "iterations": solution.iterations,
        "converged": solution.converged,
        "objective": certificate.objective,
        "bound": certificate.bound,
        "gap": certificate.gap,
        "certifies": certificate.certifies,
        "norms": solution.gram.norms.tolist(),
        "values": solution.values.tolist(),
        "weights": solution.weights().tolist(),
    }
    if exact:
        report["exact"] = _exact(sdp, G, m=m, lam=lam, a=a)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _show(report, [path.name for path in files] if len(files) > 1 else [str(i) for i in range(len(G))])


def _exact(sdp: Any, G: Any, **options: Any) -> dict[str, Any]:
    try:
        found = sdp.solve(G, **options)
    except (ImportError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error
    names = ("bound", "value", "rounded_objective", "polished_objective", "solver", "status", "seconds")
    return {name: getattr(found, name) for name in names}


def _show(report: dict[str, Any], names: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = "p = {p}, m = {m}, lambda = {lam:g}, a = {a:g}, {iterations} iterations of IRLS".format(**report)
    workers = Table("worker", title=title)
    for column in ("norm", "explained v", "weight in d"):
        workers.add_column(column, justify="right")
    for row in zip(names, report["norms"], report["values"], report["weights"], strict=True):
        workers.add_row(row[0], *(f"{number:.6g}" for number in row[1:]))
    console = Console()
    console.print(workers, soft_wrap=not console.is_terminal)
    lines = [("objective", report["objective"], "of eq. 5, at IRLS' subspace")]
    lines += [("bound", report["bound"], f"no more than {report['certifies']}")]
    lines += [("gap", report["gap"], "(objective - bound)/objective")]
    if "exact" in report:
        exact = report["exact"]
        told = f"from the relaxation, {exact['solver']}, {exact['status']}, {exact['seconds']:.2f} s"
        lines += [("exact bound", exact["bound"], told)]
        lines += [("rounded", exact["rounded_objective"], "objective at the relaxation's own subspace")]
        lines += [("polished", exact["polished_objective"], "objective where IRLS ends from there")]
    for name, number, remark in lines:
        click.echo(f"{name:<12}{number:>14.8g}  {remark}")
