"""Learning rates that are chosen on validation images, as in Extras 2 and 13."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fa.experiments.runs.results import last_points
from fa.experiments.runs.study import Cell, Study

if TYPE_CHECKING:
    from pandas import DataFrame

VALIDATION_SHARE = 0.2
"""Share of the training images that no worker has, and that a rate is chosen on."""


def best_rates(table: DataFrame, by: str) -> dict[str, float]:
    """Return the rate with the best validation accuracy, the mean over attacks and seeds; the lowest of equals.

    Args:
        table: The curves, one row a point. Rows with validation = 0 are ignored.
        by: Column of what has a rate of its own: "variant" or "label".

    Returns:
        Learning rate by value of the column, in the order of the table.
    """
    last = last_points(table[table["validation"] > 0])
    means = last.groupby([by, "lr"])["test_accuracy"].mean()
    return {key: float(means[key].idxmax()) for key in dict.fromkeys(last[by])}


def at_rates(study: Study, rates: Mapping[str, float], by: str, seeds: Sequence[int]) -> Study:
    """Return the study with further runs at these rates, on all training images and with the test images.

    Args:
        study: Runs on validation images, in which all cases have the same seeds.
        rates: Learning rate by variant or label; see `best_rates`.
        by: "variant" or "label".
        seeds: Seeds of the further runs.

    Returns:
        The study, with cells of both kinds.
    """
    cells = []
    for like in study.cells:
        if like.config.seed == study.cells[0].config.seed and like.config.lr == rates[getattr(like.case, by)]:
            case = replace(like.case, settings={**like.case.settings, "validation": 0.0})
            cells += [Cell(case, replace(like.config, validation=0.0, seed=seed)) for seed in seeds]
    return replace(study, cells=(*study.cells, *cells))
