"""`fa train`: one run."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fa.cli.help_texts import ATTACK, RULE
from fa.cli.paths import UserPath
from fa.cli.rule_options import numbers, pop_rule_options, rule_options
from fa.cli.torchrun import TorchrunEnv, run_worker, torchrun_env
from fa.training.config import TrainConfig
from fa.training.schedule import DECAY_EPOCHS, LEAST_DECAY_ITERATIONS, LEAST_POINTS
from fa.utils.addresses import format_address, parse_address
from fa.utils.files import expand_user
from fa.utils.progress_bar import Report, reporter
from fa.utils.validation import MOST_THREADS, check

if TYPE_CHECKING:
    from fa.training import Progress, Run
    from fa.training.records import UnwrittenRunError
    from fa.training.transports.server_config import RpcConfig, TcpConfig

_SERVER = ("listen", "keys", "deadline", "quorum", "gradients", "lost")
_DATAGRAMS = ("gradients", "lost")  # options of rpc alone
_CHECKPOINT = ("checkpoint", "checkpoint_every")
_CHECKPOINT_HELP = "Checkpoint file; the same command resumes from it. Removed when --out is written."
_LISTEN_HELP = "Address on which to await `fa worker`; by default workers start on this host."
_BACKEND_HELP = (
    "Workers: simulated, processes over TCP, processes over TensorPipe RPC, or processes of torchrun.  "
    "[default: simulate, or tcp with --listen]"
)
_ATTACK_OPTION_HELP = "Option of the attack, as in factor=1.5; may be repeated. An unknown name is answered by a list."


def integers(text: str) -> int | tuple[int, ...]:
    """Parse the batch size: one integer, or one for each worker.

    Args:
        text: Value of --batch: integers separated by commas.

    Returns:
        The integer if there is one, and a tuple otherwise.

    Raises:
        ValueError: The text is something else.

    Example:
        >>> integers("32"), integers("32,64")
        (32, (32, 64))
    """
    sizes = numbers("batch", text, int)
    return sizes[0] if len(sizes) == 1 else sizes


_TYPES = {"int": int, "Real": float, "Batch": integers}
_HELP = {"rule": RULE, "attack": f"Attack: {ATTACK}"}  # TrainConfig refers to the names, and help lists them.
_SHOWN = {
    "evaluate_every": f"an epoch, and at most 1/{LEAST_POINTS} of the iterations",
    "lr_decay_epochs": f"{DECAY_EPOCHS}, or more for at least {LEAST_DECAY_ITERATIONS} iterations",
}


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Add an option for each field of TrainConfig that has a help text."""
    for field in reversed(dataclasses.fields(TrainConfig)):
        if not field.metadata:
            continue
        choices = field.metadata["choices"]
        kind = click.Choice(choices) if choices else _TYPES.get(str(field.type).partition(" |")[0], str)
        flag, default = "--" + field.name.replace("_", "-"), field.default
        text = _HELP.get(field.name, field.metadata["help"])
        if field.name in _SHOWN or default not in (None, ()):
            text += f"  [default: {_SHOWN.get(field.name, default)}]"  # click puts a text in parentheses.
        command = click.option(flag, field.name, type=kind, help=text)(command)
    return command


