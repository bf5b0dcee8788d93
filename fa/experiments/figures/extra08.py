"""Extra 8: workers whose batch sizes differ by a factor of 16, with and without weights of the workers in FA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fa.experiments.figures.extras_common import RULES, SEEDS, best_label, by_label, draw_dots, make_extra
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import Claim, Lead, comparison_verdict, learned
from fa.experiments.reporting.equivalence import LEVEL
from fa.experiments.runs.profiles import MARGIN
from fa.experiments.runs.study import Case, OutDir, Seeds, Study
from fa.experiments.runs.variants import RIVALS, VARIANTS
from fa.irls import weights_from_batches

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "extra08_batch_sizes"
WORKERS = 15
SIZES = {"smoke": (1, 16), "quick": (4, 64), "cpu": (4, 64), "paper": (16, 256)}
"""Batch sizes of even and of odd ranks, by profile: as many images in all as with equal batches, up to a tenth."""

PANELS = {"none": (0, "no Byzantine worker"), "random": (3, "f = 3, random in [0, 1)"), "collude": (3, "f = 3, colluding")}
"""Number of Byzantine workers and heading, by attack."""

FA, PLAIN_MEAN = VARIANTS["fa"].label, VARIANTS["mean_unit"].label
POWERS = {"FA, weights B": 1.0, "FA, weights sqrt(B)": 0.5}
"""Arms with weights, and the power of the batch size."""

CONTROL = "Mean of unit gradients, weights B"


def batches(profile: str) -> tuple[int, ...]:
    """Return the batch size of each rank."""
    return tuple(SIZES[profile][rank % 2] for rank in range(WORKERS))


def study(profile: str, out: OutDir = None, seeds: Seeds = None, **overrides: Any) -> Study:
    """Create the study of Extra 8; see `make_study`."""
    sizes = batches(profile)
    weights = {name: weights_from_batches(sizes, power) for name, power in POWERS.items()}
    arms: list[tuple[str, dict[str, Any], str]] = [(key, {}, VARIANTS[key].label) for key in RULES]
    arms += [("fa", {"worker_weights": c}, name) for name, c in weights.items()]
    # With m = p, Y Y^T changes nothing, so that FA is the weighted mean of unit gradients.
    unweighted = {"preaggregators": ("unit",), "m": WORKERS}
    arms.append(("fa_default", unweighted | {"worker_weights": weights_from_batches(sizes)}, CONTROL))
    case_seeds = () if profile == "smoke" else SEEDS
    grid = [
        Case(key, f, {"attack": attack, "batch": sizes}, options, case_seeds, name)
        for attack, (f, _) in PANELS.items()
        for key, options, name in arms
    ]
    return make_extra(NAME, profile, grid, out, seeds, **overrides)


def draw(table: DataFrame, title: str) -> Figure:
    """Draw a panel per attack: every rule, and FA with weights, a mark for each seed."""
    figure = style.new_figure(11, 4.4)
    panels = figure.subplots(1, len(PANELS), sharey=True)
    looks = {VARIANTS[key].label: style.LOOKS[key] for key in RULES}
    looks |= dict.fromkeys(POWERS, style.LOOKS["fa"]) | {CONTROL: style.LOOKS["mean_unit"]}
    for axes, (attack, (_, heading)) in zip(panels, PANELS.items(), strict=True):
        draw_dots(axes, by_label(table[table["attack"] == attack]), looks, bold=(FA, *POWERS))
        axes.set_title(heading)
    small, large = sorted({size for sizes in table["batch"] for size in sizes})
    text = f"Batch sizes {small} and {large} in turn; {style.FA_FORMULATION}"
    figure.suptitle(f"{text}\n{title}", fontsize=10)
    return figure


def claims(table: DataFrame, chance: float, margin: float = MARGIN) -> list[Claim]:
    """Judge E8: FA with weights against FA without them, and against the best other rule.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.
        margin: Accuracies that differ by less are equal.
    """
    final = {attack: by_label(table[table["attack"] == attack]) for attack in PANELS}
    testable = any(learned(reached, chance) for reached in final.values())
    level = LEVEL / len(POWERS)  # Bonferroni correction: one of the two powers is enough.
    others = [VARIANTS[key].label for key in (*RIVALS, "mean_unit")]
    against_fa, against_best = [], []
    for attack, reached in final.items():
        best = best_label(reached, POWERS)
        rival = best_label(reached, (*others, CONTROL))
        heading = PANELS[attack][1]
        against_fa.append(Lead(heading, reached[best], FA, reached[FA], best))
        against_best.append(Lead(heading, reached[best], rival, reached[rival], best))
    words = "with batch sizes that differ by 16, weights by batch size improve FA"
    second = "FA with weights is better than every other rule, and than the weighted mean of unit gradients"
    return [
        Claim("E8", words, _measured(against_fa), comparison_verdict(against_fa, testable, level, margin)),
        Claim("E8", second, _measured(against_best), comparison_verdict(against_best, testable, level, margin)),
    ]


def _measured(leads: list[Lead]) -> str:
    return "; ".join(f"{lead.describe()}; lead {lead.difference_text}" for lead in leads)
