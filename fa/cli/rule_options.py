"""Options of the rules, for every command that takes a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

OPTIONS = {
    "m": (int, "FA: number of columns of the subspace, by default ceil((p + 1)/2)."),
    "lam": (float, "FA: weight of the regularizer; about p/(m sqrt(n)) for l1, p/sqrt(n m) for rows."),
    "a": (float, "FA: root in the objective, at least 1."),
    "tol": (float, "FA: decrease of the objective below which IRLS stops."),
    "max_iter": (int, "FA: maximum number of IRLS iterations."),
    "formulation": (str, "FA, Bulyan: formula, 'paper' or 'released'."),
    "regularizer": (str, "FA: 'pairwise', 'l1', 'rows' or 'group'."),
    "keep": (int, "Multi-Krum: number of averaged gradients, by default p - f - 2."),
    "preaggregators": (str, "Pre-aggregators, separated by commas: 'unit', 'krum,median_norm', ...; 'none'."),
}
"""Type and help by name."""


def rule_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of all rules to a command."""
    for name, (kind, text) in reversed(OPTIONS.items()):
        command = click.option("--" + name.replace("_", "-"), name, type=kind, default=None, help=text)(command)
    return command


def pop_rule_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of the rule from a command's arguments, and return those that are set."""
    options = {name: arguments.pop(name) for name in OPTIONS if name in arguments}
    options = {name: value for name, value in options.items() if value is not None}
    if "preaggregators" in options:
        names = options["preaggregators"]
        options["preaggregators"] = () if names == "none" else tuple(name.strip() for name in names.split(","))
    return options
