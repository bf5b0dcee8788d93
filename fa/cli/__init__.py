"""The command line. Commands are imported when they are called, so `fa --help` is quick.

A user's error is one line on stderr, `fa: ...`, with exit code 2. Ctrl-C, SIGTERM and SIGHUP are one line, with exit
code 128 plus the signal's number. Files and child processes are closed first.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click

from fa import __version__
from fa.utils.malloc import retain_freed_memory
from fa.utils.memory import is_out_of_memory
from fa.utils.signals import raised_as_interrupt

COMMANDS = {
    "train": "Train once, with Byzantine workers, and print the result.",
    "server": "Train with workers that run on this host or others.",
    "worker": "Compute gradients for `fa server`.",
    "keys": "Write the keys of `fa server` and its workers.",
    "plot": "Draw one run and its workers' weights.",
    "sweep": "Do the runs of figures, and reuse finished ones.",
    "grid": "Train with every rule under every attack of a file.",
    "reproduce": "Draw the paper's figures.",
    "report": "Write the verdicts on the paper's claims.",
    "aggregate": "Aggregate gradients in files.",
    "certify": "Bound the distance of FA's subspace to the best one.",
    "bench": "Time the rules and those of other libraries.",
    "augment": "Write a data set with augmented training images.",
    "data": "Download and list data sets.",
    "doctor": "List what is installed, and how to add the rest.",
}
"""Help of each command. Command NAME is the click command NAME of the module fa.cli.NAME."""


_FIGURES = ("papermill", "nbformat", "ipykernel", "pandas", "matplotlib", "seaborn", "jupyter_client", "mistune")
EXTRAS = dict.fromkeys(_FIGURES, "notebooks") | {"scipy": "theory"}
"""Extra of pyproject.toml for each optional package that a command imports."""


class LazyGroup(click.Group):
    """A group that imports the module of a command when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a name, or None."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"fa.cli.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve a command, and list all commands if the name is unknown."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            from fa.utils.validation import check_one_of

            check_one_of("command", args[0], list(COMMANDS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Ctrl-C is caught here, since click would print an empty line for it."""
        try:
            with raised_as_interrupt():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            click.echo("fa: interrupted", err=True)
            raise click.exceptions.Exit(128 + (error.args or (signal.SIGINT,))[0]) from None
        except BrokenPipeError as error:  # click ends silently, which is right for a reader that has left
            if _reader_has_left():
                raise
            raise click.ClickException(str(error)) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """Train with Byzantine workers, aggregate gradients, and reproduce the Flag Aggregator's experiments."""
    retain_freed_memory()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # else torch logs connections, and errors twice


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program `fa` and exit with its exit code.

    Args:
        arguments: Command line, by default the process's.
    """
    try:
        code = cli.main(arguments, prog_name="fa", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except (ValueError, OSError) as error:
        _fail(str(error))
    except (ImportError, MemoryError, RuntimeError) as error:
        _fail(_cure(error))
    sys.exit(code if isinstance(code, int) else 0)


def _reader_has_left() -> bool:
    """Return True if the standard output is a pipe or socket whose other end is closed."""
    poll = select.poll()
    try:
        poll.register(sys.__stdout__.fileno(), 0)  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):  # no standard output, or a closed one
        return True
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _cure(error: Exception) -> str:
    """Return a message with what to install, or that memory does not suffice. Any other error is raised again."""
    if is_out_of_memory(error):
        return f"there is too little memory: {(str(error).splitlines() or [type(error).__name__])[0]}"
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package in EXTRAS:
        return f"this command needs {package}, which is not installed: pip install 'flag-aggregator[{EXTRAS[package]}]'"
    if isinstance(error, ImportError) and "pip install" in str(error):
        return str(error)
    raise error


def _fail(message: str) -> None:
    click.echo("fa: " + " ".join(message.split()), err=True)
    sys.exit(2)
