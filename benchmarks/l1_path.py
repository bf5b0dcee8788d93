"""Measure the l1 path: ten values of lam, from the largest down, each started at the previous basis.

    python benchmarks/l1_path.py --n 1000000

The first value starts at unit columns. The p gradients share a sparse signal in 2% of the coordinates, whose norm
equals that of each gradient's noise. For each lam the script prints the objective, R(Y), steps and seconds, and the
shares of Y's entries and rows that are exactly 0.
"""

import argparse
import time

import torch

from fa import irls


def gradients(p: int, n: int, seed: int) -> torch.Tensor:
    """Draw gradients: a common signal in 2% of the coordinates, and noise of the same norm in all.

    Args:
        p: Number of gradients.
        n: Number of coordinates.
        seed: Seed of the draws.

    Returns:
        Gradients, float32 (p, n).
    """
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(n, generator=generator) * (torch.rand(n, generator=generator) < 0.02)
    return signal / signal.norm() + torch.randn(p, n, generator=generator) / n**0.5


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition(".")[0])
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--p", type=int, default=15)
    parser.add_argument("--m", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seed", type=int, default=2021)
    args = parser.parse_args()
    G = gradients(args.p, args.n, args.seed)
    irls.solve(gradients(args.p, 100, 0), m=args.m, lam=0.01, regularizer="l1", max_iter=1)  # Compile the kernels.
    unit = args.p / (args.m * args.n**0.5)
    print("lam m sqrt(n)/p  objective         R  entries 0   rows 0  steps  seconds")
    begin = time.perf_counter()
    start = torch.zeros(args.n, args.m)
    start[(G / G.norm(dim=1, keepdim=True)).square().sum(dim=0).topk(args.m).indices, range(args.m)] = 1.0
    for factor in (4.0, 2.8, 2.0, 1.7, 1.4, 1.2, 1.0, 0.8, 0.6, 0.4):
        since = time.perf_counter()
        solution = irls.solve(
            G, m=args.m, lam=factor * unit, regularizer="l1", max_iter=args.steps, start=start, tol=1e-6
        )
        start = solution.Y
        zero = start == 0
        print(
            f"{factor:15.1f} {solution.objective:10.4f} {start.abs().sum().item():9.1f} {zero.double().mean():10.4f}"
            f" {zero.all(dim=1).double().mean():8.4f} {solution.iterations:6d} {time.perf_counter() - since:8.1f}",
            flush=True,
        )
    print(f"total {time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    main()
