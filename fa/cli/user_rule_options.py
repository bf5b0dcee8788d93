"""The options by which rules and attacks of the user's own enter the figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from fa.experiments import ALL
from fa.experiments.runs.profiles import PROFILES

_RULE = "Rule to enter as one more curve: FILE.py:NAME, byzfl:NAME, or one a package brings; may be repeated."
_ATTACK = "What the faulty workers send, in place of the figure's attack: FILE.py:NAME, byzfl:NAME, or a known one."
_NO_FIGURE = "it is no figure of runs"

rule_option = click.option("--rule", "rules", multiple=True, metavar="NAME", help=_RULE)


def study_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a study: its size, where it runs, the user's rules and attack, and its folder."""
    for option in (
        click.option("--out", type=click.Path(path_type=Path), help="Folder in place of figures/PROFILE."),
        click.option("--attack", metavar="NAME", help=_ATTACK),
        rule_option,
        click.option("--device", help="cpu, cuda or cuda:N in place of the profile's."),
        click.option("--jobs", type=click.IntRange(min=1), help="Runs at a time.  [default: number of cores]"),
        click.option("--profile", type=click.Choice(list(PROFILES)), default="quick", show_default=True, help="Size."),
    ):
        command = option(command)
    return command


def concerned(
    names: Sequence[str], rules: Sequence[str], attack: str | None
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Of figures and notebooks those that --rule and --attack concern, each with what its study is given, and all that
    was given. For each of the others a line on stderr says why not.

    The rules and the attack are loaded. Raises ValueError where they cannot be, and where no name is left.
    """
    given: dict[str, Any] = {}
    if rules:
        from fa.experiments.runs.user_rules import register_rules

        given["rules"] = list(register_rules(rules))
    if attack is not None:
        from fa.experiments.runs.user_rules import resolve_attack

        given["attack"] = resolve_attack(attack)
    refusals = {(name, option): why for name in names for option in given if (why := _refusal(name, option))}
    for (name, option), why in refusals.items():
        click.echo(f"{name}: --{option.rstrip('s')} does not concern it: {why}", err=True)
    found = {name: {option: its for option, its in given.items() if (name, option) not in refusals} for name in names}
    left = {name: its for name, its in found.items() if its or not given}
    if not left:
        raise ValueError(f"--{next(iter(given)).rstrip('s')} concerns none of {', '.join(names)}")
    return left, given


def _refusal(name: str, option: str) -> str | None:
    """Why the option does not concern the figure or notebook, if it does not."""
    from fa.experiments.runs.user_rules import NO_ATTACK, NO_RULES

    if name not in ALL:
        return _NO_FIGURE
    return (NO_RULES if option == "rules" else NO_ATTACK).get(name.partition("_")[0])
