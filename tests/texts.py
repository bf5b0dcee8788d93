"""Checks of messages and captions that do not depend on their wording."""

import re

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?")


def numbers(text: str) -> list[float]:
    """Return all numbers in a text, in order of appearance."""
    return [float(number.replace(",", "")) for number in _NUMBER.findall(text)]


def check_refusal(code: object, err: str, pattern: str) -> None:
    """Assert that the command line refused a user's input: exit code 2 and one line on stderr.

    Args:
        code: Exit code.
        err: Output on stderr.
        pattern: Regular expression for the argument's name and the value in that line.
    """
    assert code == 2, err
    assert re.fullmatch(r"fa: [^\n]+\n", err), err
    assert re.search(pattern, err), err
