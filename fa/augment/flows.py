"""Flows: points of the plane moved along the paper's differential equations, all in one solution by LSODA.

- Lotka-Volterra and the rotation are flows.
- The cat map on the torus is not the time-one map of a flow. Its lift to the plane is: "cat" is the flow of the
  lift, taken mod 1 at the end.
- The smooth cat map F is not the time-one map of a flow either, since its Jacobian vanishes at the origin.
  "smooth_cat" is the flow of x' = F(x) - x, a choice of this package.

`fa.augment.maps` has the maps themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float64

from fa.utils.optional import import_optional
from fa.utils.validation import check, check_one_of, check_real

RTOL = ATOL = 1e-8
"""Tolerances of LSODA: relative, and absolute in the units of the points."""

_LONG_ANGLE, _LONG_CAT, _LAST_CAT = 100.0, 4.0, 24.0  # radians, and units of time of the cat map

FAR = 10.0
"""Distance at which a trajectory starts to be stopped, as a multiple of the largest start coordinate (at least 1)."""

CAT = np.array([[2, 1], [1, 1]])
"""Matrix of Arnold's cat map, which acts on (x, y)."""


Points = Float64[np.ndarray, "points 2"]


@dataclass(frozen=True)
class System:
    """A system of differential equations `x' = velocity(x, **parameters)`.

    Attributes:
        velocity: Function of points (N, 2) and the parameters that returns the velocities (N, 2).
        parameters: Default values of the parameters.
        pixels: True if coordinates are pixels from the image's centre; False if the image is the unit square.
        torus: True if the end of a trajectory is taken mod 1.
    """

    velocity: Callable[..., Points]
    parameters: Mapping[str, float] = field(default_factory=dict)
    pixels: bool = False
    torus: bool = False


