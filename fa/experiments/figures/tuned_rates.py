"""Learning rates that are chosen on validation images, as in Extras 2 and 13."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fa.experiments.runs.results import Results, last_points
from fa.experiments.runs.study import Cell, Study

if TYPE_CHECKING:
    from pandas import DataFrame

TUNING_SEED = 2901
"""Seed of the runs that choose a rate; no other run has it."""

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


def run_both(study: Study, tested: Callable[[Study, DataFrame], Study], jobs: int | None = None) -> Results:
    """Do the runs on validation images, and then those at the best rates.

    Args:
        study: The runs on validation images.
        tested: Function that adds the runs at the best rates, from the table of the first.
        jobs: Number of runs at a time; default: one a core.

    Returns:
        The results of all runs, with the seconds of both parts.
    """
    first = study.run(jobs)
    results = tested(study, first.table()).run(jobs)
    return replace(results, seconds=first.seconds + results.seconds)
