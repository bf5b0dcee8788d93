"""The paper's experiments: studies made of runs, the store of finished runs, figures and claims.

A figure is a module with NAME, `study(profile, ...)`, `draw(table, title)` and `claims(table, ...)`, and a notebook
with the same name. NO_RULES or NO_ATTACK is the reason why the user's rules or attack do not apply to a figure. Extras
are figures beyond the paper.
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
    "extra06_subspace",
    "extra07_rate_or_subspace",
    "extra08_batch_sizes",
    "extra09_options_of_the_paper",
    "extra10_noise_levels",
    "extra11_in_front_of_rules",
    "extra12_unreached_coordinates",
    "extra13_tuned_combinations",
)
SUPPLEMENT = ("supp01_tiny_imagenet",)
ALL = FIGURES + EXTRAS + SUPPLEMENT


def figure_module(name: str) -> Any:
    """Import the module of a figure.

    Args:
        name: A name that `match_names` accepts, such as "fig02" or "fig02_mean_tolerance". A family stands for its
            first figure.

    Returns:
        The module, with NAME, `study`, `draw` and `claims`.

    Raises:
        ValueError: Unknown name.

    Example:
        >>> figure_module("fig02").NAME
        'fig02_mean_tolerance'
    """
    return importlib.import_module(f"fa.experiments.figures.{_number(match_names([name], ALL)[0])}")


def match_names(names: Sequence[str], all_names: Sequence[str]) -> list[str]:
    """Select names by their short forms.

    Args:
        names: Whole names (fig02_mean_tolerance), short ones (fig02) or families (fig or figs).
        all_names: Whole names to select from.

    Returns:
        The selected whole names, in the order of `all_names`.

    Raises:
        ValueError: A name that selects nothing.
    """
    for name in names:
        if not any(_matches(name, whole) for whole in all_names):
            check_one_of("name", name, [_number(whole) for whole in all_names])
    return [whole for whole in all_names if any(_matches(name, whole) for name in names)]


def _matches(name: str, whole: str) -> bool:
    number = _number(whole)
    family = "".join(takewhile(str.isalpha, number))
    return name in (whole, number, family, f"{family}s")


def _number(whole: str) -> str:
    return whole.partition("_")[0]
