"""Pictures of the augmentation: the flows as vector fields, images moved step by step, and sample grids of recipes."""

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
STRENGTHS = 5  # columns of a sample grid for the times, evenly chosen of the recipe's


def pattern(side: int, channels: int = 1) -> Images:
    """A white frame with a white lattice on grey: an image that shows where each pixel goes."""
    lines = torch.arange(side) % 4 == 0
    lines[-1] = True
    grid = torch.where(lines[:, None] | lines, 255, 70).to(torch.uint8)
    return grid.expand(1, channels, side, side).contiguous()


def fields(systems: Sequence[tuple[str, str, dict[str, float]]], side: int) -> Figure:
    """The vector field of each (title, system, parameters) on an image of side x side pixels, in its coordinates."""
    figure = style.new_figure(4 * len(systems), 3.4)
    panels = figure.subplots(1, len(systems), squeeze=False)[0]
    for axes, (title, system, parameters) in zip(panels, systems, strict=True):
        _draw_field(axes, system, side, parameters)
        axes.set_title(title)
    return figure


def _draw_field(axes: Axes, system: str, side: int, parameters: dict[str, float]) -> None:
    """Arrows of one length, coloured by the speed's decimal logarithm."""
    pixels = centred(system)
    ticks = np.linspace(-(side - 1) / 2, (side - 1) / 2, 14) if pixels else np.linspace(0.02, 0.98, 14)
    points = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    arrows = SYSTEMS[system].velocity(points, **{**SYSTEMS[system].parameters, **parameters})
    speed = np.hypot(*arrows.T)
    x, y = (arrows / speed[:, None]).T
    look: dict[str, Any] = {"cmap": "viridis", "angles": "xy", "scale": 17, "width": 0.008, "pivot": "mid"}
    shown = axes.quiver(*points.T, x, y, np.log10(speed), **look)
    unit = "pixels from the centre" if pixels else "parts of the side"
    axes.set(xlabel=f"x ({unit})", ylabel=f"y ({unit})", aspect="equal")
    axes.grid(visible=False)
    axes.invert_yaxis()
    axes.figure.colorbar(shown, ax=axes, label="$\\log_{10}$ of the speed")


def strip(images: dict[str, Images]) -> Figure:
    """One column for each entry, titled by its key; one row for each image in it."""
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
    """A recipe's grid: a row for each image, the lattice first; a column for each strength of movement and noise."""
    batch = torch.cat([pattern(images.shape[-1], images.shape[1]), images])
    columns = {"as it is": batch}
    for t in evenly(recipe.t, STRENGTHS):
        columns[f"t = {t:g}"] = warp(batch, recipe.system, t, recipe.interpolation, **dict(recipe.parameters))
    for level in (level for level in recipe.noise if level > 0):
        columns[f"noise {level:g}"] = add_noise(batch, level, generator("samples", seed, 0, 0))
    return strip(columns)


def evenly(values: Sequence[float], count: int) -> list[float]:
    """At most `count` of the values, evenly chosen, the first and the last among them."""
    places = np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)
    return [values[place] for place in places]


def displacements(recipes: dict[str, Recipe], images: Images) -> DataFrame:
    """How far each recipe's system moves the pixels of images (B, C, side, side) at each of its times.

    Columns: recipe, t, mean and largest distance of a pixel's source (in pixels; on the torus the shorter way), the
    share of pixels that are black because their source lies outside, and the share of images that stay as they were.
    """
    import pandas

    rows: list[dict[str, Any]] = []
    side = images.shape[-1]
    here = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1)
    white = torch.ones(1, side, side)
    for name, recipe in recipes.items():
        for t in recipe.t:
            given: dict[str, Any] = dict(recipe.parameters)
            away = np.abs(source(recipe.system, side, side, t, given) - here)
            if recipe.system == "cat":
                away = np.minimum(away, side - away)
            distance = np.hypot(*np.moveaxis(away, -1, 0))
            lost = 1 - float(warp(white, recipe.system, t, **given).mean())
            same = (warp(images, recipe.system, t, **given) == images).flatten(1).all(dim=1).float().mean()
            rows.append({"recipe": name, "t": t, "mean distance": distance.mean(), "largest": distance.max()})
            rows[-1] |= {"black": lost, "images unchanged": float(same)}
    return pandas.DataFrame(rows)
