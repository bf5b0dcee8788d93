"""Compare the time to warp images along Lotka-Volterra's flow with the released code's one ODE per pixel and image.

    python benchmarks/augment_time.py [--images 2] [--count 50000] [--side 32]

One thread is used. The released method is timed on a few images and extrapolated to all. The script also prints the
largest distance between the source coordinates of the two methods, in pixels.
"""

from __future__ import annotations

import argparse
import time
from itertools import cycle

import numpy as np
import torch
from scipy.integrate import solve_ivp

from fa.augment import source, warp
from fa.augment.recipes import Recipe, augment

TIMES = tuple(k / 1000 for k in range(1, 11))
ALPHA, BETA, GAMMA, DELTA = 2 / 3, 4 / 3, -1.0, -1.0


def velocity(_: float, point: np.ndarray) -> list[float]:
    """Return the velocity of Lotka-Volterra's system at a point."""
    x, y = point
    return [ALPHA * x - BETA * x * y, DELTA * x * y - GAMMA * y]


def one_by_one(image: np.ndarray, t: float, **settings: float) -> tuple[np.ndarray, np.ndarray]:
    """Warp an image with one solve_ivp per pixel.

    Args:
        image: Image (C, side, side).
        t: Time.
        **settings: Options of solve_ivp.

    Returns:
        The warped image, and the source coordinates of its pixels (side, side, 2).
    """
    side = image.shape[-1]
    moved, sources = np.zeros_like(image), np.zeros((side, side, 2))
    centre = (side - 1) / 2
    for i in range(side):
        for j in range(side):
            end = solve_ivp(velocity, (0, t), [j - centre, i - centre], "LSODA", **settings).y[:, -1] + centre
            sources[i, j] = end
            column, row = np.floor(end + 0.5).astype(int)
            if 0 <= row < side and 0 <= column < side:
                moved[:, i, j] = image[:, row, column]
    return moved, sources


def main() -> None:
    """Print the times and the differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--side", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape = (options.count, 3, options.side, options.side)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    started = time.perf_counter()
    some = images[: options.images].numpy()
    for image, t in zip(some, cycle(TIMES), strict=False):
        one_by_one(image, t)
    each = (time.perf_counter() - started) / len(some)
    print(
        f"one ODE a pixel and image: {each:.2f} s an image, {each * options.count / 3600:.1f} h for {options.count:,}"
    )

    for name, noise in (("moved", ()), ("moved, with noise", (0.02, 0.05))):
        started = time.perf_counter()
        augment(images, Recipe(system="lotka_volterra", t=TIMES, noise=noise), seed=0)
        ours = time.perf_counter() - started
        print(f"{name}: {ours:.2f} s for {options.count:,} images, {each * options.count / ours:,.0f} times as fast")

    for label, settings in (("its own tolerances", {}), ("1e-12", {"rtol": 1e-12, "atol": 1e-12})):
        moved, sources = one_by_one(images[0].numpy(), TIMES[-1], **settings)
        error = np.abs(sources - source("lotka_volterra", options.side, options.side, TIMES[-1])).max()
        different = (moved != warp(images[:1], "lotka_volterra", TIMES[-1])[0].numpy()).any(axis=0).mean()
        print(
            f"t = {TIMES[-1]}, against solve_ivp at {label}: {error:.1e} pixels, {different:.2%} of them from elsewhere"
        )


if __name__ == "__main__":
    main()
