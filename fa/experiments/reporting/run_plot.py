"""Figure of one run: accuracy, loss, and the rule's decision about every worker by iteration.

workers.csv has the decision about whole gradients: a status for every rule, weights for rules that weigh gradients (the
mean, Krum, Multi-Krum, FA), and explained variances for FA. Rules that decide on each coordinate separately (Median,
Trimmed Mean, MeaMed, Phocas, and Bulyan after its selection) have no weights there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fa.experiments.reporting import style
from fa.experiments.runs.store import InvalidRecord, Record
from fa.training.record_schema import NewerRecord
from fa.training.records import EXCLUDED, FILES, WorkerRow, byzantine_share
from fa.utils import plugins

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

_HATCHES = ("////", "xxxx", "....")  # By reason of exclusion, the most frequent first.
_USED, _GAP = "#bcae6c", "#c8c8c8"
_CURVE = {"iteration": int, "test_accuracy": float, "train_loss": float}


@dataclass(frozen=True)
class RunTables:
    """The records of a run as tables.

    Attributes:
        curve: The rows of curve.csv.
        workers: One row for each iteration and worker; see `fa.experiments.runs.store.Record.workers`.
        config: The configuration.
        initial_accuracy: Test accuracy at iteration 0, if the record has it.
    """

    curve: DataFrame
    workers: DataFrame
    config: Mapping[str, Any]
    initial_accuracy: float | None = None

    @property
    def byzantine(self) -> int:
        """Number of Byzantine workers: the first ranks."""
        return int(self.config["byzantine"])

    def grid(self, column: str) -> DataFrame:
        """Return a column of the workers' table by worker (rows) and iteration (columns); NaN if undefined.

        Args:
            column: Name of the column.

        Returns:
            The values.
        """
        return self.workers.pivot(index="worker", columns="iteration", values=column)

    def byzantine_share(self) -> DataFrame:
        """Return the Byzantine workers' share of the weights by iteration.

        Without weights it is their share of the used workers.
        """
        import pandas

        columns = (self.workers[name].tolist() for name in ("iteration", "worker", "weight", "status"))
        by_iteration: dict[int, list[WorkerRow]] = {}
        for iteration, worker, weight, status in zip(*columns, strict=True):
            row = WorkerRow(iteration, worker, None, None if math.isnan(weight) else weight, status)
            by_iteration.setdefault(iteration, []).append(row)
        parts = [(iteration, byzantine_share(rows, self.byzantine)) for iteration, rows in by_iteration.items()]
        return pandas.DataFrame(parts, columns=["iteration", "part"])


def read(folder: str | Path) -> RunTables:
    """Read the records of a run.

    Args:
        folder: Folder written by `fa train --out` or a sweep.

    Returns:
        The tables of the run.

    Raises:
        ValueError: A file is missing or damaged.
        NewerRecord: A later release wrote the records.
        InvalidRecord: An earlier release wrote them, or they do not describe a run.
    """
    import pandas

    folder = Path(folder)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} must be a run's folder, as fa train --out leaves it; there is no {missing[0]} in it"
        )
    try:
        record = Record(folder)
        config = record.description["config"]
        curve = pandas.read_csv(folder / "curve.csv").astype(_CURVE)
        workers = record.workers()
        _check_rows(workers, int(config["workers"]))
        int(config["byzantine"])
    except (NewerRecord, InvalidRecord):
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} must hold a run's records as they were written; {error} is amiss") from error
    return RunTables(curve, workers, config, record.initial_accuracy)


def _check_rows(workers: DataFrame, p: int) -> None:
    """Raise a ValueError unless each iteration has one row for each of p workers, with finite numbers."""
    pairs = workers[["iteration", "worker"]].drop_duplicates()
    complete = len(pairs) == len(workers) == p * workers["iteration"].nunique() > 0
    if not complete or not workers["worker"].between(0, p - 1).all():
        raise ValueError(f"the number of rows for each iteration in workers.csv, which must be {p},")
    if np.isinf(workers[["value", "weight"]]).any(axis=None):
        raise ValueError("an infinite number in workers.csv")


def draw(run: RunTables) -> Figure:
    """Draw accuracy, loss and the Byzantine workers' share (above), and the decision about each worker (below).

    Args:
        run: Tables of the run.

    Returns:
        The figure.
    """
    share = "weight, as a share of all (a long gradient with a small weight may count as much as a short one)"
    maps = {"share": share, "value": "explained variance $v_i$"}
    maps = {column: name for column, name in maps.items() if run.workers[column].notna().any()} or {"": "status"}
    height = 1 + 0.14 * run.config["workers"]
    figure = style.new_figure(11, 3.4 + height * len(maps))
    parts: Any = figure.subfigures(2, 1, height_ratios=(2.4, height * len(maps)))
    above, below = parts
    _draw_curves(above.subplots(1, 3), run)
    panels = below.subplots(len(maps), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (column, name) in zip(panels, maps.items(), strict=True):
        _draw_map(axes, run, column, name)
    panels[-1].set_xlabel("iteration")
    panels[-1].xaxis.set_major_locator(_whole_numbers())
    handles = _legend(run)
    if handles:
        below.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    style.set_heading(figure, _title(run, "" in maps))
    return figure


def _whole_numbers() -> Any:
    """Return a locator of ticks at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def _title(run: RunTables, unweighed: bool) -> str:
    config = run.config
    rule = plugins.display_name(config["rule"], config["rule_options"])
    faults = f"{config['byzantine']} Byzantine ({plugins.display_name(config['attack'])})"
    note = "\nThis rule gives no weights to whole gradients"
    return (
        f"{rule}; {config['workers']} workers, {faults}; {config['model']} on {config['dataset']}, "
        f"B = {config['batch']}, lr = {config['lr']:g}, seed {config['seed']}{note * unweighed}"
    )


