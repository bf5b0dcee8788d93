"""Options of the rules, for every command that takes a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

OPTIONS: dict[str, tuple[type, str]] = {
    "m": (int, "FA: number of columns of the subspace.  [default: ceil((p + 1)/2)]"),
    "lam": (
        float,
        "FA: weight of the regularizer; useful values are about p/(m sqrt(n)) for l1, p/sqrt(n m) for rows.  "
        "[default: 0]",
    ),
    "a": (float, "FA: inverse of the power in eq. 5, at least 1.  [default: 2]"),
    "tol": (
        float,
        "FA: change of the objective at which it stops; geometric median: change of a weight.  "
        "[default: 1e-10; geometric median: 1e-12]",
    ),
    "max_iter": (
        int,
        "FA, geometric median, centered clipping: maximum number of iterations.  "
        "[default: 5, released formulation: 1; geometric median: 1000; centered clipping: 10]",
    ),
    "worker_weights": (
        str,
        "FA: weight of each worker, separated by commas, as in 1,1,0.5.  [default: equal weights]",
    ),
    "formulation": (str, "FA, Bulyan: formula, 'paper' or 'released'.  [default: paper]"),
    "regularizer": (str, "FA: 'pairwise', 'l1', 'rows' or 'group'.  [default: pairwise]"),
    "neighbours": (
        str,
        "Krum, Multi-Krum, Bulyan: number of neighbours in a score, 'p-f-2' or 'p-f-1'.  [default: p-f-2]",
    ),
    "distance": (str, "Krum, Multi-Krum, Bulyan: distances in a score, 'squared' or 'plain'.  [default: squared]"),
    "keep": (int, "Multi-Krum: number of averaged gradients.  [default: p - f - 2]"),
    "interpolation": (
        str,
        "Median, MeaMed: median of an even number of values, 'midpoint' or 'lower'.  [default: midpoint]",
    ),
    "nu": (
        float,
        "Geometric median: distance below which a weight does not grow.  [default: 1e-9 of the radius of a majority]",
    ),
    "tau": (float, "Centered clipping: largest length of a difference.  [default: the median length]"),
    "start": (
        str,
        "FA: 'equal', 'data', 'random' or 'largest:K'. Centered clipping: first point, 'zero' or 'mean'.  "
        "[default: equal; centered clipping: zero]",
    ),
    "gradients_per_worker": (
        str,
        "FA: number of gradients of each worker (consecutive ranks), as in 2 or 2,3,1.  [default: 1]",
    ),
    "group_term": (
        str,
        "FA: term of a worker with several gradients, 'fraction' or 'chordal'.  [default: fraction]",
    ),
    "dims": (str, "FA: dimensions of nested subspaces, separated by commas, as in 2,4,8.  [default: one subspace]"),
    "prior": (str, "FA: alpha and beta of the explained variances.  [default: 1,0.5]"),
    "maximum": (str, "CAF: rows of the maximum, 'remaining' or 'all'.  [default: remaining]"),
    "reference": (int, "MoNNA: rank of the trusted worker.  [default: -1, the last]"),
    "strict": (bool, "Too few workers for the rule are an error, 'true', or a warning, 'false'.  [default: true]"),
    "preaggregators": (
        str,
        "Pre-aggregators, separated by commas: 'unit', 'clip:2.0,bucketing:3', ...; 'none'.  "
        "[default: none; FA: median_norm]",
    ),
}
"""Type and help by name."""


def rule_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of all rules to a command.

    Args:
        command: Function or click command that takes the keys of `OPTIONS` as keyword arguments. An option that is not
            set is None.

    Returns:
        The decorated command.
    """
    for name, (kind, text) in reversed(OPTIONS.items()):
        command = click.option("--" + name.replace("_", "-"), name, type=kind, default=None, help=text)(command)
    return command


def numbers(name: str, text: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    """Parse numbers that are separated by commas.

    Args:
        name: Name of the option.
        text: The numbers.
        kind: Type of each.

    Returns:
        The numbers.

    Raises:
        ValueError: The text is something else.
    """
    try:
        return tuple(kind(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{name} must be numbers separated by commas, got {text!r}") from None


def pop_rule_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of the rule from a command's arguments.

    Args:
        arguments: Arguments of the command by name, which this function changes.

    Returns:
        The options that are set, as `make_rule` takes them. Texts with commas become tuples.

    Raises:
        ValueError: An option that consists of numbers has another text.

    Example:
        >>> arguments = {"m": 4, "lam": None, "dims": "2,4", "preaggregators": "clip:2.0, unit", "f": 1}
        >>> pop_rule_options(arguments)
        {'m': 4, 'dims': (2, 4), 'preaggregators': ('clip:2.0', 'unit')}
        >>> arguments
        {'f': 1}
    """
    options = {name: arguments.pop(name) for name in OPTIONS if name in arguments}
    options = {name: value for name, value in options.items() if value is not None}
    if "preaggregators" in options:
        names = options["preaggregators"]
        options["preaggregators"] = () if names == "none" else tuple(name.strip() for name in names.split(","))
    for name, kind in (("worker_weights", float), ("dims", int), ("prior", float), ("gradients_per_worker", int)):
        if name in options:
            options[name] = numbers(name, options[name], kind)
    if len(options.get("gradients_per_worker", ())) == 1:
        (options["gradients_per_worker"],) = options["gradients_per_worker"]
    return options
