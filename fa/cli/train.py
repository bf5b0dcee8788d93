"""`fa train`: one run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fa.bars import bar
from fa.checks import require
from fa.cli.places import Place, address, compute, from_environment
from fa.cli.rule_options import rule_options, take
from fa.sampling import SAMPLINGS, SPLITS
from fa.training.config import PRECISIONS, TrainConfig

if TYPE_CHECKING:
    from fa.training import Progress, Run
    from fa.training.transport import Cluster

_REFRESH = 0.2  # seconds between two readings of the loss, which may have to wait for the device
_LINES = 30.0  # seconds between two lines where stderr is no terminal

_CHECKPOINT = "File that keeps how far the run is; the same command goes on from there. Removed once --out is written."
_NETWORK = ("listen", "deadline", "quorum", "gradients", "lost")
_LOST = "What stands for coordinates that are lost, with udp.  [default: zero]"
_BOARD = "Folder for TensorBoard's events: loss, accuracy, weights; with the extra `tensorboard`."
_BACKEND = "Workers simulated in this process, or processes of their own, which are started here, or by torchrun."

_SETTINGS = {
    "rule": (str, "Aggregation rule: one of fa.RULES, FILE.py:NAME, or byzfl:NAME."),
    "workers": (int, "Number of workers, p."),
    "byzantine": (int, "Number of faulty workers, f: the first ranks."),
    "f": (int, "The f that the rule is told; the true one if left out."),
    "attack": (str, "What the faulty workers send: a name in docs/training.md, FILE.py:NAME, or byzfl:NAME."),
    "dataset": (str, "Data set."),
    "model": (str, "convnet, resnet18 or any torchvision classifier."),
    "iterations": (int, "Iterations."),
    "batch": (int, "Images per worker and iteration."),
    "accumulate": (int, "Backward passes a gradient, of --batch images each."),
    "precision": (click.Choice(PRECISIONS), "Of the forward pass; gradients and server are float32."),
    "lr": (float, "Learning rate."),
    "momentum": (float, "Momentum of SGD; the released code's is 0.9."),
    "worker_momentum": (float, "Momentum that workers keep and send, beta."),
    "weight_decay": (float, "Weight decay of SGD."),
    "lr_decay": (float, "Factor of the step schedule."),
    "lr_decay_epochs": (int, "Epochs between two steps of the schedule."),
    "evaluate_every": (int, "Iterations from one test accuracy to the next; an epoch if left out."),
    "seed": (int, "Seed of everything random."),
    "sampling": (click.Choice(SAMPLINGS), "Fresh minibatches, or fixed slices in turn."),
    "validation": (float, "Share of the training images kept from training, to evaluate on in place of the test's."),
    "split": (click.Choice(SPLITS), "Honest workers' images: from all, unequal shares of each class, or by class."),
    "alpha": (float, "Of --split dirichlet: the smaller, the more unequal the shares."),
    "device": (str, "cpu, cuda or cuda:N."),
    "augmentation": (str, "Recipe of augmented data, a TOML file or a name in data_aug; with --attack none."),
    "augmented": (str, "Whose data are augmented: those of the faulty workers, or of all."),
}


def _options(command: Callable[..., None]) -> Callable[..., None]:
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    for name, (kind, text) in reversed(_SETTINGS.items()):
        default = defaults.get(name)
        note = "" if default in (None, ()) else f"  [default: {default}]"
        flag = "--" + name.replace("_", "-")
        command = click.option(flag, name, type=kind, default=None, help=text + note)(command)
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
        require(config.workers == place.size - 1, "workers", config.workers, workers)
        if place.rank:
            return compute(place.rank - 1, place.host, place.port, threads or 1)
    if tensorboard is not None:
        from fa.training.board import check_installed

        check_installed()
    if backend == "simulate" and network:
        raise ValueError(f"backend must be 'rpc' with --{next(iter(network))}; it is 'simulate'")
    from fa.training import train as run_training

    cluster = None if backend == "simulate" else _cluster(place, **network)
    if cluster is not None and not cluster.spawn:
        click.echo(f"awaiting {config.workers} workers at {cluster.host}:{cluster.port}", err=True)
    with _progress(config.iterations) as bar, _board(tensorboard, config.byzantine, bar) as progress:
        run = run_training(config, out=out, progress=progress, threads=threads, cluster=cluster, **keeping)
    _report(run, out)


def _cluster(place: Place | None, listen: str | None = None, **patience: Any) -> Cluster:
    from fa.training.transport import Cluster

    if place is not None:
        require(listen is None, "listen", listen, "left out with torchrun, which says where to listen")
        return Cluster(place.host, place.port, spawn=False, store_kept=place.store_kept, **patience)
    if listen is None:
        return Cluster(**patience)
    host, port = address("listen", listen)
    return Cluster(host=host, port=port, spawn=False, **patience)


def _config(given: dict[str, Any]) -> TrainConfig:
    options = take(given)
    if "augmentation" in given:
        from fa.experiments.paths import recipe
        from fa.recipes import read

        given["augmentation"] = read(recipe(given["augmentation"])).options
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


@contextmanager
def _progress(iterations: int) -> Iterator[Callable[[Progress], None]]:
    """A bar on the terminal with loss, accuracy and the time left; elsewhere a line every half minute."""
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("loss {task.fields[loss]}  accuracy {task.fields[accuracy]}"),
        bars.TimeRemainingColumn(),
    )
    with bar(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task("", total=iterations, loss="-", accuracy="-")
        started = last = time.monotonic()
        before: int | None = None  # iterations done when the first of this process was

        def show(state: Progress) -> None:
            nonlocal started, last, before
            now = time.monotonic()
            if before is None:  # the first iteration compiles: it tells nothing of how long the others take
                before, started = state.iteration, now
                return
            if now - last < (_LINES if shown.disable else _REFRESH):
                return
            last = now
            loss = f"{float(state.loss):.3f}"
            accuracy = "-" if state.accuracy is None else f"{state.accuracy:.3f}"
            shown.update(task, completed=state.iteration, loss=loss, accuracy=accuracy)
            if shown.disable:
                left = (now - started) / (state.iteration - before) * (iterations - state.iteration)
                done = f"{state.iteration} of {iterations} iterations, about {left:.0f} s left"
                click.echo(f"{done}; loss {loss}, accuracy {accuracy}", err=True)

        yield show


@contextmanager
def _board(
    folder: Path | None, byzantine: int, show: Callable[[Progress], None]
) -> Iterator[Callable[[Progress], None]]:
    """What is told of each iteration: to `show`, and to TensorBoard if a folder is given."""
    if folder is None:
        yield show
        return
    from fa.training.board import Board

    with Board(folder, byzantine) as board:

        def tell(state: Progress) -> None:
            show(state)
            board(state)

        yield tell


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