def _draw_curves(panels: Any, run: RunTables) -> None:
    accuracy, loss, counted = panels
    curve, part = run.curve, run.byzantine_share()
    initial = [] if run.initial_accuracy is None else [run.initial_accuracy]
    iterations = [0] * len(initial) + curve["iteration"].tolist()
    accuracy.plot(iterations, initial + curve["test_accuracy"].tolist(), color=style.HONEST, marker="o", markersize=4)
    accuracy.set(ylabel="test accuracy (fraction)", ylim=(0, 1))
    loss.plot(curve["iteration"], curve["train_loss"], color=style.HONEST, marker="o", markersize=4)
    wide = (curve["train_loss"] > 0).all() and curve["train_loss"].max() > 30 * curve["train_loss"].min()
    loss.set(ylabel="honest workers' training loss", yscale="log" if wide else "linear")
    counted.plot(part["iteration"], part["part"], color=style.BYZANTINE)
    weighed = run.workers["share"].notna().any()
    label = f"f/p, if all {'weights were equal' if weighed else 'workers were used'}"
    counted.axhline(run.byzantine / run.config["workers"], color="#222222", linestyle=":", label=label)
    counted.set(ylabel=f"Byzantine, share of {'weights' if weighed else 'those used'}")
    counted.set_ylim(-0.02, 1)
    counted.legend(fontsize=8)
    for axes in panels:
        axes.set_xlabel("iteration")
        axes.set_xlim(0, run.workers["iteration"].max() + 1)
        axes.xaxis.set_major_locator(_whole_numbers())


def _draw_map(axes: Axes, run: RunTables, column: str, name: str) -> None:
    """Draw workers by iteration: excluded ones are hatched, missing values are grey."""
    from matplotlib.colors import ListedColormap

    reasons = run.grid("reason")
    numbers = run.grid(column).to_numpy(dtype=float) if column else np.where(reasons == "", 1.0, np.nan)
    least, most = (0.0, 1.0) if column != "share" else (min(0.0, np.nanmin(numbers)), np.nanmax(numbers))
    first, last = int(reasons.columns[0]), int(reasons.columns[-1])
    extent = (first - 0.5, last + 0.5, len(numbers) - 0.5, -0.5)
    axes.set_facecolor(_GAP)
    colors: Any = "cividis" if column else ListedColormap([_USED])
    image = axes.imshow(numbers, cmap=colors, vmin=least, vmax=most, aspect="auto", extent=extent, interpolation="none")
    for reason, hatch in _hatches(run).items():
        axes.add_patch(_marked(reasons.to_numpy() == reason, first, hatch))
    axes.grid(visible=False)
    axes.set_yticks(range(len(numbers)), [f"{w}, Byzantine" if w < run.byzantine else str(w) for w in reasons.index])
    for label in axes.get_yticklabels()[: run.byzantine]:
        label.set_color(style.BYZANTINE)
    axes.tick_params(axis="y", labelsize=7, length=0)
    if 0 < run.byzantine < len(numbers):
        axes.axhline(run.byzantine - 0.5, color="white", linewidth=3)
    axes.set(ylabel="worker", title=name)
    if column:
        axes.figure.colorbar(image, ax=axes, pad=0.01)


def _marked(where: np.ndarray, first: int, hatch: str) -> Any:
    """Return all true cells as one hatched patch."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    cells = []
    for worker, row in enumerate(where):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        cells += [(first + lo - 0.5, first + hi - 0.5, worker) for lo, hi in edges.reshape(-1, 2)]
    outlines = [
        Outline([(lo, y - 0.5), (hi, y - 0.5), (hi, y + 0.5), (lo, y + 0.5), (lo, y - 0.5)], closed=True)
        for lo, hi, y in cells
    ]
    return PathPatch(Outline.make_compound_path(*outlines), fill=False, edgecolor="white", linewidth=0, hatch=hatch)


def _hatches(run: RunTables) -> dict[str, str]:
    """Return the hatch of each reason of exclusion; the rarest reasons share the last hatch."""
    counts = Counter(run.workers["reason"])
    reasons = sorted(filter(None, counts), key=lambda reason: (-counts[reason], reason))
    return {reason: _HATCHES[min(place, len(_HATCHES) - 1)] for place, reason in enumerate(reasons)}


def _legend(run: RunTables) -> list[Any]:
    from matplotlib.patches import Patch

    reasons_by_hatch: dict[str, list[str]] = {}
    for reason, hatch in _hatches(run).items():
        reasons_by_hatch.setdefault(hatch, []).append(reason)
    weighed = run.workers[["share", "value"]].notna().any().any()
    look: dict[str, Any] = {"facecolor": "#414d6b" if weighed else _GAP, "edgecolor": "white"}
    used = [] if weighed else [Patch(facecolor=_USED, label="used")]
    return used + [
        Patch(**look, hatch=hatch, label=EXCLUDED + "; ".join(reasons[:2]))
        for hatch, reasons in reasons_by_hatch.items()
    ]
