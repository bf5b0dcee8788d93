"""The paper's experiments: studies made of runs, a store that keeps what is finished, figures and claims.

A figure is a module with NAME, `study(profile, ...)`, `draw(table, title)` and `claims(table)`, and a notebook of
that NAME.
"""

from __future__ import annotations

import importlib
from typing import Any

from fa.checks import check_one_of

FIGURES = ("fig02", "fig03", "fig04")


def figure_module(name: str) -> Any:
    """The module of a figure, named shortly (fig02) or as its notebook (fig02_mean_tolerance)."""
    short = name.split("_")[0]
    check_one_of("figure", short, FIGURES)
    return importlib.import_module(f"fa.experiments.{short}")
