"""`fa certify`: a bound on the distance of FA's subspace to the best one, for gradients in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from fa.cli.paths import UserPath
from fa.cli.rule_options import OPTIONS, numbers
from fa.utils.optional import import_optional

BETTER = 1e-6  # Relative difference of two objectives that counts as a difference.


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=UserPath())
@click.option("--m", type=int, help="Number of columns of the subspace.  [default: ceil((p + 1)/2)]")
@click.option("--lam", type=float, default=0.0, show_default=True, help="Weight of the pairwise term.")
@click.option("--a", type=float, default=2.0, show_default=True, help="Inverse of the power, at least 1.")
@click.option("--max-iter", type=int, default=5, show_default=True, help="Maximum number of IRLS iterations.")
@click.option("--restarts", type=int, default=0, show_default=True, help="Number of further, random starts of IRLS.")
@click.option("--worker-weights", help=OPTIONS["worker_weights"][1])
@click.option("--exact", is_flag=True, help="Also solve the convex relaxation with cvxpy.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def certify(
    files: tuple[Path, ...],
    m: int | None,
    lam: float,
    a: float,
    max_iter: int,
    restarts: int,
    worker_weights: str | None,
    exact: bool,
    as_json: bool,
) -> None:
    """Run IRLS on the gradients in FILE, and bound its distance to the best subspace.

    One .npy or .safetensors file has all gradients, (p, n), one row per worker. Or each file has one worker's. Files
    are memory-mapped.
    """
    from fa.gradients.memory_map import open_gradients

    weights = None if worker_weights is None else numbers("worker_weights", worker_weights, float)
    G, _ = open_gradients(files)
    problem = {"m": m, "lam": lam, "a": a, "worker_weights": weights}
    if exact:
        import_optional("cvxpy", "--exact", "theory")
    report, failure = _certify(G, problem, max_iter, restarts), None
    if exact:
        try:
            report["exact"] = _exact(G, problem)
        except RuntimeError as error:
            failure = click.ClickException(str(error))
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _show(report, [path.name for path in files] if len(files) > 1 else [str(i) for i in range(len(G))])
    if failure is not None:
        raise failure


def _certify(G: Any, problem: dict[str, Any], max_iter: int, restarts: int) -> dict[str, Any]:
    from fa import irls, sdp

    solution = irls.solve(G, **problem, max_iter=max_iter, restarts=restarts)
    certificate = sdp.certify(G, solution)
    return {
        "p": len(G),
        "m": solution.m,
        "lam": solution.lam,
        "a": solution.a,
        "worker_weights": solution.worker_weights,
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


def _exact(G: Any, problem: dict[str, Any]) -> dict[str, Any]:
    from fa import sdp

    relaxation = sdp.solve(G, **problem)
    names = ("bound", "value", "rounded_objective", "polished_objective", "gap", "solver", "status", "seconds")
    return {name: getattr(relaxation, name) for name in names}


def _show(report: dict[str, Any], names: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = "p = {p}, m = {m}, lambda = {lam:g}, a = {a:g}, {iterations} iterations of IRLS".format(**report)
    workers = Table("worker", title=title)
    for column in ("norm", "explained v", "weight in d"):
        workers.add_column(column, justify="right")
    for row in zip(names, report["norms"], report["values"], report["weights"], strict=True):
        workers.add_row(row[0], *(f"{number:.6g}" for number in row[1:]))
    console = Console(markup=False)
    console.print(workers, soft_wrap=not console.is_terminal)
    lines = [("objective", report["objective"], "eq. 5 at the subspace of IRLS")]
    lines += [("bound", report["bound"], f"lower bound on {report['certifies']}")]
    lines += [("gap", report["gap"], "(objective - bound)/objective")]
    if "exact" in report:
        exact = report["exact"]
        origin = f"convex relaxation, {exact['solver']}, {exact['status']}, {exact['seconds']:.2f} s"
        lines += [("exact bound", exact["bound"], origin)]
        lines += [("rounded", exact["rounded_objective"], "objective at the subspace of the relaxation")]
        lines += [("polished", exact["polished_objective"], "objective after IRLS from that subspace")]
        lines += [("exact gap", exact["gap"], "(polished - exact bound)/polished")]
    for name, number, remark in lines:
        click.echo(f"{name:<12}{number:>14.8g}  {remark}")
    for remark in _remarks(report):
        click.echo(remark)


def _remarks(report: dict[str, Any]) -> list[str]:
    """Return what lowers the objective: more iterations, or the start at the relaxation's subspace."""
    remarks = []
    if not report["converged"]:
        remarks.append(
            f"IRLS has not converged after {report['iterations']} iterations, so the gap may be its own. "
            "Set --max-iter 200."
        )
    exact = report.get("exact")
    if exact and exact["polished_objective"] < (1 - BETTER) * report["objective"]:
        remarks.append(
            f"The relaxation's subspace is the better start: IRLS from it ends at {exact['polished_objective']:.8g}, "
            f"{1 - exact['polished_objective'] / report['objective']:.2%} lower."
        )
    return remarks