def smooth_cat(points: Points, m: float) -> Points:
    """Apply the smooth cat map F, the paper's third map, to points in the unit square.

    F(x, y) = (a_1 s(a_1), a_2 s(a_2)) with a = (2x + y, x + y) and s(a) = 1/(1 + exp(-m log a)). For a <= 0, s = 0.
    The paper divides a by the image's side; here the image has side 1.

    Args:
        points: Points (N, 2), rows (x, y).
        m: Exponent of the sigmoid.

    Returns:
        Points (N, 2), float64.
    """
    a = np.maximum(points @ CAT.T, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        power = a**m
        return np.asarray(np.where(np.isinf(power), a, a * power / (1 + power)))


def _lotka_volterra(points: Points, alpha: float, beta: float, gamma: float, delta: float) -> Points:
    """Return (alpha x - beta x y, delta x y - gamma y)."""
    x, y = points.T
    return np.stack([alpha * x - beta * x * y, delta * x * y - gamma * y], axis=1)


def _rotation(points: Points, omega: float) -> Points:
    """Return (-omega y, omega x)."""
    x, y = points.T
    return np.stack([-omega * y, omega * x], axis=1)


def _cat(points: Points) -> Points:
    """Return the velocity of the cat map's lift."""
    lifted: np.ndarray = points @ _log_cat().T
    return lifted


def _smooth_cat(points: Points, m: float) -> Points:
    """Return F(x) - x."""
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
"""The systems by name, with the paper's parameters. The released code uses gamma = delta = 1 in Lotka-Volterra."""


def flow(system: str, points: Any, t: float, **parameters: float) -> Points:
    """Move points along a flow to time t.

    The systems:

    - "lotka_volterra": x' = alpha x - beta x y, y' = delta x y - gamma y.
    - "rotation": x' = -omega y, y' = omega x.
    - "cat": The lift of the cat map, taken mod 1 at the end.
    - "smooth_cat": x' = F(x) - x with the smooth cat map F of exponent m.

    A diverging trajectory is stopped between FAR and 2 FAR times the largest start coordinate (at least 1). On the
    torus no trajectory is stopped.

    Args:
        system: A name in `SYSTEMS`.
        points: Start points (N, 2), rows (x, y), finite.
        t: Time. A negative time integrates backward.
        **parameters: Parameters of the system; defaults in `SYSTEMS`.

    Returns:
        End points (N, 2), float64, without NaN.

    Raises:
        ValueError: An argument is out of range.
        ArithmeticError: LSODA fails.
        ImportError: scipy is missing.

    Example:
        >>> import numpy as np
        >>> from fa.augment import flow
        >>> np.allclose(flow("rotation", [[1.0, 0.0]], np.pi / 2), [[0.0, 1.0]], atol=1e-6)
        True
    """
    check_one_of("system", system, tuple(SYSTEMS))
    start = _points(points)
    values = check_parameters(system, parameters)
    check_real("t", t, -np.inf)
    limit = np.inf if SYSTEMS[system].torus else FAR * max(1.0, float(np.abs(start).max(initial=0.0)))
    end = integrate(system, start, float(t), values, limit)
    if SYSTEMS[system].torus:
        end %= 1.0
        end[end == 1.0] = 0.0  # The remainder of a tiny negative number is rounded to 1.
    return end


def integrate(system: str, start: Points, t: float, parameters: Mapping[str, float], limit: float) -> Points:
    """Move points as `flow` does, without checks and without mod 1.

    x and y are interleaved, so the Jacobian has one band above and one below the diagonal.

    Args:
        system: A name in `SYSTEMS`.
        start: Start points (N, 2), float64.
        t: Time.
        parameters: Values of all parameters.
        limit: Coordinate at which a trajectory starts to be stopped. It ends before 2 `limit`.

    Returns:
        End points (N, 2), float64.

    Raises:
        ArithmeticError: LSODA fails.
        ImportError: scipy is missing.
    """
    velocity = SYSTEMS[system].velocity

    def derivative(_: float, state: np.ndarray) -> np.ndarray:
        """Return t times the velocity, tapered to 0 between `limit` and 2 `limit`."""
        points = state.reshape(-1, 2)
        inside = np.clip(2 - np.abs(points).max(axis=1, keepdims=True) / limit, 0.0, 1.0)
        near = np.clip(points, -2 * limit, 2 * limit)  # A rejected step must not overflow.
        tapered: np.ndarray = t * velocity(near, **parameters) * inside**2 * (3 - 2 * inside)
        return tapered.ravel()

    if t == 0 or len(start) == 0:
        return start.copy()
    if (matrix := _long_linear_flow(system, t, parameters)) is not None:
        return np.asarray(start @ matrix.T)
    solve_ivp = import_optional("scipy.integrate", "fa.augment.flow", "theory").solve_ivp
    # Time is measured in units of t, because LSODA hangs on an interval of 5e-324.
    solution = solve_ivp(
        derivative, (0.0, 1.0), start.ravel(), "LSODA", t_eval=(1.0,), rtol=RTOL, atol=ATOL, lband=1, uband=1
    )
    if not solution.success:
        raise ArithmeticError(f"LSODA could not follow {system} to t = {t:g}: {solution.message}")
    end: np.ndarray = solution.y[:, -1].reshape(-1, 2)
    return end


def _long_linear_flow(system: str, t: float, parameters: Mapping[str, float]) -> np.ndarray | None:
    """Return the matrix of a linear flow over so long a time that LSODA is inaccurate, or does not end; else None.

    The cat map stretches errors by 2.6 in a unit of time: after 24 of them, float64 leaves 1e-5.
    """
    if system == "rotation" and abs(angle := parameters["omega"] * t) > _LONG_ANGLE:
        check("t", t, math.isfinite(angle), f"finite times omega={parameters['omega']:g}")
        return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    if system == "cat" and abs(t) > _LONG_CAT:
        check_cat_time(t)
        lengths, vectors = np.linalg.eigh(CAT.astype(np.float64))
        return np.asarray((vectors * lengths**t) @ vectors.T)
    return None


@cache
def _log_cat() -> np.ndarray:
    """Return the cat map's generator: the flow of this matrix for a unit of time is the map."""
    generator: np.ndarray = import_optional("scipy.linalg", "fa.augment.flow", "theory").logm(CAT.astype(np.float64))
    return generator


def check_cat_time(t: float) -> None:
    """Check the time of the flow "cat", which amplifies rounding errors.

    Args:
        t: Time.

    Raises:
        ValueError: `t` is out of range.
    """
    check("t", t, abs(t) <= _LAST_CAT, f"at most {_LAST_CAT:g} in absolute value for 'cat', which amplifies errors")


def check_parameters(system: str, given: Mapping[str, Any]) -> dict[str, float]:
    """Fill in the default values of a system's parameters.

    Args:
        system: A name in `SYSTEMS`.
        given: Values that replace the defaults, finite.

    Returns:
        Values of all parameters by name.

    Raises:
        ValueError: Unknown parameter, or a value that is not finite.
    """
    known = SYSTEMS[system].parameters
    for name, value in given.items():
        check("parameters", name, name in known, f"of {system}: {', '.join(known) or 'it has none'}")
        check_real(name, value, 0 if name == "m" else -np.inf)  # s is undefined at 0 for m < 0.
    return {**known, **{name: float(value) for name, value in given.items()}}


def _points(points: Any) -> Points:
    """Convert points to float64 and check shape and values."""
    array = np.asarray(points, dtype=np.float64)
    check("points", array.shape, array.ndim == 2 and array.shape[1] == 2, "(N, 2), rows of x and y")
    check("points", "not finite in places", bool(np.isfinite(array).all()), "finite")
    return array
