"""The paper's experiments: studies made of runs, a store that keeps what is finished, figures and claims.

A figure is a module with NAME, `study(profile, ...)`, `draw(table, title)` and `claims(table, ...)`, and a notebook of
that NAME. So is an extra, which asks what the paper does not, and what the supplement adds.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from fa.utils.validation import check_one_of

FIGURES = (
    "fig02_mean_tolerance",
    "fig03_explained_variance",
    "fig04_byzantine_workers",
    "fig05_batch_size",
    "fig06a_packet_loss",
    "fig06bcd_more_workers",
    "fig07_augmented_data",
    "fig08_lambda",
    "fig09_scaling",
    "fig10_wall_clock",
)
EXTRAS = (
    "extra01_what_makes_fa_work",
    "extra02_tuned_learning_rates",
    "extra03_attacks",
    "extra04_who_was_trusted",
    "extra05_combined",
    "extra07_rate_or_subspace",
)
SUPPLEMENT = ("supp01_tiny_imagenet",)
ALL = FIGURES + EXTRAS + SUPPLEMENT


def figure_module(name: str) -> Any:
    """The module of a figure, named as `named` has it."""
    return importlib.import_module(f"fa.experiments.figures.{_number(named([name], ALL)[0])}")


def named(names: Sequence[str], all_: Sequence[str]) -> list[str]:
    """Those that are meant, in the order of `all_`: by a whole name (fig02_mean_tolerance), by what stands before its
    first "_" (fig02), or by the letters at its start (fig, or figs). Raises ValueError for a name that means none.
    """
    for name in names:
        if not any(_means(name, one) for one in all_):
            check_one_of("name", name, [_number(one) for one in all_])
    return [one for one in all_ if any(_means(name, one) for name in names)]


def _means(name: str, whole: str) -> bool:
    number = _number(whole)
    family = "".join(takewhile(str.isalpha, number))
    return name in (whole, number, family, f"{family}s")


def _number(whole: str) -> str:
    return whole.partition("_")[0]
