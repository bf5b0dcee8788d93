"""Points of the plane carried along the paper's systems of differential equations, all in one solution by LSODA.

Lotka-Volterra and the rotation are flows. The cat map on the torus is no flow's time-one map; its lift to the plane
is, and "cat" is the lift's flow, taken mod 1 at the end. The smooth cat map F is no flow either (its Jacobian vanishes
at the origin), and "smooth_cat" is the flow of x' = F(x) - x, a choice of this package. The maps: fa.augment.maps.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float64

from fa.utils.validation import check, check_one_of, check_real

RTOL = ATOL = 1e-8
"""LSODA's tolerances, relative and in the units of the points."""

FAR = 10.0
"""How many times farther out than the farthest point given (and than 1) a trajectory starts to be stopped."""

CAT = np.array([[2, 1], [1, 1]])
"""Arnold's cat map, on (x, y)."""


Points = Float64[np.ndarray, "points 2"]


@dataclass(frozen=True)
class System:
    """x' = velocity(x, **parameters), with the parameters' defaults and the coordinates of an image that it acts on."""

    velocity: Callable[..., Points]
    parameters: Mapping[str, float] = field(default_factory=dict)
    pixels: bool = False  # coordinates in pixels from the image's centre; else the image is the unit square
    torus: bool = False  # the end of a trajectory is taken mod 1


def smooth_cat(points: Points, m: float) -> Points:
    """The smooth cat map F: (a_1 s(a_1), a_2 s(a_2)), a = (2x + y, x + y), s(a) = 1/(1 + exp(-m log a)); s = 0, a <= 0.

    The paper's third map, in the unit square, where its a is divided by the image's side already.
    """
    a = np.maximum(points @ CAT.T, 0.0)
    power = a**m
    return np.asarray(a * power / (1 + power))


def _lotka_volterra(points: Points, alpha: float, beta: float, gamma: float, delta: float) -> Points:
    x, y = points.T
    return np.stack([alpha * x - beta * x * y, delta * x * y - gamma * y], axis=1)


def _rotation(points: Points, omega: float) -> Points:
    """x' = -omega y, y' = omega x."""
    x, y = points.T
    return np.stack([-omega * y, omega * x], axis=1)


def _cat(points: Points) -> Points:
    lifted: np.ndarray = points @ _log_cat().T
    return lifted


def _smooth_cat(points: Points, m: float) -> Points:
    velocity: np.ndarray = smooth_cat(points, m) - points
    return velocity


SYSTEMS: Mapping[str, System] = MappingProxyType(
    {
        "lotka_volterra": System(
            _lotka_volterra, {"alpha": 2 / 3, "beta": 4 / 3, "gamma": -1.0, "delta": -1.0}, pixels=True
        ),
        "rotation": System(_rotation, {"omega": 1.0}, pixels=True),
        "cat": System(_cat, torus=True),
        "smooth_cat": System(_smooth_cat, {"m": 0.95}),
    }
)
"""The systems by name, with the paper's parameters. The released code has gamma = delta = 1 in Lotka-Volterra."""


def flow(system: str, points: Any, t: float, **parameters: float) -> Points:
    """Where the points (N, 2), rows (x, y), are at time t: (N, 2) float64, never NaN; a negative t goes back in time.

    Systems and parameters are those of SYSTEMS: x' = alpha x - beta x y, y' = delta x y - gamma y ("lotka_volterra");
    x' = -omega y, y' = omega x ("rotation"); the lift of the cat map mod 1 ("cat"); x' = F(x) - x with the smooth cat
    map F of exponent m ("smooth_cat"). A trajectory that runs away is stopped between FAR and 2 FAR times the largest
    coordinate given; on the torus none is. Raises ValueError for arguments out of range.
    """
    check_one_of("system", system, tuple(SYSTEMS))
    start = _points(points)
    values = check_parameters(system, parameters)
    check_real("t", t, -np.inf)
    limit = np.inf if SYSTEMS[system].torus else FAR * max(1.0, float(np.abs(start).max(initial=0.0)))
    end = integrate(system, start, float(t), values, limit)
    if SYSTEMS[system].torus:
        end %= 1.0
    return end


def integrate(system: str, start: Points, t: float, parameters: Mapping[str, float], limit: float) -> Points:
    """As `flow`, of arguments that are checked, with trajectories stopped between `limit` and 2 `limit`; not mod 1.

    x and y are interleaved, so that the Jacobian has one band above and one below the diagonal.
    """
    velocity = SYSTEMS[system].velocity

    def derivative(_: float, state: np.ndarray) -> np.ndarray:
        points = state.reshape(-1, 2)
        inside = np.clip(2 - np.abs(points).max(axis=1, keepdims=True) / limit, 0.0, 1.0)
        near = np.clip(points, -2 * limit, 2 * limit)  # a step that is tried and not taken must not overflow
        tapered: np.ndarray = t * velocity(near, **parameters) * inside**2 * (3 - 2 * inside)
        return tapered.ravel()

    if t == 0 or len(start) == 0:
        return start.copy()
    solve_ivp = _scipy("integrate").solve_ivp
    # Time is counted in units of t: over an interval of 5e-324 LSODA would not come to an end.
    solution = solve_ivp(
        derivative, (0.0, 1.0), start.ravel(), "LSODA", t_eval=(1.0,), rtol=RTOL, atol=ATOL, lband=1, uband=1
    )
    if not solution.success:
        raise ArithmeticError(f"LSODA could not follow {system} to t = {t:g}: {solution.message}")
    end: np.ndarray = solution.y[:, -1].reshape(-1, 2)
    return end


@cache
def _log_cat() -> np.ndarray:
    """The cat map's generator: its flow for a unit of time is the map."""
    generator: np.ndarray = _scipy("linalg").logm(CAT.astype(np.float64))
    return generator


def _scipy(module: str) -> Any:
    """Imported where trajectories are computed, so that training on images as they are needs none."""
    try:
        return importlib.import_module(f"scipy.{module}")
    except ImportError as error:
        raise ImportError("fa.augment.flow needs scipy: pip install 'flag-aggregator[theory]'") from error


def check_parameters(system: str, given: Mapping[str, Any]) -> dict[str, float]:
    """The system's parameters with those that are given in their places; ValueError for one unknown or not finite."""
    known = SYSTEMS[system].parameters
    for name, value in given.items():
        check("parameters", name, name in known, f"of {system}: {', '.join(known) or 'it has none'}")
        check_real(name, value, -np.inf)
    return {**known, **{name: float(value) for name, value in given.items()}}


def _points(points: Any) -> Points:
    array = np.asarray(points, dtype=np.float64)
    check("points", array.shape, array.ndim == 2 and array.shape[1] == 2, "(N, 2), rows of x and y")
    check("points", "not finite in places", bool(np.isfinite(array).all()), "finite")
    return array
