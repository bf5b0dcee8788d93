"""The first subspace of FA: the effect of the released code's random one, and whether hints of the workers pay.

    python benchmarks/first_subspace.py

For random data and for gradients of a run, it prints the change of the released direction when its one step has the
weights of a random first Y instead of equal weights. It then prints the objective of eq. 5 after 1, 5 and 200 steps of
IRLS from each start, relative to the best value of 200 steps and 20 random starts, and the steps to convergence.
"""

import argparse

import numpy as np
import torch

from fa import flags, irls, make_rule
from fa.training import TrainConfig, train


def gradients_of_a_run(iterations: int, attack: str, byzantine: int) -> torch.Tensor:
    """Return the gradients of the last iteration of a run of FA on the embedded digits."""
    kept: list[torch.Tensor] = []
    settings = {"batch": 32, "lr": 0.05, "momentum": 0.9, "attack": attack, "byzantine": byzantine}
    config = TrainConfig(iterations=iterations, rule_options={"formulation": "released"}, **settings)
    train(config, threads=1, progress=lambda state: kept.append(state.G.clone()))
    return kept[-1]


def changes(G: torch.Tensor, draws: int) -> list[float]:
    """Return ||d - d'||/||d|| for the random first bases of several iterations."""
    d = make_rule("fa", formulation="released")(G)
    drawn = make_rule("fa", formulation="released", start="random")
    return [float((drawn(G, iteration) - d).norm() / d.norm()) for iteration in range(draws)]


def report_starts(G: torch.Tensor) -> None:
    """Print objectives and steps to convergence by start."""
    best = irls.solve(G, max_iter=200, restarts=20).objective
    starts: dict[str, object] = {"equal": "equal", "data": "data", "random": "random"}
    for count in (10, 100, 1000):
        if count < G.shape[1]:
            starts[f"largest:{count}"] = flags.hints(G, list(G.abs().topk(count, dim=1).indices))
    for name, start in starts.items():
        gaps = [irls.solve(G, start=start, max_iter=steps, tol=0.0).objective / best - 1 for steps in (1, 5, 200)]
        steps = irls.solve(G, start=start, max_iter=500).iterations
        print(f"    {name:14} {gaps[0]:8.2%} {gaps[1]:8.2%} {gaps[2]:8.2%} {steps:5d}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100, help="Number of random first bases.")
    draws = parser.parse_args().draws
    random = [torch.from_numpy(np.random.default_rng(seed).standard_normal((15, 30))) for seed in range(10)]
    cases = {"random data, n = 30": random}
    for attack, byzantine in (("none", 0), ("random", 3)):
        for iterations in (5, 60):
            name = f"MNIST CNN, iteration {iterations}, f = {byzantine} ({attack})"
            cases[name] = [gradients_of_a_run(iterations, attack, byzantine)]
    for name, matrices in cases.items():
        found = np.concatenate([changes(G, draws // len(matrices)) for G in matrices])
        print(f"{name}: change of d: median {np.median(found):.1e}, largest {found.max():.1e}")
    print("eq. 5 above the best value after 1, 5 and 200 steps; steps to a change below 1e-10")
    for name, matrices in list(cases.items())[1:]:
        print(f"  {name}")
        report_starts(matrices[0])


if __name__ == "__main__":
    main()
