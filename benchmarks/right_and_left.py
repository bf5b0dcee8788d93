"""Section 2.3 of the paper: right and left multiplication combined for speed, and the ReLU in its formula of Bulyan.

    python benchmarks/right_and_left.py

The first table has the time of FA on all p gradients, behind Krum's choice of p - f, and of its steps alone. The second
compares (1/m) ReLU(G S) 1 with Bulyan, for the selection matrix S of Bulyan's first stage.
"""

import argparse

import torch

from fa import make_rule
from fa.gradients.measurement import measure
from fa.rules import Rule
from fa.rules.krum_scores import bulyan_selection
from fa.training import TrainConfig, train
from fa.utils.timing import call_seconds

RULES: dict[str, tuple[str, dict[str, object]]] = {
    "mean": ("mean", {}),
    "Krum": ("krum", {}),
    "FA": ("fa", {"preaggregators": ("unit",)}),
    "FA, 1 step": ("fa", {"preaggregators": ("unit",), "max_iter": 1}),
    "Krum's choice, FA": ("fa", {"preaggregators": ("krum", "unit")}),
    "Krum's choice, FA, 1 step": ("fa", {"preaggregators": ("krum", "unit"), "max_iter": 1}),
}


def time_of(rule: Rule, G: torch.Tensor, repeats: int) -> float:
    """Return the least time of a call, in milliseconds."""
    return 1e3 * min(call_seconds(lambda: rule(G), repeats))


def selection(G: torch.Tensor, f: int) -> torch.Tensor:
    """Return the selection matrix S (p, p - 2f) of Bulyan's first stage."""
    return torch.eye(len(G), dtype=torch.float64)[:, list(bulyan_selection(measure(G)[0], f))]


def compare_relu(name: str, G: torch.Tensor, f: int) -> None:
    """Print the cosines of the formula, with and without ReLU, with Bulyan and with the honest mean."""
    chosen = G.double().T @ selection(G, f)
    printed, linear = chosen.clamp(min=0).mean(dim=1), chosen.mean(dim=1)
    bulyan = make_rule("bulyan", f=f)(G).double()
    honest = G[f:].double().mean(dim=0)
    cosine = torch.nn.functional.cosine_similarity
    rows = {"with ReLU": printed, "without ReLU": linear, "Bulyan": bulyan}
    texts = [f"{key} {cosine(d, bulyan, dim=0):.3f} / {cosine(d, honest, dim=0):.3f}" for key, d in rows.items()]
    print(
        f"  {name}: "
        + ", ".join(texts)
        + f"; negative coordinates of Bulyan: {float((bulyan < 0).double().mean()):.2f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="Calls of each rule.")
    parser.add_argument("--sizes", type=int, nargs="*", default=[21_840, 1_000_000], help="Numbers of coordinates.")
    given = parser.parse_args()
    print("milliseconds of a call (least of several)")
    for p, f in ((15, 3), (60, 14)):
        for n in given.sizes:
            G = torch.randn(p, n, generator=torch.Generator().manual_seed(0)) + 0.1
            rules = {name: make_rule(rule, f=f, **options) for name, (rule, options) in RULES.items()}
            times = {name: time_of(rule, G, given.repeats) for name, rule in rules.items()}
            print(f"  p = {p}, f = {f}, n = {n:,}: " + ", ".join(f"{name} {t:.2f}" for name, t in times.items()))
    print("cosine with Bulyan / with the honest mean")
    for attack in ("none", "random"):
        kept: list[torch.Tensor] = []
        config = TrainConfig(iterations=20, batch=32, lr=0.05, attack=attack)
        train(config, threads=1, progress=lambda state, kept=kept: kept.append(state.G.clone()))
        compare_relu(f"MNIST CNN, iteration 20, {attack}", kept[-1], 3)


if __name__ == "__main__":
    main()
