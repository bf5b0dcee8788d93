"""Checks of arguments, which raise ValueErrors of one form: `<argument> must be <requirement>, got <value>`."""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

_LONGEST = 1e9  # Timeout in seconds; those of Python's locks end at 9.2e9.


class TooFewWorkersError(ValueError):
    """Error for too few gradients for a rule or a pre-aggregator."""


MOST_THREADS = 1024
"""Largest number of threads; torch ends the process with 100,000."""


def check(name: str, value: object, condition: bool, must_be: str, cure: str = "") -> None:
    """Check one argument.

    Args:
        name: Name of the argument.
        value: Its value, for the message.
        condition: Whether the argument is valid.
        must_be: Requirement, for the message.
        cure: Sentence that describes a cure, with its full stop.

    Raises:
        ValueError: `condition` is false.
    """
    if not condition:
        raise ValueError(f"{name} must be {must_be}, got {value!r}" + (f". {cure}" if cure else ""))


def check_min_workers(name: str, p: int, f: int, times: int, plus: int, remark: str = "") -> None:
    """Check that p gradients, f of them Byzantine, are enough: p >= times f + plus.

    Args:
        name: Name of the rule or pre-aggregator.
        p: Number of gradients.
        f: Number of Byzantine workers to tolerate.
        times: Factor of f in the condition.
        plus: Summand of the condition.
        remark: Origin of the p gradients, as text that follows them in the message.

    Raises:
        TooFewWorkersError: The condition does not hold.
    """
    if p < times * f + plus:
        needed = f"p >= {times}f + {plus}" if plus != 1 else f"p > {times}f"
        raise TooFewWorkersError(
            f"{name} needs {needed}, got p = {p} and f = {f}{remark}. Use more workers or a smaller f."
        )


def check_integer(name: str, value: Any, least: int) -> None:
    """Check that a value is an integer of at least `least`.

    Args:
        name: Name of the argument.
        value: Its value; a bool does not count as an integer.
        least: Smallest valid value.

    Raises:
        ValueError: The value is not such an integer.
    """
    integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    check(name, value, integer and bool(value >= least), f"an integer of at least {least}")


def check_real(name: str, value: Any, least: float, why: str = "") -> None:
    """Check that a value is a finite number of at least `least`.

    Args:
        name: Name of the argument.
        value: Its value; a bool does not count as a number.
        least: Smallest valid value.
        why: Text that follows the requirement in the message.

    Raises:
        ValueError: The value is not such a number.
    """
    range = "" if least == -math.inf else f" of at least {least:g}"
    check(name, value, _is_finite(value) and bool(value >= least), f"a finite number{range}{why}")


def _is_finite(value: Any) -> bool:
    """Return True for a finite number that a float can hold; a bool does not count as a number."""
    if not isinstance(value, float | int | np.floating | np.integer) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # of an integer
        return False


def check_positive(name: str, value: Any) -> None:
    """Check that a value is a finite number greater than 0.

    Args:
        name: Name of the argument.
        value: Its value; a bool does not count as a number.

    Raises:
        ValueError: The value is not such a number.
    """
    check(name, value, _is_finite(value) and bool(value > 0), "a finite number greater than 0")


def check_seconds(name: str, value: Any) -> None:
    """Check that a value is a valid timeout: a number greater than 0 and at most 1e9, about 30 years.

    Args:
        name: Name of the argument.
        value: Its value, in seconds.

    Raises:
        ValueError: The value is not such a number.
    """
    check_positive(name, value)
    check(name, value, bool(value <= _LONGEST), f"at most {_LONGEST:g} seconds")


def check_one_of(name: str, value: Any, allowed: Sequence[str], others: str = "") -> None:
    """Check that a value is one of a few words, and suggest the closest word otherwise.

    Args:
        name: Name of the argument.
        value: Its value.
        allowed: Valid words.
        others: Description of further valid values, for the end of the list in the message.

    Raises:
        ValueError: The value is not one of the words.
    """
    if value in allowed:
        return
    close = get_close_matches(str(value), allowed, n=1)
    cure = f"Did you mean {close[0]!r}?" if close else ""
    check(name, value, False, f"one of {', '.join([*allowed, others] if others else allowed)}", cure)


def printable(text: str) -> str:
    """Replace the characters of another process's text that are not printable, such as line breaks.

    Args:
        text: The text.

    Returns:
        The text with question marks instead.
    """
    return "".join(character if character.isprintable() else "?" for character in text)
