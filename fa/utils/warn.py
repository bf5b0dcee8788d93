"""Warnings that name the line of the user's code."""

import contextlib
import sys
import warnings
from pathlib import Path

import numpy as np

_INNER = (str(Path(__file__).parents[1]), str(Path(np.__file__).parent), contextlib.__file__)
"""Files of this package, and of the decorators around its functions."""


def warn(message: str) -> None:
    """Issue a UserWarning for the innermost line outside this package.

    Args:
        message: Text of the warning.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INNER):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
