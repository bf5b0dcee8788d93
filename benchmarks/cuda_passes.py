"""Measure the passes over a gradient matrix on a GPU: Triton's kernels, torch's passes, and torch's mean.

    python benchmarks/cuda_passes.py [--p 15 60] [--n 11173962] [--repeats 50]

The passes alternate in one process. The table has the median time in ms, the rate of one read of G in the least time,
and the ratio to the shortest time of Triton's weighted sum.
"""

import argparse
from collections.abc import Callable

import torch

from fa.kernels import torch_fallback, triton_passes


def main() -> None:
    """Parse the arguments, and print a table for each p."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--p", type=int, nargs="+", default=[15, 60])
    parser.add_argument("--n", type=int, default=11_173_962)
    parser.add_argument("--repeats", type=int, default=50)
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, n = {arguments.n}")
    for p in arguments.p:
        report(p, arguments.n, arguments.repeats)


def report(p: int, n: int, repeats: int) -> None:
    """Print the times of every pass over p rows."""
    G = torch.randn(p, n, device="cuda")
    weights, R = torch.full((p,), 1 / p, dtype=torch.float64), torch.eye(p, dtype=torch.float64)
    low = (p - 1) // 2
    median, phocas = (R, low, p // 2 + 1, 0), (R, low, p // 2 + 1, p - 3)
    calls: dict[str, Callable[[], object]] = {"weighted sum, triton": lambda: triton_passes.combine(G, weights)}
    for name, module in (("triton", triton_passes), ("torch", torch_fallback)):
        calls[f"weighted sum, {name}"] = lambda module=module: module.combine(G, weights)
        calls[f"Gram matrix, {name}"] = lambda module=module: module.gram(G)
        calls[f"median, {name}"] = lambda module=module: module.order_statistic(G, *median)
        calls[f"mean around the median, {name}"] = lambda module=module: module.order_statistic(G, *phocas)
    calls["torch.mean"] = lambda: G.mean(dim=0)
    times = alternate(calls, repeats)
    base = min(times["weighted sum, triton"])
    print(f"\np = {p}\n{'pass':34}{'ms':>9}{'GB/s':>9}{'ratio':>8}")
    for name, values in times.items():
        rate = G.nbytes / (min(values) * 1e6)
        print(f"{name:34}{sorted(values)[repeats // 2]:9.3f}{rate:9.0f}{min(values) / base:8.2f}")


def alternate(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Measure the calls in turn; the first round, which compiles, does not count. The times are in ms."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            if repeat:
                times[name].append(begin.elapsed_time(end))
    return times


if __name__ == "__main__":
    main()
