"""The command line. Commands are imported when they are called, so that `fa --help` is quick.

Whatever a user can get wrong ends as one line on stderr, `fa: ...`, and exit code 2; Ctrl-C as one line and 130.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from fa import __version__
from fa.utils.malloc import retain_freed_memory

COMMANDS = {
    "train": "Train once, with faulty workers, and print the result.",
    "server": "Train with workers that are started on this host or others.",
    "worker": "Compute gradients for an `fa server` on this host or another.",
    "plot": "Draw one run, and whom its rule trusted.",
    "sweep": "Do many runs, reusing those that are finished.",
    "reproduce": "Draw the paper's figures from runs of this package.",
    "report": "Write which of the paper's claims hold, from the figures drawn.",
    "aggregate": "Aggregate gradients in files, larger than memory if they are.",
    "certify": "Bound how far FA's subspace can be from the best one.",
    "bench": "Time the rules beside the mean and beside other libraries.",
    "augment": "Write a data set with augmented training images.",
    "data": "Fetch data sets and list those that are there.",
    "doctor": "Say what is here, and what to do about what is not.",
}
"""Each command, with its line of help. Command NAME is the click command NAME of the module fa.cli.NAME."""


_FIGURES = ("papermill", "nbformat", "ipykernel", "pandas", "matplotlib", "seaborn", "jupyter_client")
EXTRAS = dict.fromkeys(_FIGURES, "notebooks") | {"scipy": "theory"}
"""Extra of pyproject.toml for each optional package that a command imports."""


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names, in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"fa.cli.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, but a name that is none is told with those that there are."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            from fa.utils.validation import check_one_of

            check_one_of("command", args[0], list(COMMANDS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in the help, from COMMANDS alone."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C is caught here because click itself would print an empty line for it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("fa: interrupted", err=True)
            raise click.exceptions.Exit(130) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """Train with faulty workers, aggregate gradients, and reproduce the Flag Aggregator's experiments."""
    retain_freed_memory()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # else connections are told of, and errors twice


def main(arguments: Sequence[str] | None = None) -> None:
    """The program `fa`: run `arguments` (None: those of the process) and leave with its exit code."""
    try:
        code = cli.main(arguments, prog_name="fa", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except BrokenPipeError:  # the reader of our output has gone: nothing is left to say, and nobody to say it to
        sys.stderr.close()
        sys.exit(1)
    except (ValueError, OSError) as error:
        _fail(str(error))
    except ImportError as error:
        _fail(_cure(error))
    sys.exit(code if isinstance(code, int) else 0)


def _cure(error: ImportError) -> str:
    """What to install. An error about anything but a package that only some commands need is a bug, and goes on."""
    package = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package in EXTRAS:
        return f"this command needs {package}, which is not installed: pip install 'flag-aggregator[{EXTRAS[package]}]'"
    if "pip install" in str(error):
        return str(error)
    raise error


def _fail(message: str) -> None:
    click.echo("fa: " + " ".join(message.split()), err=True)
    sys.exit(2)
