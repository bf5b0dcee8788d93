"""Measure FA's time against n, p, k and N, and compare it with two cost models.

    python benchmarks/cost_model.py [--n 5000 ...] [--p 4 ...] [--k 1 ...] [--steps 1 ...] [--repeats 3]

The models are the paper's O(n N (sum k_i)^2) and this package's. Each size is varied alone. "SVD at each step" computes
an SVD of the n x sum k_i matrix at each of N steps. "Gram matrix once" is this package. Times are in milliseconds, the
minimum of the repeats, on one thread. Exponents are least-squares fits of the logarithms, to the times and to each
model's count of multiplications at the same sizes.
"""

from __future__ import annotations

import argparse

import torch

from fa.experiments.measurements.cost import Workload, exponents, measure_costs


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[5_000, 10_000, 20_000, 40_000, 80_000, 160_000])
    parser.add_argument("--p", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 5, 10, 20])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    grid = {"n": given.n, "p": given.p, "k": given.k, "N": given.steps}
    timings = measure_costs(grid, Workload(), given.repeats)
    print("varied        n   p  k   N   SVD at each step   Gram matrix once   ratio")
    for svd, gram in zip(timings[::2], timings[1::2], strict=True):
        line = f"{svd.varied:6} {svd.n:8} {svd.p:3} {svd.k:2} {svd.N:3} {1e3 * svd.seconds:15.2f} ms"
        print(f"{line} {1e3 * gram.seconds:15.2f} ms {svd.seconds / gram.seconds:7.1f}")
    print("\nmethod             varied  measured   n N q^2   n q^2 + N q^3   (exponents, q = sum k_i)")
    for row in exponents(timings):
        print(
            f"{row['method']:18} {row['varied']:6} {row['measured']:9.2f} {row['paper']:9.2f} {row['Gram space']:15.2f}"
        )


if __name__ == "__main__":
    main()
