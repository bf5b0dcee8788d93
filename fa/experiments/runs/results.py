"""Results of studies: the curves of their runs as one tidy table, and the accuracies that they end at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fa.experiments.runs.store import Record
from fa.experiments.runs.sweep import Outcome
from fa.training.config import TrainConfig

if TYPE_CHECKING:
    from pandas import DataFrame

    from fa.experiments.runs.study import Cell, Study

INITIAL = "initial_accuracy"
"""Attribute of a table of curves: the test accuracy at iteration 0 by seed, for the seeds whose records have it."""

AUGMENTED = "augmented"
"""Attribute of a table of curves: True if workers train on augmented images."""


@dataclass(frozen=True)
class Results:
    """A study whose runs are all finished.

    Attributes:
        seconds: Seconds that the call took; few where the runs were finished before.
        descriptions: The config.json of each run.
    """

    study: Study
    outcomes: dict[TrainConfig, Outcome]
    seconds: float
    descriptions: tuple[dict[str, Any], ...]

    def record(self, cell: Cell) -> Record:
        """Return the record of one of the study's runs.

        Args:
            cell: One of the cells of the study.

        Returns:
            The record.
        """
        record = self.outcomes[cell.config].record
        assert record is not None  # A study with a failed run has no results.
        return record

    def table(self) -> DataFrame:
        """Return one row for each point of each curve.

        Columns: variant, label, f, those of the cases, seed, and those of curve.csv.
        """
        import pandas

        columns = list(dict.fromkeys(name for cell in self.study.cells for name in cell.case.columns))
        rows = []
        for cell in self.study.cells:
            settings = {name: cell.case.columns.get(name) for name in columns}
            about = {"variant": cell.variant, "label": cell.case.label, "f": cell.config.byzantine, **settings}
            rows += [about | {"seed": cell.config.seed} | point for point in self.record(cell).curve]
        table = pandas.DataFrame(rows).astype({"iteration": int, "epoch": int})
        table.attrs[INITIAL] = self.initial_accuracies()
        table.attrs[AUGMENTED] = any(cell.config.augmentation for cell in self.study.cells)
        return table

    def initial_accuracies(self) -> dict[int, float]:
        """Return the test accuracy of the initial parameters by seed, since it does not depend on the rule.

        Seeds are omitted whose records lack it or differ, as those of several models.
        """
        values: dict[int, set[float | None]] = {}
        for cell in self.study.cells:
            values.setdefault(cell.config.seed, set()).add(self.record(cell).initial_accuracy)
        single = {seed: next(iter(found)) for seed, found in values.items() if len(found) == 1}
        return {seed: value for seed, value in single.items() if value is not None}


def last_points(table: DataFrame) -> DataFrame:
    """Return the last point of every curve.

    Args:
        table: The curves, one row a point.

    Returns:
        One row for each curve.
    """
    curve = list(table.columns[: list(table.columns).index("iteration")])
    ordered = table.sort_values("iteration", kind="stable")
    last: DataFrame = ordered.groupby(curve, sort=False, dropna=False).last().reset_index()
    return last


def final_accuracies(table: DataFrame, *by: str, paired: bool = True) -> dict[Any, list[float]]:
    """Return final test accuracies by the values of some columns, in the order of the table.

    Args:
        table: The curves, one row a point.
        *by: The columns. The values of the first are compared, those of the others are the places of comparison.
        paired: At each place, use only the seeds that all its values of the first column have.

    Returns:
        Accuracies in the order of the seeds, by value of the column, or by tuple if there are several columns.
    """
    last = last_points(table).sort_values("seed", kind="stable")
    if paired:
        places = [last[column] for column in by[1:]] or [last["seed"] * 0]
        values = last.groupby(places)[by[0]].transform("nunique")
        last = last[last.groupby([*places, "seed"])[by[0]].transform("nunique") == values]
    final: dict[Any, list[float]] = {key: [] for key in _keys(table, by)}
    for key, accuracy in zip(_keys(last, by), last["test_accuracy"].tolist(), strict=True):
        final[key].append(accuracy)
    return {key: values for key, values in final.items() if values}


def common_final_accuracies(table: DataFrame, *by: str) -> dict[tuple[Any, ...], list[float]]:
    """Return final test accuracies by the values of some columns, of the seeds that all of them have.

    Args:
        table: The curves, one row a point.
        *by: The columns.

    Returns:
        Accuracies in the order of the seeds, by tuple.
    """
    cases = list(zip(*(table[column] for column in by), strict=True))
    return final_accuracies(table.assign(case=cases), "case")


def _keys(table: DataFrame, by: Sequence[str]) -> list[Any]:
    """Return the key of each row: the value of one column, or a tuple."""
    columns = [table[column].tolist() for column in by]
    return columns[0] if len(by) == 1 else list(zip(*columns, strict=True))


def summary(table: DataFrame, by: str = "f") -> DataFrame:
    """Return mean, least and greatest final test accuracy over the seeds, by label and the column `by`.

    Args:
        table: The curves, one row a point.
        by: Column of the second key.

    Returns:
        One row for each label and value.
    """
    over_seeds = last_points(table).groupby(["label", by], sort=False)["test_accuracy"]
    final: DataFrame = over_seeds.agg(["mean", "min", "max"])
    return final
