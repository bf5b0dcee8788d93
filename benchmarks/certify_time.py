"""Measure the time of a certificate, given the Gram matrix, against cvxpy's, on gradients of the CNN.

    python benchmarks/certify_time.py [--workers 7 15 31 60] [--iteration 20] [--m M] [--restarts 20] [--exact]

For each p and each lambda (0 and p) the script prints:

- the objective of IRLS after 5 iterations, and after at most 500 from the best of several starts,
- bound, gap and time of the certificate,
- with --exact, bound, time and solver of the relaxation.

One thread is used.
"""

from __future__ import annotations

import argparse

import torch

from fa import irls, sdp
from fa.experiments.measurements.cost import certificate_seconds
from fa.experiments.runs.recording import record
from fa.training import TrainConfig

REPEATS = 7


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[7, 15, 31, 60])
    parser.add_argument("--iteration", type=int, default=20)
    parser.add_argument("--m", type=int)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--exact", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        " p lambda    5 steps  best found      bound     gap       ms |  relaxation's      s  solver    certify below"
    )
    for p in options.workers:
        config = TrainConfig(rule="mean", workers=p, byzantine=0, batch=32 if p < 60 else 16, lr=0.05, momentum=0.9)
        G = record(config, at=[options.iteration])[options.iteration]
        for lam in (0.0, float(p)):
            print(line(G, options.m, lam, options.restarts, options.exact), flush=True)


def line(G: torch.Tensor, m: int | None, lam: float, restarts: int, exact: bool) -> str:
    """Return one line of the table."""
    few = irls.solve(G, m=m, lam=lam)
    best = irls.solve(G, m=m, lam=lam, max_iter=500, restarts=restarts)
    found = sdp.certify(G, best)
    text = f"{len(G):2} {lam:6g} {few.objective:10.4f} {best.objective:11.4f} {found.bound:10.4f} {found.gap:7.2%}"
    text += f" {1e3 * certificate_seconds(G, lam, m, REPEATS):8.1f}"
    if exact:
        program = sdp.solve(G, m=m, lam=lam)
        below = (program.bound - found.bound) / program.bound
        text += f" | {program.bound:13.6f} {program.seconds:6.2f}  {program.solver:8}  {below:.1e}"
    return text


if __name__ == "__main__":
    main()
