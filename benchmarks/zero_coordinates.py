"""Count coordinates whose gradient is exactly zero: of the stock ResNet-18, or of the small CNN during training.

    python benchmarks/zero_coordinates.py [--minibatches 5] [--batch 32] [--size 32]
    python benchmarks/zero_coordinates.py --training

The first command uses random images of 32 x 32 pixels. A coordinate counts if its gradient is zero in every minibatch.
The zeros are exact: a weight that multiplies only padding has a sum of exact zeros as its gradient. The second command
trains the CNN of profile `quick` with the released FA, and counts coordinates in which all honest gradients are zero.
"""

from __future__ import annotations

import argparse

import torch

from fa import models
from fa.training import Progress, TrainConfig, train

SHOWN = (1, 10, 20, 40, 60)
"""Iterations whose shares are printed."""


def main() -> None:
    """Print a line for each module with such coordinates, then their share of all coordinates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minibatches", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--training", action="store_true")
    options = parser.parse_args()
    if options.training:
        for attack, byzantine in (("none", 0), ("random", 3), ("random_reached", 3)):
            shares = shares_in_training(attack, byzantine)
            print(f"{attack}, f = {byzantine}:", ", ".join(f"{i}: {shares[i]:.1%}" for i in SHOWN))
        return
    model = models.build("resnet18", channels=3, classes=10, size=options.size, seed=0)
    zero = zero_coordinates(model, options.minibatches, options.batch, options.size)
    for name, mask in zero.items():
        if mask.any():
            print(f"{name}: {int(mask.sum()):,} of {mask.numel():,}")
    count, total = sum(int(mask.sum()) for mask in zero.values()), sum(mask.numel() for mask in zero.values())
    print(f"all: {count:,} of {total:,} ({100 * count / total:.1f}%)")


def zero_coordinates(model: torch.nn.Module, minibatches: int, batch: int, size: int) -> dict[str, torch.Tensor]:
    """Return a mask of the coordinates whose gradient is zero in every minibatch, by parameter.

    Args:
        model: The model.
        minibatches: Number of minibatches.
        batch: Number of images in a minibatch.
        size: Side of an image, in pixels.
    """
    generator = torch.Generator().manual_seed(0)
    zero = {name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in model.named_parameters()}
    for _ in range(minibatches):
        images = torch.randn(batch, 3, size, size, generator=generator)
        labels = torch.randint(10, (batch,), generator=generator)
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            zero[name] &= parameter.grad == 0
    return zero


def shares_in_training(attack: str, byzantine: int) -> dict[int, float]:
    """Return the share of coordinates in which all honest gradients are zero, by iteration.

    Args:
        attack: Name of the attack.
        byzantine: Number of Byzantine workers.
    """
    shares = {}
    config = TrainConfig(
        rule_options={"formulation": "released"},
        attack=attack,
        byzantine=byzantine,
        iterations=SHOWN[-1],
        batch=32,
        lr=0.05,
        momentum=0.9,
    )

    def count(state: Progress) -> None:
        shares[state.iteration] = float((state.G[byzantine:] == 0).all(dim=0).double().mean())

    train(config, threads=1, progress=count)
    return shares


if __name__ == "__main__":
    main()
