"""Where each pixel of a moved image comes from: the flows and the maps on the grid of an image's pixels.

A grid depends on the image's size, the system, the time and the parameters, and on nothing else: each is computed once.
"cat" at a whole t, and "smooth_cat_map", are iterated maps; all else is a flow of fa.augment.flows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64

from fa.augment.flows import CAT, SYSTEMS, check_parameters, integrate, smooth_cat
from fa.utils.validation import check, check_integer, check_one_of, check_real

MOVES = (*SYSTEMS, "smooth_cat_map")
"""What images can be moved by: the four flows, and the smooth cat map itself."""

LEFT = 4.0
"""How many times farther from an image's centre than its farthest pixel a trajectory starts to be stopped."""

_CACHED = 64  # grids; one of 64 x 64 pixels takes 64 KB

Grid = Float64[np.ndarray, "height width 2"]
"""For each pixel the (column, row) that it copies, in pixels; any real number, outside the image too."""


def source(system: str, height: int, width: int, t: float, parameters: Mapping[str, float] | None = None) -> Grid:
    """The grid of a backward warp, (height, width, 2), read-only: output pixel (i, j) copies column [i, j, 0] and row
    [i, j, 1] of the source.

    x is a pixel's column and y its row, counted from the image's centre ("lotka_volterra", "rotation"), or both divided
    by the side of a square image ("cat" and the smooth ones). On the torus columns and rows are in [0, side). Raises
    ValueError for arguments out of range.
    """
    check_one_of("system", system, MOVES)
    check_integer("height", height, 1)
    check_integer("width", width, 1)
    if system == "smooth_cat_map":
        values = check_parameters("smooth_cat", parameters or {})
        check("t", t, float(t).is_integer() and t >= 0, "a whole number of iterations, 0 or more, for smooth_cat_map")
    else:
        values = check_parameters(system, parameters or {})
        check_real("t", t, -np.inf)
    if not centred(system):
        check("images", f"{height} x {width} pixels", height == width, f"square for {system}")
    return _source(system, height, width, float(t), tuple(values.items()))


def centred(system: str) -> bool:
    """Whether the system's coordinates are pixels from the image's centre; else the image is the unit square."""
    return system in SYSTEMS and SYSTEMS[system].pixels


def torus(system: str) -> bool:
    """Whether what leaves the image on one side comes in on the other."""
    return system in SYSTEMS and SYSTEMS[system].torus


@lru_cache(maxsize=_CACHED)
def _source(system: str, height: int, width: int, t: float, parameters: tuple[tuple[str, float], ...]) -> Grid:
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
    if system == "smooth_cat_map":
        for _ in range(int(t)):
            points = smooth_cat(points, **parameters)
        return points
    limit = np.inf if torus(system) else LEFT * max(1.0, float(np.abs(points).max()))
    return integrate(system, points, t, parameters, limit)


def cat_pixels(pixels: Int64[np.ndarray, "n 2"], side: int, times: int) -> Int64[np.ndarray, "n 2"]:
    """Arnold's cat map on the pixels (x, y) of a side x side image, `times` times: a permutation; its inverse if < 0.

    (x, y) -> (2x + y, x + y) mod side, by whole numbers only: the paper's map, which has side for its N.
    """
    step = CAT if times >= 0 else np.array([[1, -1], [-1, 2]])
    power = np.eye(2, dtype=np.int64)
    for bit in bin(abs(times))[2:]:
        power = power @ power % side
        if bit == "1":
            power = power @ step % side
    return np.asarray(pixels @ power.T % side)


def cat_period(side: int) -> int:
    """After how many iterations every side x side image is itself again under the cat map: the period of its matrix.

    Dyson and Falk, Period of a discrete cat mapping, Amer. Math. Monthly 1992: at most 3 side.
    """
    check_integer("side", side, 1)
    power, times = CAT % side, 1
    while not np.array_equal(power, np.eye(2, dtype=np.int64) % side):
        power, times = power @ CAT % side, times + 1
    return times
