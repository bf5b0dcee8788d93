"""`fa train`: one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fa.cli.rule_options import rule_options, take
from fa.cli.torchrun import Place, address, compute, from_environment
from fa.training.config import TrainConfig
from fa.utils.progress_bar import Report, reporter
from fa.utils.validation import check

if TYPE_CHECKING:
    from fa.training import Progress, Run
    from fa.training.transports.base import RpcConfig

_CHECKPOINT = "File that keeps how far the run is; the same command goes on from there. Removed once --out is written."
_NETWORK = ("listen", "deadline", "quorum", "gradients", "lost")
_LOST = "What stands for coordinates that are lost, with udp.  [default: zero]"
_BOARD = "Folder for TensorBoard's events: loss, accuracy, weights; with the extra `tensorboard`."
_BACKEND = "Workers simulated in this process, or processes of their own, which are started here, or by torchrun."

_TYPES = {"int": int, "Real": float}


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Add an option for each field of TrainConfig that has a help text."""
    for field in reversed(dataclasses.fields(TrainConfig)):
        if not field.metadata:
            continue
        choices = field.metadata["choices"]
        kind = click.Choice(choices) if choices else _TYPES.get(str(field.type).partition(" |")[0], str)
        note = "" if field.default in (None, ()) else f"  [default: {field.default}]"
        flag = "--" + field.name.replace("_", "-")
        command = click.option(flag, field.name, type=kind, help=field.metadata["help"] + note)(command)
    return command


@click.command()
@_options
@rule_options
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch; as many as it takes if left out.")
@click.option("--out", type=click.Path(path_type=Path), help="New directory for curve.csv, workers.csv, config.json.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help=_CHECKPOINT)
@click.option("--checkpoint-every", type=float, help="Seconds from one checkpoint to the next.  [default: 300]")
@click.option("--tensorboard", type=click.Path(path_type=Path), help=_BOARD)
@click.option(
    "--backend",
    type=click.Choice(["simulate", "rpc", "torchrun"]),
    default="simulate",
    help=_BACKEND + "  [default: simulate]",
)
@click.option("--listen", metavar="HOST:PORT", help="With rpc: await `fa worker`s there instead of starting some here.")
@click.option("--deadline", type=float, help="Seconds until a silent worker is left out, with rpc.  [default: 60]")
@click.option("--quorum", type=int, help="Go on with the gradients of so many workers, the fastest, with rpc.")
@click.option("--gradients", type=click.Choice(["rpc", "udp"]), help="How gradients come, with rpc.  [default: rpc]")
@click.option("--lost", type=click.Choice(["zero", "previous"]), help=_LOST)
def train(threads: int | None, out: Path | None, backend: str, tensorboard: Path | None, **given: Any) -> None:
    """Train once, with faulty workers, and print the result.

    The options of the rules hold for those rules that have them.
    """
    from fa.training.records import make_room

    place = from_environment() if backend == "torchrun" else None
    if out is not None and (place is None or place.rank == 0):
        out = make_room(out)  # before torch is even imported
    given = {name: value for name, value in given.items() if value is not None}
    network = {name: given.pop(name) for name in _NETWORK if name in given}
    keeping = {name: given.pop(name) for name in ("checkpoint", "checkpoint_every") if name in given}
    if keeping.keys() == {"checkpoint_every"}:
        raise ValueError("checkpoint must be given with --checkpoint-every; it is not")
    config = _config(given if place is None else {"workers": place.size - 1} | given)
    if place is not None:
        workers = f"{place.size - 1}, as WORLD_SIZE={place.size} has them besides the server"
        check("workers", config.workers, config.workers == place.size - 1, workers)
        if place.rank:
            return compute(place.rank - 1, place.host, place.port, threads or 1)
    if tensorboard is not None:
        from fa.training.tensorboard import check_installed

        check_installed()
    if backend == "simulate" and network:
        raise ValueError(f"backend must be 'rpc' with --{next(iter(network))}; it is 'simulate'")
    from fa.training import train as run_training

    rpc = None if backend == "simulate" else _rpc_config(place, **network)
    if rpc is not None and not rpc.spawn_workers:
        click.echo(f"awaiting {config.workers} workers at {rpc.host}:{rpc.port}", err=True)
    with reporter("iterations") as report, _board(tensorboard, config, report) as progress:
        run = run_training(config, out=out, progress=progress, threads=threads, rpc=rpc, **keeping)
    _report(run, out)


def _rpc_config(place: Place | None, listen: str | None = None, **network: Any) -> RpcConfig:
    from fa.training.transports.base import RpcConfig

    fields = {"gradients": "channel", "lost": "loss_fill"}
    settings = {fields.get(option, option): value for option, value in network.items()}
    if place is not None:
        check("listen", listen, listen is None, "left out with torchrun, which says where to listen")
        return RpcConfig(place.host, place.port, spawn_workers=False, external_store=place.store_kept, **settings)
    if listen is None:
        return RpcConfig(**settings)
    host, port = address("listen", listen)
    return RpcConfig(host=host, port=port, spawn_workers=False, **settings)


def _config(given: dict[str, Any]) -> TrainConfig:
    options = take(given)
    if "augmentation" in given:
        from fa.augment.recipes import read
        from fa.experiments.paths import recipe_path

        given["augmentation"] = read(recipe_path(given["augmentation"])).options
    _check_default(given)
    return TrainConfig(rule_options=options, **given)


def _check_default(given: dict[str, Any]) -> None:
    """Raise ValueError where the number of faulty workers is left to a default that so few workers cannot bear."""
    p, f = given.get("workers", TrainConfig.workers), TrainConfig.byzantine
    if "byzantine" not in given and isinstance(p, int) and 1 <= p <= 2 * f:
        raise ValueError(
            f"byzantine must be given with --workers {p}: its default is {f}, of which p > 2f does not hold; "
            f"--byzantine {(p - 1) // 2} is the most for which it does"
        )


def _describe(state: Progress) -> str:
    accuracy = "-" if state.accuracy is None else f"{state.accuracy:.3f}"
    return f"loss {float(state.loss):.3f}, accuracy {accuracy}"


@contextmanager
def _board(folder: Path | None, config: TrainConfig, report: Report) -> Iterator[Callable[[Progress], None]]:
    """Report each iteration, also to TensorBoard if `folder` is given."""
    with ExitStack() as stack:
        board = None
        if folder is not None:
            from fa.training.tensorboard import Board

            board = stack.enter_context(Board(folder, config.byzantine))

        def show(state: Progress) -> None:
            report(state.iteration, config.iterations, lambda: _describe(state))
            if board is not None:
                board(state)

        yield show


def _report(run: Run, out: Path | None) -> None:
    config, last = run.config, run.curve[-1]
    click.echo(
        f"{config.rule}, {config.workers} workers, {config.byzantine} faulty ({config.attack}), "
        f"{config.model} on {config.dataset}, seed {config.seed}"
    )
    kind = "validation" if config.validation else "test"
    click.echo(
        f"{kind} accuracy {last.test_accuracy:.4f}, train loss {last.train_loss:.4g} after {last.iteration} iterations "
        f"(epoch {last.epoch}), {run.seconds:.1f} s"
    )
    if out is not None:
        click.echo(f"records in {out}")
