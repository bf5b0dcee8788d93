"""Options of studies: size, resources, and the user's rules and attack in figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from fa.cli.help_texts import ATTACK
from fa.cli.paths import UserPath
from fa.experiments import ALL, figure_module
from fa.experiments.runs.profiles import PROFILES

_RULE = "Rule to add as a curve: FILE.py:NAME, byzfl:NAME, or an entry point; may be repeated."
_ATTACK = f"Attack that replaces the figure's: {ATTACK}"

rule_option = click.option("--rule", "rules", multiple=True, metavar="NAME", help=_RULE)
profile_option = click.option(
    "--profile", type=click.Choice(list(PROFILES)), default="quick", show_default=True, help="Size of the runs."
)


def study_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a study: --profile, --jobs, --device, --rule, --attack and --out.

    Args:
        command: Function or click command that takes profile, jobs, device, rules, attack and out.

    Returns:
        The decorated command. `rules` is a tuple; the others are None if they are not set, except profile ("quick").
    """
    for option in (
        click.option("--out", type=UserPath(), help="Output folder.  [default: figures/PROFILE]"),
        click.option("--attack", metavar="NAME", help=_ATTACK),
        rule_option,
        click.option("--device", help="cpu, cuda or cuda:N.  [default: the profile's]"),
        click.option("--jobs", type=click.IntRange(min=1), help="Number of parallel runs.  [default: cores]"),
        profile_option,
    ):
        command = option(command)
    return command


def applicable_figures(
    names: Sequence[str], rules: Sequence[str], attack: str | None
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Load the user's rules and attack, and select the figures to which they apply.

    Args:
        names: Figures and notebooks. A line on stderr explains each option that does not apply to one.
        rules: Values of --rule.
        attack: Value of --attack.

    Returns:
        The arguments of each selected figure's study, and all arguments.

    Raises:
        ValueError: A rule or the attack is invalid, or no figure remains.
    """
    options: dict[str, Any] = {}
    if rules:
        from fa.experiments.runs.user_rules import register_rules

        options["rules"] = list(register_rules(rules))
    if attack is not None:
        from fa.experiments.runs.user_rules import resolve_attack

        options["attack"] = resolve_attack(attack)
    if not options:
        return {name: {} for name in names}, options
    selected: dict[str, dict[str, Any]] = {}
    for name in names:
        for option, value in options.items():
            reason = _refusal(name, option)
            if reason is None:
                selected.setdefault(name, {})[option] = value
            else:
                click.echo(f"{name}: --{option.rstrip('s')} does not apply: {reason}", err=True)
    if not selected:
        raise ValueError(f"--{next(iter(options)).rstrip('s')} must apply to a figure, got {', '.join(names)}")
    return selected, options


def _refusal(name: str, option: str) -> str | None:
    """Return the reason why an option does not apply to a figure or notebook; None if it does."""
    if name not in ALL:
        return "it has no runs"
    return getattr(figure_module(name), "NO_RULES" if option == "rules" else "NO_ATTACK", None)