@click.command()
@_options
@rule_options
@click.option("--attack-option", "attack_options", multiple=True, metavar="NAME=VALUE", help=_ATTACK_OPTION_HELP)
@click.option("--threads", type=click.IntRange(1, MOST_THREADS), help="Number of torch's threads.  [default: torch's]")
@click.option("--out", type=UserPath(), help="New folder for curve.csv, workers.csv and config.json.")
@click.option("--checkpoint", type=UserPath(), help=_CHECKPOINT_HELP)
@click.option("--checkpoint-every", type=float, help="Time between two checkpoints, in seconds.  [default: 300]")
@click.option("--tensorboard", type=UserPath(), help="Folder for TensorBoard's event files.")
@click.option(
    "--backend",
    type=click.Choice(["simulate", "tcp", "rpc", "torchrun"]),
    help=_BACKEND_HELP,
)
@click.option("--listen", metavar="HOST:PORT", help=_LISTEN_HELP)
@click.option("--keys", type=UserPath(), help="Folder of the server's keys from `fa keys`, with tcp.")
@click.option("--deadline", type=float, help="Timeout for a silent worker, in seconds.  [default: 60]")
@click.option("--quorum", type=int, help="Number of fastest workers to await.  [default: all]")
@click.option("--gradients", type=click.Choice(["rpc", "udp"]), help="Path of gradients, with rpc.  [default: rpc]")
@click.option("--lost", type=click.Choice(["zero", "previous"]), help="Value of lost coordinates.  [default: zero]")
def train(
    threads: int | None, out: Path | None, backend: str | None, tensorboard: Path | None, **arguments: Any
) -> None:
    """Train once, with Byzantine workers, and print the result.

    Each rule accepts only its own options.
    """
    from fa.training.records import UnwrittenRunError, prepare_output_dir

    if backend is None:
        backend = "simulate" if arguments["listen"] is None else "tcp"
    place = torchrun_env() if backend == "torchrun" else None
    if out is not None and (place is None or place.rank == 0):
        # Fails before torch is imported.
        out = prepare_output_dir(out, checkpoint=arguments["checkpoint"], tensorboard=tensorboard)
    settings = {name: value for name, value in arguments.items() if value is not None}
    server_settings = {name: settings.pop(name) for name in _SERVER if name in settings}
    checkpoint = {name: settings.pop(name) for name in _CHECKPOINT if name in settings}
    check("checkpoint", None, checkpoint.keys() != {"checkpoint_every"}, "a file with --checkpoint-every")
    config = _config(settings) if place is None else _torchrun_config(settings, place)
    if place is not None and place.rank:
        return run_worker(place.rank - 1, place.host, place.port, threads or 1)
    if tensorboard is not None:
        from fa.training.tensorboard import check_installed

        check_installed()
    server = _server(backend, place, server_settings)
    if server is not None and not server.spawn_workers:
        _announce(server, config.workers)
    try:
        run = _run(config, tensorboard, out=out, threads=threads, server=server, **checkpoint)
    except UnwrittenRunError as error:
        _report(error.run, _write_elsewhere(error))
    else:
        _report(run, out)


def _run(config: TrainConfig, tensorboard: Path | None, **options: Any) -> Run:
    from fa.training import train as run_training

    with reporter("iterations") as report, _board(tensorboard, config, report) as progress:
        return run_training(config, progress=progress, **options)


def _torchrun_config(settings: dict[str, Any], place: TorchrunEnv) -> TrainConfig:
    """Return the configuration of a run whose workers are all of torchrun's processes but one."""
    config = _config({"workers": place.size - 1} | settings)
    requirement = f"{place.size - 1} with WORLD_SIZE={place.size}, as one process is the server"
    check("workers", config.workers, config.workers == place.size - 1, requirement)
    return config


def _server(backend: str, place: TorchrunEnv | None, settings: dict[str, Any]) -> TcpConfig | RpcConfig | None:
    """Return the server's settings for the backend; None for the simulation."""
    if backend == "simulate":
        option = next(iter(settings), "")
        check("backend", backend, not settings, f"{'rpc' if option in _DATAGRAMS else 'tcp'!r} with --{option}")
        return None
    return _tcp_config(**settings) if backend == "tcp" else _rpc_config(place, **settings)


def _announce(server: TcpConfig | RpcConfig, workers: int) -> None:
    """Say where workers that are started elsewhere are awaited, and which peers can join."""
    from fa.training.transports.server_config import RpcConfig

    place = format_address(server.host, server.port)
    check("listen", place, server.port > 0, "HOST:PORT with a port of 1 or more, which the workers need")
    click.echo(f"awaiting {workers} workers at {place}", err=True)
    if isinstance(server, RpcConfig):
        click.echo("RPC executes what any peer sends: use --backend tcp outside of private networks", err=True)
    elif server.keys is None:
        click.echo("without --keys: loopback only, and workers of this user only", err=True)


def _rpc_config(
    place: TorchrunEnv | None, listen: str | None = None, keys: Path | None = None, **options: Any
) -> RpcConfig:
    from fa.training.transports.server_config import RpcConfig

    check("keys", keys, keys is None, "omitted with rpc and torchrun, which have no authentication", "Use tcp.")
    if place is not None:
        check("listen", listen, listen is None, "omitted with torchrun, which sets the address")
        return RpcConfig(place.host, place.port, spawn_workers=False, external_store=place.external_store, **options)
    if listen is None:
        return RpcConfig(**options)
    host, port = parse_address("listen", listen)
    return RpcConfig(host=host, port=port, spawn_workers=False, **options)


