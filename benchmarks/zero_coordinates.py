"""Count coordinates of the stock ResNet-18 whose gradient is exactly zero on 32 x 32 images.

    python benchmarks/zero_coordinates.py [--minibatches 5] [--batch 32] [--size 32]

The images are random. A coordinate counts if its gradient is zero in every minibatch. The zeros are exact: a weight
that multiplies only padding has a sum of exact zeros as its gradient.
"""

from __future__ import annotations

import argparse

import torch

from fa import models


def main() -> None:
    """Print a line for each module with such coordinates, then their share of all coordinates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minibatches", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=32)
    options = parser.parse_args()
    model = models.build("resnet18", shape=(3, options.size, options.size), classes=10, seed=0)
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


if __name__ == "__main__":
    main()
