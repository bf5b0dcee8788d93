"""Measure how often IRLS with restarts reaches pymanopt's best value, on small random instances of eq. 5.

    python benchmarks/irls_success.py [--instances 200] [--starts 50] [--restarts 20]

An instance has p = 4 to 9 gradients of n = p to 29 coordinates, and m = 1 to p - 2. With probability 1/2 the gradients
share an offset. IRLS reaches the best value if its objective is at most 1 + 1e-5 times pymanopt's best.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fa import irls

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.peers import best_of_pymanopt, instance


def main() -> None:
    """Print the failures and the totals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--restarts", type=int, default=20)
    options = parser.parse_args()
    reached, alone, worst = 0, 0, 0.0
    for seed in range(options.instances):
        G, m = instance(seed)
        best = best_of_pymanopt(G, (m,), starts=options.starts, seed=seed)
        ours = irls.solve(G, m=m, max_iter=500, restarts=options.restarts, seed=seed).objective
        excess = ours / best - 1
        reached += excess <= 1e-5
        alone += irls.solve(G, m=m, max_iter=500).objective <= best * (1 + 1e-5)
        worst = max(worst, excess)
        if excess > 1e-5:
            print(f"seed {seed}: p = {len(G)}, m = {m}, {ours:.6f} against {best:.6f}")
    print(f"with {options.restarts} restarts IRLS reached the best of {options.starts} starts of pymanopt in")
    print(f"{reached} of {options.instances} instances ({alone} from equal weights alone); largest excess {worst:.1e}")


if __name__ == "__main__":
    main()
