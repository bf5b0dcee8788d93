"""The checks at the border: each raises a ValueError that names the argument, what it must be, and what it was."""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np


class ConditionError(ValueError):
    """Too few gradients for a rule or a step, of those that came or of those that are finite."""


def check_condition(name: str, p: int, f: int, times: int, plus: int, remark: str = "") -> None:
    """p gradients of which f may be faulty: p >= times f + plus. Raises ConditionError."""
    if p >= times * f + plus:
        return
    needed = f"p >= {times}f + {plus}" if plus != 1 else f"p > {times}f"
    raise ConditionError(
        f"{name} needs {needed}; here p = {p} gradients and f = {f}{remark}: take more workers or a smaller f"
    )


def require(condition: bool, name: str, value: object, requirement: str) -> None:
    """Whatever else an argument must be."""
    if not condition:
        raise ValueError(f"{name} must be {requirement}; it is {value!r}")


def check_integer(name: str, value: Any, least: int) -> None:
    """An integer of at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; it is {value!r}")


def check_real(name: str, value: Any, least: float, why: str = "") -> None:
    """A finite number of at least `least`."""
    if (
        not isinstance(value, float | int | np.floating | np.integer)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or value < least
    ):
        raise ValueError(f"{name} must be a finite number of at least {least:g}{why}; it is {value!r}")


def check_one_of(name: str, value: Any, allowed: Sequence[str], others: str = "") -> None:
    """One of a few words, or of `others` that cannot be listed; a near miss is named."""
    if value in allowed:
        return
    close = get_close_matches(str(value), allowed, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    listed = ", ".join([*allowed, others] if others else allowed)
    raise ValueError(f"{name} must be one of {listed}; it is {value!r}{hint}")
