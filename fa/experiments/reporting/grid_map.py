"""Heat maps of a grid: rules by attacks, one panel for each f and split, with the worst attack as the last column."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fa.experiments.reporting import style
from fa.experiments.reporting.artifacts import save_files
from fa.experiments.reporting.heatmap import draw_heat
from fa.experiments.runs.grid import Grid, GridResult
from fa.training.config import TrainConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

WORST = "worst"
"""Name of the column of the least accuracy over attacks."""


_LISTED = 6  # Number of rules up to which the title has the learning rate of each.


def runs_table(result: GridResult) -> DataFrame:
    """Convert the reported runs of a grid to a table.

    Args:
        result: Outcomes of the grid. Runs of its tuning are omitted.

    Returns:
        One row for each run, with the columns rule, attack, f, split, seed, lr, test_accuracy and record. The accuracy
        is NaN, and the record's folder name empty, if the run failed.
    """
    import pandas

    rows = []
    for cell in result.cells:
        record = result.outcomes[cell.config].record
        about = {"rule": cell.rule, "attack": cell.attack, "f": cell.f, "split": cell.split}
        about |= {"seed": cell.config.seed, "lr": cell.config.lr, "test_accuracy": result.accuracy(cell.config)}
        rows.append(about | {"record": "" if record is None else record.folder.name})
    return pandas.DataFrame(rows).astype({"test_accuracy": float})


def cells_table(grid: Grid, runs: DataFrame) -> DataFrame:
    """Return one row for each rule, f and split: the mean accuracy over seeds by attack, and the worst of them.

    Args:
        grid: The grid.
        runs: Rows of `runs_table`.

    Returns:
        Columns split, f, rule, one for each attack, `worst`, the least of them, and `worst_attack`. They are empty if
        the rule does not tolerate f of the workers, and the worst is empty if a run failed.
    """
    import pandas

    attacks = [attack.label for attack in grid.attacks]
    means = runs.groupby(["split", "f", "rule", "attack"], sort=False)["test_accuracy"].agg(
        lambda x: x.mean(skipna=False)
    )
    rows = []
    for split in grid.splits:
        for f in grid.byzantine:
            for rule in grid.rules:
                values = {name: means.get((split.label, f, rule.label, name), float("nan")) for name in attacks}
                column = pandas.Series(values)
                complete = bool(column.notna().all())
                worst = {
                    WORST: column.min() if complete else float("nan"),
                    "worst_attack": column.idxmin() if complete else "",
                }
                rows.append({"split": split.label, "f": f, "rule": rule.label} | values | worst)
    return pandas.DataFrame(rows)


def draw(grid: Grid, cells: DataFrame, title: str) -> Figure:
    """Draw one heat map for each split (rows of panels) and f (columns).

    Args:
        grid: The grid.
        cells: Rows of `cells_table`.
        title: Title of the figure.

    Returns:
        The figure.
    """
    attacks = [attack.label for attack in grid.attacks]
    rows, columns = len(grid.splits), len(grid.byzantine)
    width = 1.2 + columns * max(2.2, 0.45 * (len(attacks) + 1)) + 0.08 * max(len(rule.label) for rule in grid.rules)
    figure = style.new_figure(max(7, width), 1.6 + rows * (0.6 + 0.3 * len(grid.rules)))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for line, split in zip(panels, grid.splits, strict=True):
        for axes, f in zip(line, grid.byzantine, strict=True):
            values = cells[(cells["split"] == split.label) & (cells["f"] == f)].set_index("rule")
            image = draw_heat(axes, values[[*attacks, WORST]], f"f = {f}" + f", {split.label}" * (rows > 1))
            axes.axvline(len(attacks) - 0.5, color="white", linewidth=3)
    for axes in panels[-1]:  # Only the last row of panels has the names of the shared axis.
        axes.get_xticklabels()[-1].set_fontweight("bold")
    figure.colorbar(image, ax=panels, label="final test accuracy (fraction)", shrink=0.8)
    style.set_heading(figure, title)
    return figure


def heading(result: GridResult) -> str:
    """Compose the title of a grid's figure.

    Args:
        result: Outcomes of the grid.

    Returns:
        Two to four lines. The subject comes first, then the settings and seeds. The tuned learning rates and the
        excluded rules follow if there are any. For more than six rules, the rates are a range.
    """
    grid, settings = result.grid, TrainConfig(byzantine=0, **result.grid.settings)
    seeds = f"mean over seeds {', '.join(map(str, grid.seeds))}" if len(grid.seeds) > 1 else f"seed {grid.seeds[0]}"
    rate = "" if result.rates else f", lr = {settings.lr:g}"
    lines = [
        "Every rule under every attack; worst: least of the row",
        f"{settings.model} on {settings.dataset}, p = {settings.workers}, B = {settings.batch}{rate}, "
        f"{settings.iterations} iterations, {seeds}",
    ]
    if result.rates and grid.tuning is not None:
        if len(result.rates) <= _LISTED:
            chosen = ", ".join(f"{rule} {value:g}" for rule, value in result.rates.items())
        else:
            chosen = f"{min(result.rates.values()):g} to {max(result.rates.values()):g}"
        tuned_on = ("seed " if len(grid.tuning.seeds) == 1 else "seeds ") + ", ".join(map(str, grid.tuning.seeds))
        lines.append(f"learning rate of each rule by validation accuracy, {tuned_on}: {chosen}")
    if skipped := grid.skipped():
        lines.append(f"excluded, since there are too few workers: {'; '.join(skipped)}")
    return "\n".join(lines)


def save(result: GridResult, folder: Path, name: str, about: dict[str, Any]) -> Path:
    """Write NAME.png, NAME.pdf, NAME.csv (cells), NAME.runs.csv and NAME.json (provenance).

    Args:
        result: Outcomes of the grid.
        folder: Existing folder.
        name: Name of the files.
        about: Entries of the provenance beside those of the grid.

    Returns:
        The path of the PNG.
    """
    runs = runs_table(result)
    cells = cells_table(result.grid, runs)
    provenance = about | {
        "settings": dict(result.grid.settings),
        "rates": dict(result.rates),
        "skipped": result.grid.skipped(),
        "failed": [str(outcome) for outcome in result.failed],
    }
    figure = draw(result.grid, cells, heading(result))
    return save_files(figure, folder / name, {"": cells, ".runs": runs}, provenance)
