"""What the extras share: their sizes, their rules, and how a statement of ours is judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fa.experiments.claims import UNTESTABLE, mean
from fa.experiments.study import Case, Study, make_study
from fa.experiments.style import PAPER_RULES

HOLDS, PARTLY, FAILS = "holds", "in part", "does not hold"
RULES = (*PAPER_RULES, "mean", "mean_unit")
"""The paper's seven, no defence, and the control: the mean of unit gradients."""

SEEDS = (2021, 2022, 2023)
"""Where a statement says "better", in a profile that has one seed."""

# Extras have many runs of a small model: at "cpu" that of MNIST, at "paper" the paper's own.
_OWN = MappingProxyType(
    {
        "cpu": {
            "dataset": "mnist",
            "model": "convnet",
            "sampling": "random",
            "batch": 32,
            "iterations": 300,
            "evaluate_every": None,
        }
    }
)


def make_extra(
    name: str,
    profile: str,
    grid: Iterable[Case],
    out: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    own: Mapping[str, Any] | None = None,
    **given: Any,
) -> Study:
    """The study of an extra at a profile's size: see `make_study`."""
    return make_study(name, profile, grid, out, seeds, {**_OWN.get(profile, {}), **(own or {})}, **given)


def judged(holds: Sequence[bool], testable: bool = True) -> str:
    """Of a statement of ours about several cases: whether it holds in all, some or none of them."""
    if not testable:
        return UNTESTABLE
    return HOLDS if all(holds) else PARTLY if any(holds) else FAILS


def means(final: Mapping[Any, Sequence[float]]) -> dict[Any, float]:
    """The mean over the seeds of each entry."""
    return {key: mean(values) for key, values in final.items()}
