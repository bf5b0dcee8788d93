"""Warnings that name the line of the user's code."""

import contextlib
import os
import sys
import warnings
from pathlib import Path

import numpy as np

_FOLDERS = tuple(str(folder) + os.sep for folder in (Path(__file__).parents[1], Path(np.__file__).parent))
"""Folders of this package, and of numpy, whose decorators are around some functions."""


def warn(message: str) -> None:
    """Issue a UserWarning for the innermost line outside this package.

    Args:
        message: Text of the warning.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _is_inside(frame.f_code.co_filename):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _is_inside(file: str) -> bool:
    """Return True for a file of this package, or of a decorator around its functions."""
    return file.startswith(_FOLDERS) or file == contextlib.__file__
