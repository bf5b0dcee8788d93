"""Figure 3: variance of each worker's gradient that the optimal subspace and the mean gradient explain."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from fa.experiments.reporting import style
from fa.experiments.reporting.claims import Claim, verdict
from fa.experiments.runs.recording import MIN_MINIBATCHES, sampling_interval, watch
from fa.experiments.runs.results import Results
from fa.experiments.runs.study import Case, OutDir, Seeds, Study, make_study
from fa.gradients.gram import Gram, Square
from fa.gradients.measurement import measure
from fa.irls import Options, default_m, solve_gram
from fa.irls.problem import nonzero_eigenpairs
from fa.training.config import TrainConfig
from fa.training.loop import Progress
from fa.utils.seeds import derive_seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from pandas import DataFrame

NAME = "fig03_explained_variance"
NO_RULES = "it shows the explained variances of FA's subspace"
F_VALUES = (0, 3)
MIN_SPIKE_VALUE = 0.9  # Explained variances from this value on are near 1.
MIN_DIFFERENCE = 0.02  # Least difference that counts between shares or mean values.
LABELS = {
    "fa": "FA's subspace, m = ceil((p + 1)/2)",
    "mean": "direction of the mean gradient",
    "fa_one": "FA's subspace, m = 1",
    "any": "span of m workers drawn at random",
}
_OURS, _MEANS = style.LOOKS["fa"].color, style.LOOKS["mean"].color
_LOOKS = {"fa": (_OURS, "-", "x"), "mean": (_MEANS, "-", "+"), "fa_one": (_OURS, "--", "v"), "any": ("black", ":", "s")}
"""Colors, dashes of honest workers, and markers of Byzantine workers."""


def study(profile: str, out: OutDir = None, seeds: Seeds = None, **overrides: Any) -> Study:
    """Create the study of Figure 3: FA with f = 0 and f = 3.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: the profile's.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, whose runs `collect` trains and measures.

    Raises:
        ValueError: Unknown profile or setting, an invalid value, or empty `seeds`.
    """
    return replace(make_study(NAME, profile, [Case("fa", f) for f in F_VALUES], out, seeds, **overrides), live=True)


def collect(study: Study) -> tuple[DataFrame, Results]:
    """Train each run, one after another, and measure explained variances of its gradients.

    Args:
        study: The study; its runs are not written to the run store.

    Returns:
        A table with one row for each basis, f, seed, iteration and worker, with the explained variance `value`; and
        the results.
    """
    import pandas

    started = time.monotonic()
    watched = [
        watch(config, partial(_explained_rows, config), sampling_interval(config.iterations))
        for config in study.configs
    ]
    table = pandas.DataFrame([row for rows, _ in watched for row in rows])
    descriptions = tuple(run.description() for _, run in watched)
    return table, Results(study, {}, time.monotonic() - started, descriptions)


def _explained_rows(config: TrainConfig, progress: Progress) -> Iterator[dict[str, Any]]:
    gram, _ = measure(progress.G)
    for basis, coefficients in _bases(gram, config.seed, progress.iteration):
        about = {"basis": basis, "f": config.byzantine, "seed": config.seed, "iteration": progress.iteration}
        for worker, value in enumerate(explained(gram.cosines, coefficients)):
            yield about | {"worker": worker, "byzantine": worker < config.byzantine, "value": value}


def _bases(gram: Gram, seed: int, iteration: int) -> Iterator[tuple[str, Float64[np.ndarray, "p q"]]]:
    """Yield each basis as coefficients on the unit gradients."""
    m = default_m(gram.p)
    for name, columns in (("fa", m), ("fa_one", 1)):
        solution = solve_gram(gram, Options(m=columns))
        assert solution.coefficients is not None  # Y lies in the span, since lam = 0.
        yield name, gram.norms[:, None] * solution.coefficients
    yield "mean", gram.scaled_norms[:, None]
    drawn = np.random.default_rng(derive_seed("fig03", seed, 0, iteration)).permutation(gram.p)[:m]
    yield "any", np.eye(gram.p)[:, drawn]


def explained(cosines: Square, coefficients: Float64[np.ndarray, "p q"]) -> Float64[np.ndarray, " p"]:
    """Return explained variances v_i (p,) under the span of q vectors.

    Args:
        cosines: Cosines of the gradients (p, p).
        coefficients: Coefficients of the vectors on the unit gradients (p, q).

    Returns:
        The explained variances, float64, at most 1.
    """
    products = cosines @ coefficients
    eigenvalues, vectors = nonzero_eigenpairs(coefficients.T @ products)
    inside = products @ (vectors / np.sqrt(eigenvalues))
    values: np.ndarray = np.minimum(np.square(inside).sum(axis=1), 1.0)
    return values


def draw(table: DataFrame, title: str) -> Figure:
    """Draw histograms of honest workers for each f, as in the paper (above), and means by iteration (below).

    Args:
        table: Explained variances as `collect` returns them: the columns basis, f, seed, iteration, worker, value, and
            byzantine, which is true for Byzantine workers.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure, with two rows of two panels.
    """
    figure = style.new_figure(9.5, 6.8)
    grid = figure.subplots(2, 2, sharey="row")
    for panels, f in zip(grid.T, F_VALUES, strict=True):
        rows = table[table["f"] == f]
        for basis in LABELS:
            _histogram(panels[0], rows[(rows["basis"] == basis) & ~rows["byzantine"]], basis)
            _course(panels[1], rows[rows["basis"] == basis], basis)
        panels[0].set(title=f"f = {f}", xlabel="explained variance $v_i$", xlim=(0, 1))
        panels[1].set(xlabel="iteration", ylim=(0, 1.02))
    grid[0, 0].set_ylabel("share of honest workers\nand minibatches")
    grid[1, 0].set_ylabel("mean $v_i$ (lines: honest,\nmarks: Byzantine workers)")
    grid[0, 0].legend(handles=_histogram_entries(), loc="upper center", fontsize=8)
    entries = _course_entries(bool(table["byzantine"].any()))
    figure.legend(handles=entries, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    style.set_heading(
        figure, f"Explained variance of each worker's minibatch gradient, in runs trained with FA\n{title}"
    )
    return figure


def _histogram(axes: Axes, rows: DataFrame, basis: str) -> None:
    filled = _LOOKS[basis][1] == "-"
    share = np.full(len(rows), 1 / len(rows))
    kind: Any = "stepfilled" if filled else "step"
    axes.hist(rows["value"], bins=25, range=(0, 1), weights=share, histtype=kind, **_area(basis))


def _area(basis: str) -> dict[str, Any]:
    """Return the look of a basis's histogram and of its entry in the legend."""
    color, dashes, _ = _LOOKS[basis]
    if dashes == "-":
        return {"color": color, "alpha": 0.6}
    return {"edgecolor": color, "linestyle": dashes, "fill": False, "linewidth": 1.2}


