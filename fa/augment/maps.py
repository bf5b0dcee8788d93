"""Source coordinates of each pixel of a warped image: flows and maps on the grid of pixels.

A grid depends only on the image's size, the system, the time and the parameters, so each is computed once and cached.
"cat" at an integer t and "smooth_cat_map" are iterated maps. All others are flows of `fa.augment.flows`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from fa.augment.flows import CAT, SYSTEMS, check_cat_time, check_parameters, integrate, smooth_cat
from fa.utils.validation import check, check_integer, check_one_of, check_real

MOVES = (*SYSTEMS, "smooth_cat_map")
"""Systems that can warp images: the four flows, and the smooth cat map itself."""

LEFT = 4.0
"""Coordinate at which a trajectory starts to be stopped, as a multiple of a pixel's largest coordinate (at least 1)."""

_CACHED = 64  # Number of cached grids; a grid of 64 x 64 pixels takes 64 KB.

Grid = Float64[np.ndarray, "height width 2"]
"""Source (column, row) of each pixel, in pixels. The values are real and may lie outside the image."""


def source(system: str, height: int, width: int, t: float, parameters: Mapping[str, float] | None = None) -> Grid:
    """Return the source coordinates of each pixel of a backward warp.

    For "lotka_volterra" and "rotation", x and y are a pixel's column and row, counted from the image's centre. For
    "cat" and the smooth systems, x and y are column and row divided by the side of a square image. On the torus,
    columns and rows are in [0, side).

    Args:
        system: A name in `MOVES`.
        height: Number of rows.
        width: Number of columns.
        t: Time, or the number of iterations of a map.
        parameters: Parameters of the system; default None, the values in `SYSTEMS`.

    Returns:
        The grid, float64 (height, width, 2), read-only. Output pixel (i, j) copies column [i, j, 0] and row [i, j, 1].

    Raises:
        ValueError: An argument is out of range.
    """
    check_one_of("system", system, MOVES)
    check_integer("height", height, 1)
    check_integer("width", width, 1)
    if system == "smooth_cat_map":
        values = check_parameters("smooth_cat", parameters or {})
    else:
        values = check_parameters(system, parameters or {})
    check_time(system, t)
    if not centred(system):
        check("images", f"{height} x {width} pixels", height == width, f"square for {system}")
    return _source(system, height, width, float(t), tuple(values.items()))


def check_time(system: str, t: Any) -> None:
    """Check the time of a warp.

    Args:
        system: A name in `MOVES`.
        t: Time, or the number of iterations of a map.

    Raises:
        ValueError: `t` is out of range.
    """
    if system == "smooth_cat_map":
        check_real("t", t, 0)
        check("t", t, float(t).is_integer(), "a whole number of iterations, 0 or more, for smooth_cat_map")
    else:
        check_real("t", t, -np.inf)
        if system == "cat" and not float(t).is_integer():
            check_cat_time(t)


def centred(system: str) -> bool:
    """Return True if coordinates are pixels from the image's centre, False if the image is the unit square.

    Args:
        system: Name of a flow in `fa.augment.SYSTEMS`, or of a map.
    """
    return system in SYSTEMS and SYSTEMS[system].pixels


def torus(system: str) -> bool:
    """Return True if pixels that leave the image on one side enter it on the opposite side.

    Args:
        system: Name of a flow in `fa.augment.SYSTEMS`, or of a map.
    """
    return system in SYSTEMS and SYSTEMS[system].torus


@lru_cache(maxsize=_CACHED)
def _source(system: str, height: int, width: int, t: float, parameters: tuple[tuple[str, float], ...]) -> Grid:
    """Compute the grid and cache it."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([columns, rows], axis=-1).reshape(-1, 2)
    if torus(system) and t.is_integer():
        moved = cat_pixels(pixels, height, int(t)).astype(np.float64)
    else:
        origin = np.array([width - 1, height - 1]) / 2 if centred(system) else np.zeros(2)
        scale = 1.0 if centred(system) else float(height)
        moved = _moved(system, (pixels - origin) / scale, t, dict(parameters)) * scale + origin
        if torus(system):
            moved %= scale
    grid = moved.reshape(height, width, 2)
    grid.setflags(write=False)
    return grid


def _moved(
    system: str, points: Float64[np.ndarray, "n 2"], t: float, parameters: dict[str, float]
) -> Float64[np.ndarray, "n 2"]:
    """Move points by the iterated smooth cat map, or along a flow."""
    if system == "smooth_cat_map":
        for _ in range(int(t)):  # Points that have left the image move away from it, and must not overflow.
            points = smooth_cat(np.minimum(points, 1e100), **parameters)
        return points
    limit = np.inf if torus(system) else LEFT * max(1.0, float(np.abs(points).max()))
    return integrate(system, points, t, parameters, limit)


def cat_pixels(pixels: Int64[np.ndarray, "n 2"], side: int, times: int) -> Int64[np.ndarray, "n 2"]:
    """Apply Arnold's cat map to the pixels of a square image.

    (x, y) -> (2x + y, x + y) mod side, in integers. This is the paper's map with N = side, a permutation.

    Args:
        pixels: Pixels (n, 2), rows (x, y), int64.
        side: Side of the image, in pixels.
        times: Number of iterations; a negative number applies the inverse.

    Returns:
        Pixels (n, 2), int64.
    """
    step = CAT if times >= 0 else np.array([[1, -1], [-1, 2]])
    power = np.eye(2, dtype=np.int64)
    for bit in bin(abs(times))[2:]:
        power = power @ power % side
        if bit == "1":
            power = power @ step % side
    return np.asarray(pixels @ power.T % side)


def cat_period(side: int) -> int:
    """Return the number of iterations after which the cat map is the identity on side x side images.

    It is the period of the map's matrix, and at most 3 side. Source: Dyson and Falk, Period of a discrete cat mapping,
    Amer. Math. Monthly 1992.

    Args:
        side: Side of the image, in pixels.

    Raises:
        ValueError: `side` is less than 1.
    """
    check_integer("side", side, 1)
    power, times = CAT % side, 1
    while not np.array_equal(power, np.eye(2, dtype=np.int64) % side):
        power, times = power @ CAT % side, times + 1
    return times
