"""Extra 8: workers whose batch sizes differ by a factor of 16, with and without weights of the workers in FA."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from fa.experiments.figures.extras_common import (
    RULE_ARMS,
    Arms,
    arm_cases,
    arm_looks,
    compare_best,
    draw_dot_panels,
    make_extra,
    several_seeds,
)
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import Claim, comparison_claim, learned
from fa.experiments.reporting.equivalence import LEVEL
from fa.experiments.runs.profiles import MARGIN, for_profile
from fa.experiments.runs.results import final_accuracies
from fa.experiments.runs.study import OutDir, Seeds, Study
from fa.experiments.runs.variants import VARIANTS
from fa.irls import weights_from_batches

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "extra08_batch_sizes"
NO_RULES = "it compares weights of FA's workers"
NO_ATTACK = "it compares two attacks with none"
WORKERS = 15
SIZES = {"smoke": (1, 16), "quick": (4, 64), "cpu": (4, 64), "paper": (16, 256)}
"""Batch sizes of even and of odd ranks, by profile: as many images in all as with equal batches, up to a tenth."""


class Panel(NamedTuple):
    """A panel of the figure.

    Attributes:
        heading: Title of the panel.
        f: Number of Byzantine workers.
        attack: Their attack.
        large: Whether all Byzantine workers have the large batch, and so large weights.
    """

    heading: str
    f: int
    attack: str
    large: bool = False


PANELS = (
    Panel("no Byzantine worker", 0, "none"),
    Panel("f = 3, random in [0, 1)", 3, "random"),
    Panel("f = 3, colluding", 3, "collude"),
    Panel("f = 3, random, large batches", 3, "random", large=True),
)

FA = VARIANTS["fa"].label
POWERS = {"FA, weights B": 1.0, "FA, weights sqrt(B)": 0.5}
"""Arms with weights, and the power of the batch size."""

CONTROL = "Mean of unit gradients, weights B"


def batches(profile: str, panel: Panel) -> tuple[int, ...]:
    """Return the batch size of each rank.

    Args:
        profile: A key of `SIZES`, which has a small and a large batch size.
        panel: Panel of the figure. If `large` is true, its first f ranks have the large batch.

    Returns:
        The batch sizes of all 15 ranks. They alternate, and rank 0 has the small one.

    Raises:
        ValueError: Unknown profile.

    Example:
        >>> batches("quick", PANELS[0])[:5], batches("quick", PANELS[3])[:5]
        ((4, 64, 4, 64, 4), (64, 64, 64, 64, 4))
    """
    sizes = for_profile(SIZES, profile)
    return tuple(sizes[1] if panel.large and rank < panel.f else sizes[rank % 2] for rank in range(WORKERS))


def study(profile: str, out: OutDir = None, seeds: Seeds = None, **overrides: Any) -> Study:
    """Create the study of Extra 8: batch sizes that differ between workers.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: 2021, 2022 and 2023, and at "smoke" the profile's.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, for each of `PANELS`, each rule, and FA with weights of the workers.

    Raises:
        ValueError: Unknown profile or setting, an invalid value, or empty `seeds`.
    """
    case_seeds = several_seeds(profile)
    grid = []
    for panel in PANELS:
        sizes = batches(profile, panel)
        grid += arm_cases(_arms(sizes), panel.f, {"attack": panel.attack, "batch": sizes}, case_seeds)
    return make_extra(NAME, profile, grid, out, seeds, **overrides)


def _arms(sizes: tuple[int, ...]) -> Arms:
    weighted = {name: ("fa", {"worker_weights": weights_from_batches(sizes, power)}) for name, power in POWERS.items()}
    # With m = p, Y Y^T changes nothing, so that FA is the weighted mean of unit gradients.
    control = {"preaggregators": ("unit",), "m": WORKERS, "worker_weights": weights_from_batches(sizes)}
    return {**RULE_ARMS, **weighted, CONTROL: ("fa_default", control)}


def by_panel(table: DataFrame) -> dict[Panel, DataFrame]:
    """Split the curves by panel.

    Args:
        table: The curves, one row a point; batch sizes may be texts, as in a CSV file.

    Returns:
        The rows of each panel.
    """
    large = table["batch"].map(_starts_large)
    return {panel: table[(table["attack"] == panel.attack) & (large == panel.large)] for panel in PANELS}


def _starts_large(sizes: Any) -> bool:
    """Return True if the first rank has a larger batch than the last, which is small in every panel."""
    numbers = re.findall(r"\d+", str(sizes))
    return int(numbers[0]) > int(numbers[-1])


def draw(table: DataFrame, title: str) -> Figure:
    """Draw all panels: every rule, and FA with weights, a mark for each seed.

    Args:
        table: The curves, one row a point, with the columns label, attack, batch, seed, iteration and test_accuracy.
            Batch sizes may be texts, as in a CSV file.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure, with a panel for each of `PANELS`.
    """
    looks = arm_looks(RULE_ARMS)
    looks |= dict.fromkeys(POWERS, style.LOOKS["fa"]) | {CONTROL: style.LOOKS["mean_unit"]}
    tables = {panel.heading: rows for panel, rows in by_panel(table).items()}
    figure = draw_dot_panels(tables, looks, (17, 4.4), bold=(FA, *POWERS))
    sizes = sorted({int(number) for text in table["batch"].map(str) for number in re.findall(r"\d+", text)})
    text = f"Batch sizes {sizes[0]} and {sizes[-1]} in turn; {style.FA_FORMULATION}"
    style.set_heading(figure, f"{text}\n{title}")
    return figure


def claims(table: DataFrame, chance: float, margin: float = MARGIN) -> list[Claim]:
    """Judge E8: FA with weights against FA without them, and against the best other rule.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.
        margin: Accuracies that differ by less are equal.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    final = {panel.heading: final_accuracies(rows, "label") for panel, rows in by_panel(table).items()}
    testable = any(learned(reached, chance) for reached in final.values())
    level = LEVEL / len(POWERS)  # Bonferroni correction: one of the two powers is enough.
    against_fa = compare_best(final, POWERS, [FA])
    against_all = compare_best(final, POWERS, [*(label for label in RULE_ARMS if label != FA), CONTROL])
    first = "with batch sizes that differ by 16, weights by batch size improve FA"
    second = "FA with weights is better than every other rule, and than the weighted mean of unit gradients"
    return [
        comparison_claim("E8", first, against_fa, testable, margin, level),
        comparison_claim("E8", second, against_all, testable, margin, level),
    ]
