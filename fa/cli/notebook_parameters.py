"""Parameters of notebooks on the command line: `fa reproduce -p NAME VALUE`, and their list."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from fa.experiments import ALL
from fa.utils.validation import check, check_one_of

_OPTIONS = {
    "profile": "--profile",
    "out": "--out",
    "jobs": "--jobs",
    "device": "--device",
    "finished": "--finished",
    "rules": "--rule",
    "attack": "--attack",
}
"""Parameters that have an option of their own."""

_PATHS = {"gradients"}
"""Parameters that are files, relative to the working directory of the command."""

_WORDS = {"true": True, "false": False, "none": None, "null": None}
_TYPES: dict[str, type | tuple[type, ...]] = {"list": list, "int": int, "float": (int, float), "bool": bool, "str": str}

parameter_option = click.option(
    "-p",
    "--parameter",
    "parameters",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="Parameter of the notebooks, as in -p seeds '[2021, 2022]'; may be repeated. --list names all.",
)


def parse(parameters: Sequence[tuple[str, str]], paths: Sequence[Path]) -> dict[str, Any]:
    """Parse the values of -p, and check them against the notebooks.

    Args:
        parameters: Pairs of a name and a Python literal; other text is a string.
        paths: Notebooks that must all have these parameters.

    Returns:
        The values by name.

    Raises:
        ValueError: A notebook lacks the parameter, the value has another type, or there is an option for it.
    """
    from fa.experiments.notebooks import parameters_of

    values = {name: _value(text) for name, text in parameters}
    for name in values.keys() & _PATHS:
        values[name] = str(Path(str(values[name])).resolve())  # A notebook runs in its own folder.
    for name in values:
        replaced = [path for path in paths if _has_option(name, path)]
        check("parameter", name, not replaced, "one without an option of its own", f"Use {_OPTIONS.get(name)}.")
    for path in paths if values else ():
        declared = parameters_of(path)
        for name, value in values.items():
            check_one_of(f"parameter of {path.stem}", name, [key for key in declared if not _has_option(key, path)])
            kind = declared[name].type
            valid = value is None or (
                isinstance(value, _TYPES.get(kind, object)) and isinstance(value, bool) == (kind == "bool")
            )
            check(name, value, valid, f"of type {kind}", "A list is written as '[3]'." if kind == "list" else "")
    return values


def _has_option(name: str, path: Path) -> bool:
    """Return True if a notebook's parameter has an option of its own; --rule and --attack are options of figures."""
    return name in _OPTIONS and (name not in ("rules", "attack") or path.stem in ALL)


def _value(text: str) -> Any:
    """Parse a Python literal, a word of JSON, or else a string."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def command(
    profile: str,
    name: str,
    parameters: Mapping[str, Any],
    rules: Sequence[str],
    attack: str | None,
    device: str | None,
    finished: bool,
) -> str:
    """Return the command that draws a figure with these parameters again.

    Args:
        profile: Name of the profile.
        name: Name of the notebook.
        parameters: Values of -p by name.
        rules: Values of --rule.
        attack: Value of --attack.
        device: Value of --device.
        finished: Value of --finished.
    """
    from fa.experiments.runs.study import reproduce_command  # imports torch

    words: list[str] = []
    for parameter, value in parameters.items():
        words += ["-p", parameter, str(value)]
    for rule in rules:
        words += ["--rule", rule]
    words += ["--device", device] if device else []
    words += ["--attack", attack] if attack else []
    return reproduce_command(profile, name, words, finished)


def show(paths: Sequence[Path]) -> None:
    """Print each notebook with its title and parameters, then the parameters' types and meanings, then all variants.

    Parameters with an option of their own, such as --profile, are omitted.

    Args:
        paths: Notebooks (.ipynb), in the order in which they are printed.
    """
    from fa.experiments.notebooks import heading, parameters_of
    from fa.experiments.runs.variants import VARIANTS

    meanings: dict[tuple[str, str, str], None] = {}
    for path in paths:
        declared = {name: parameter for name, parameter in parameters_of(path).items() if not _has_option(name, path)}
        click.echo(f"{path.stem}: {heading(path)}")
        click.echo(f"    -p {', '.join(declared) or '(none)'}")
        meanings |= {(name, parameter.type, parameter.help): None for name, parameter in declared.items()}
    click.echo("\nParameters:")
    for name, kind, text in meanings:
        click.echo(f"    {name} ({kind}): {text}")
    click.echo("\nVariants, for -p variants:")
    for key, variant in VARIANTS.items():
        click.echo(f"    {key}: {variant.label}")
