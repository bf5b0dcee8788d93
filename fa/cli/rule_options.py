"""The options of the rules on the command line, for every command that takes a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

OPTIONS = {
    "m": (int, "FA: columns of the subspace."),
    "lam": (float, "FA: weight of the regularizer; around p/(m sqrt(n)) for l1, p/sqrt(n m) for rows."),
    "a": (float, "FA: the root in the objective."),
    "tol": (float, "FA: stop when the objective falls by less."),
    "max_iter": (int, "FA: iterations at most."),
    "formulation": (str, "FA: 'paper' or 'released'."),
    "regularizer": (str, "FA: 'pairwise', 'l1', 'rows' or 'group'."),
    "keep": (int, "Multi-Krum: gradients that are kept."),
    "preaggregators": (
        str,
        "Steps before the rule, by commas: 'unit', 'krum,median_norm', 'byzfl:ARC', ...; 'none' for none.",
    ),
}
"""Type and help by name."""


def rule_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all the options of the rules."""
    for name, (kind, text) in reversed(OPTIONS.items()):
        command = click.option("--" + name.replace("_", "-"), name, type=kind, default=None, help=text)(command)
    return command


def take(given: dict[str, Any]) -> dict[str, Any]:
    """Take the options of the rule out of what a command was given; those that were not given are left out."""
    options = {name: given.pop(name) for name in OPTIONS if name in given}
    options = {name: value for name, value in options.items() if value is not None}
    if "preaggregators" in options:
        steps = options["preaggregators"]
        options["preaggregators"] = () if steps == "none" else tuple(step.strip() for step in steps.split(","))
    return options