def _tcp_config(listen: str | None = None, **options: Any) -> TcpConfig:
    from fa.training.transports.server_config import TcpConfig

    for name in _DATAGRAMS:
        check("backend", "tcp", name not in options, f"'rpc' with --{name}")
    if listen is None:
        return TcpConfig(**options)
    host, port = parse_address("listen", listen)
    return TcpConfig(host=host, port=port, spawn_workers=False, **options)


def _config(settings: dict[str, Any]) -> TrainConfig:
    options = pop_rule_options(settings)
    if "augmentation" in settings:
        from fa.augment.recipes import read
        from fa.experiments.paths import recipe_path

        settings["augmentation"] = read(recipe_path(settings["augmentation"])).options
    if settings.get("dataset", "").startswith("~"):  # a folder that `fa augment` wrote
        settings["dataset"] = str(expand_user("dataset", settings["dataset"]))
    settings["attack_options"] = _attack_options(settings.pop("attack_options", ()))
    _check_default(settings)
    return TrainConfig(rule_options=options, **settings)


def _attack_options(texts: Sequence[str]) -> dict[str, Any]:
    """Parse NAME=VALUE; a value that is not JSON is a string."""
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        check("attack_option", text, bool(name and equals), "NAME=VALUE")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def _check_default(settings: dict[str, Any]) -> None:
    """Raise a ValueError if the default number of Byzantine workers is too large for the number of workers."""
    p, f = settings.get("workers", TrainConfig.workers), TrainConfig.byzantine
    if "byzantine" not in settings and isinstance(p, int) and 1 <= p <= 2 * f:
        check("byzantine", f, False, f"less than half of workers={p}", f"Set --byzantine {(p - 1) // 2} or less.")


def _describe(state: Progress) -> str:
    accuracy = "-" if state.accuracy is None else f"{state.accuracy:.3f}"
    return f"loss {float(state.loss):.3f}, accuracy {accuracy}"


@contextmanager
def _board(folder: Path | None, config: TrainConfig, report: Report) -> Iterator[Callable[[Progress], None]]:
    """Report each iteration, also to TensorBoard if `folder` is given."""
    with ExitStack() as stack:
        board = None
        if folder is not None:
            from fa.training.tensorboard import TensorBoardLogger

            board = stack.enter_context(
                TensorBoardLogger(folder, config.byzantine, lambda line: click.echo(line, err=True))
            )

        def show(state: Progress) -> None:
            report(state.iteration, config.iterations, lambda: _describe(state))
            if board is not None:
                board(state)

        yield show


def _write_elsewhere(error: UnwrittenRunError) -> Path:
    """Ask for another folder for the records of a finished run; without a terminal, print the result and fail."""
    from fa.training.records import UnwrittenRunError

    while sys.stdin.isatty():
        click.echo(f"fa: {error}", err=True)
        try:
            folder = click.prompt("Another folder for the records, or nothing to lose them", default="", err=True)
            if not folder:
                break
            return error.run.write(expand_user("out", folder))
        except click.Abort:  # Ctrl-C or Ctrl-D
            break
        except UnwrittenRunError as again:
            error = again
        except ValueError as unknown:  # "~" of an unknown user
            click.echo(f"fa: {unknown}", err=True)
    _report(error.run, None)
    raise error


def _report(run: Run, out: Path | None) -> None:
    config, last = run.config, run.curve[-1]
    click.echo(
        f"{config.rule}, {config.workers} workers, {config.byzantine} Byzantine ({config.attack}), "
        f"{config.model} on {config.dataset}, seed {config.seed}"
    )
    if run.schedule is not None:
        every = f"{run.schedule.decay_epochs} epochs ({run.schedule.decay_every} iterations)"
        click.echo(f"learning rate {config.lr:g}, times {config.lr_decay:g} every {every}")
    kind = "validation" if config.validation else "test"
    click.echo(
        f"{kind} accuracy {last.test_accuracy:.4f}, train loss {last.train_loss:.4g} after {last.iteration} iterations "
        f"(epoch {last.epoch}), {run.seconds:.1f} s"
    )
    if out is not None:
        click.echo(f"records in {out}")
