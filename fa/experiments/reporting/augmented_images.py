"""Figures of the augmentation: vector fields of the flows, images at several times, and sample grids of recipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from fa.augment import SYSTEMS, add_noise, source, warp
from fa.augment.maps import centred
from fa.augment.recipes import Recipe
from fa.experiments.reporting import style
from fa.utils.seeds import generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

Images = UInt8[Tensor, "batch channels side side"]
STRENGTHS = 5  # Maximal number of times in a sample grid, evenly selected from the recipe's.


def pattern(side: int, channels: int = 1) -> Images:
    """Return an image (1, channels, side, side) of a white lattice on grey, which shows where each pixel moves.

    Args:
        side: Height and width in pixels.
        channels: Number of channels.

    Returns:
        The image, uint8.
    """
    lines = torch.arange(side) % 4 == 0
    lines[-1] = True
    grid = torch.where(lines[:, None] | lines, 255, 70).to(torch.uint8)
    return grid.expand(1, channels, side, side).contiguous()


def fields(systems: Sequence[tuple[str, str, dict[str, float]]], side: int) -> Figure:
    """Draw the vector fields of dynamical systems.

    Args:
        systems: Title, name in `SYSTEMS` and parameters of each system.
        side: Side of the image in pixels, whose coordinates the axes use.

    Returns:
        The figure.
    """
    figure = style.new_figure(4 * len(systems), 3.4)
    panels = figure.subplots(1, len(systems), squeeze=False)[0]
    for axes, (title, system, parameters) in zip(panels, systems, strict=True):
        _draw_field(axes, system, side, parameters)
        axes.set_title(title)
    return figure


def _draw_field(axes: Axes, system: str, side: int, parameters: dict[str, float]) -> None:
    """Draw arrows of equal length, colored by the decimal logarithm of the speed."""
    pixels = centred(system)
    ticks = np.linspace(-(side - 1) / 2, (side - 1) / 2, 14) if pixels else np.linspace(0.02, 0.98, 14)
    points = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    velocities = SYSTEMS[system].velocity(points, **{**SYSTEMS[system].parameters, **parameters})
    speed = np.hypot(*velocities.T)
    x, y = (velocities / speed[:, None]).T
    look: dict[str, Any] = {"cmap": "viridis", "angles": "xy", "scale": 17, "width": 0.008, "pivot": "mid"}
    arrows = axes.quiver(*points.T, x, y, np.log10(speed), **look)
    unit = "pixels from the centre" if pixels else "parts of the side"
    axes.set(xlabel=f"x ({unit})", ylabel=f"y ({unit})", aspect="equal")
    axes.grid(visible=False)
    axes.invert_yaxis()
    axes.figure.colorbar(arrows, ax=axes, label="$\\log_{10}$ of the speed")


def strip(images: dict[str, Images]) -> Figure:
    """Draw images in a grid, a column for each entry.

    Args:
        images: Images (k, channels, side, side), uint8, by title of the column. All entries have the same k, the number
            of rows. There are 1 or 3 channels.

    Returns:
        The figure, without a heading.
    """
    rows = len(next(iter(images.values())))
    figure = style.new_figure(1.25 * len(images), 1.2 * rows + 0.35)
    panels = figure.subplots(rows, len(images), squeeze=False)
    for column, (title, batch) in zip(panels.T, images.items(), strict=True):
        column[0].set_title(title, fontsize=9)
        for axes, image in zip(column, batch, strict=True):
            axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
            axes.set_axis_off()
    return figure


def samples(recipe: Recipe, images: Images, seed: int) -> Figure:
    """Draw a recipe's grid: one row for each image, the lattice first, and one column for each time and noise level.

    Args:
        recipe: The recipe.
        images: Images (B, C, side, side).
        seed: Seed of the noise.

    Returns:
        The figure.
    """
    batch = torch.cat([pattern(images.shape[-1], images.shape[1]), images])
    columns = {"as it is": batch}
    for t in evenly(recipe.t, STRENGTHS):
        columns[f"t = {t:g}"] = warp(batch, recipe.system, t, recipe.interpolation, **dict(recipe.parameters))
    for level in (level for level in recipe.noise if level > 0):
        columns[f"noise {level:g}"] = add_noise(batch, level, generator("samples", seed, 0, 0))
    return strip(columns)


def evenly(values: Sequence[float], count: int) -> list[float]:
    """Return at most `count` of the values, evenly selected, with the first and the last.

    Args:
        values: The values, at least one.
        count: Largest number of values to return.

    Returns:
        The selected values, in their order.
    """
    places = np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)
    return [values[place] for place in places]


def displacements(recipes: dict[str, Recipe], images: Images) -> DataFrame:
    """Measure how far each recipe's system moves pixels, at each of its times.

    Args:
        recipes: Recipes by name.
        images: Images (B, C, side, side).

    Returns:
        One row for each recipe and t. The columns "mean distance" and "largest" hold the distance between a pixel and
        its source, in pixels. On the torus it is the shorter way. "black" is the share of pixels whose source lies
        outside. "images unchanged" is a share of the images.
    """
    import pandas

    rows: list[dict[str, Any]] = []
    side = images.shape[-1]
    pixels = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1)
    white = torch.ones(1, side, side)
    for name, recipe in recipes.items():
        for t in recipe.t:
            parameters: dict[str, Any] = dict(recipe.parameters)
            offsets = np.abs(source(recipe.system, side, side, t, parameters) - pixels)
            if recipe.system == "cat":
                offsets = np.minimum(offsets, side - offsets)
            distance = np.hypot(*np.moveaxis(offsets, -1, 0))
            lost = 1 - float(warp(white, recipe.system, t, **parameters).mean())
            same = (warp(images, recipe.system, t, **parameters) == images).flatten(1).all(dim=1).float().mean()
            rows.append({"recipe": name, "t": t, "mean distance": distance.mean(), "largest": distance.max()})
            rows[-1] |= {"black": lost, "images unchanged": float(same)}
    return pandas.DataFrame(rows)