def _histogram_entries() -> list[Patch]:
    from matplotlib.patches import Patch

    return [Patch(label=label, **_area(basis)) for basis, label in LABELS.items()]


def _course_entries(byzantine: bool) -> list[Line2D]:
    """Return an entry for each line of honest workers, and one for each mark of Byzantine workers, if any."""
    from matplotlib.lines import Line2D

    lines, marks = [], []
    for basis, label in LABELS.items():
        color, dashes, marker = _LOOKS[basis]
        line: dict[str, Any] = {"color": color, "linestyle": dashes}
        lines.append(Line2D([], [], label=f"honest: {label}", **line))
        mark: dict[str, Any] = {"marker": marker, "markerfacecolor": "none", "markersize": 5}
        marks.append(Line2D([], [], color=color, linestyle="", label=f"Byzantine: {label}", **mark))
    return lines + marks if byzantine else lines


def _course(axes: Axes, rows: DataFrame, basis: str) -> None:
    """Draw honest workers as a line, and Byzantine workers, if any, as marks."""
    color, dashes, marker = _LOOKS[basis]
    honest = rows[~rows["byzantine"]].groupby("iteration")["value"].mean()
    byzantine = rows[rows["byzantine"]].groupby("iteration")["value"].mean()
    look: dict[str, Any] = {"color": color, "markersize": 5, "markerfacecolor": "none"}
    axes.plot(honest.index, honest, linestyle=dashes, **look)
    if len(byzantine):
        axes.plot(byzantine.index, byzantine, marker, **look)


def claims(table: DataFrame) -> list[Claim]:
    """Judge C2 by the honest workers. The span of m random workers is a control, without influence on the verdict.

    Args:
        table: One row for each basis, f, seed, iteration and worker.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    testable = table["iteration"].nunique() >= MIN_MINIBATCHES
    honest = table[~table["byzantine"]].groupby(["basis", "f"])["value"]
    values = {(basis, int(f)): group for (basis, f), group in honest}
    near = {key: float((group >= MIN_SPIKE_VALUE).mean()) for key, group in values.items()}
    mean = {key: float(group.mean()) for key, group in values.items()}
    above = [all(number["fa", f] > number["mean", f] + MIN_DIFFERENCE for number in (near, mean)) for f in F_VALUES]
    return [
        Claim(
            "C2",
            "a spike near 1 under the carefully chosen subspace, as opposed to the mean gradient",
            f"share of v_i >= {MIN_SPIKE_VALUE:g} of honest workers: {_by_basis(near)}. Mean v_i: {_by_basis(mean)}."
            f" The random span and one column are controls; threshold: {MIN_DIFFERENCE:g} above that of the mean",
            verdict(above, testable),
        ),
    ]


def _by_basis(numbers: dict[tuple[str, int], float]) -> str:
    names = {"fa": "FA's subspace", "mean": "direction of the mean", "any": "random span", "fa_one": "one column"}
    parts = [", ".join(f"{name} {numbers[key, f]:.3f}" for key, name in names.items()) for f in F_VALUES]
    return "; ".join(f"f = {f}: {part}" for f, part in zip(F_VALUES, parts, strict=True))
