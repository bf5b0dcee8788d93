"""Extra 11: FA's projection, and equal norms, in front of the paper's other rules; and how sparse FA's weights are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fa.experiments.figures.extras_common import SHORT, Arms, arm_cases, arm_looks, draw_dots, make_extra, several_seeds
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import IN_PART, MISSING, Claim, Lead, comparison_claim, learned, verdict
from fa.experiments.reporting.equivalence import LEVEL
from fa.experiments.runs.profiles import MARGIN
from fa.experiments.runs.results import Results, final_accuracies
from fa.experiments.runs.study import OutDir, Seeds, Study
from fa.experiments.runs.variants import PAPER_RULES, VARIANTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "extra11_in_front_of_rules"
NO_RULES = "it judges FA in front of the paper's rules"
NO_ATTACK = "its claims are about the paper's attack"
F = 3
OTHERS = PAPER_RULES[1:]
"""The paper's rules without FA."""

IN_FRONT = {"": (), "equal norms, ": ("unit",), "FA's projection, ": ("unit", "subspace")}
"""Pre-aggregators by the beginning of a label."""

NORMS, PROJECTION = list(IN_FRONT)[1:]
FA = VARIANTS["fa"].label
ARMS: Arms = {
    f"{text}{VARIANTS[key].label}": (key, {"preaggregators": steps} if steps else {})
    for key in OTHERS
    for text, steps in IN_FRONT.items()
} | {FA: ("fa", {})}
"""Each rule alone, with equal norms and with the projection; and FA."""

SMALL = 0.1  # Share of the largest weight below which a weight counts as zero.
SPARSE = 0.5  # Least share of such weights in a sparse combination.


def study(profile: str, out: OutDir = None, seeds: Seeds = None, **overrides: Any) -> Study:
    """Create the study of Extra 11: FA's projection as a pre-aggregator of other rules.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: 2021, 2022 and 2023, and at "smoke" the profile's.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, with f = 3, for each of `ARMS`.

    Raises:
        ValueError: Unknown profile or setting, an invalid value, or empty `seeds`.
    """
    grid = arm_cases(ARMS, F, {}, several_seeds(profile))
    return make_extra(NAME, profile, grid, out, seeds, SHORT.get(profile), **overrides)


def small_weights(results: Results) -> DataFrame:
    """Return the share of honest workers in FA whose weight is below a tenth of the iteration's largest.

    Args:
        results: Results of this figure's study.

    Returns:
        Columns seed, iteration and share; no rows without a run of FA. Sizes of weights count, not their signs.
    """
    import pandas

    rows = [pandas.DataFrame({"seed": [], "iteration": [], "share": []}).astype({"seed": int, "iteration": int})]
    for cell in results.study.cells:
        if cell.case.label == FA:
            table = results.record(cell).workers()
            weights = table.pivot_table(index="iteration", columns="worker", values="weight").abs()
            share = weights.iloc[:, F:].lt(SMALL * weights.max(axis=1), axis=0).mean(axis=1)
            rows.append(pandas.DataFrame({"seed": cell.config.seed, "iteration": share.index, "share": share.values}))
    return pandas.concat(rows, ignore_index=True)


def draw(table: DataFrame, shares: DataFrame, title: str) -> Figure:
    """Draw the accuracies of every rule (left), and the share of small weights by iteration (right).

    Args:
        table: The curves, one row a point, with the columns label, seed, iteration and test_accuracy.
        shares: Shares of small weights in FA, as `small_weights` returns them.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure, with two panels.
    """
    figure = style.new_figure(11, 4.8)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    draw_dots(left, final_accuracies(table, "label", paired=False), arm_looks(ARMS), bold=(FA,))
    _draw_shares(right, shares)
    style.set_heading(figure, f"f = {F} Byzantine workers; {style.FA_FORMULATION}\n{title}")
    return figure


def _draw_shares(axes: Axes, shares: DataFrame) -> None:
    """Draw a line for each seed, with iterations grouped to about 40 points."""
    step = max(1, int(shares["iteration"].max()) // 40) if len(shares) else 1
    grouped = shares.assign(iteration=-(-shares["iteration"] // step) * step)
    for number, (_, rows) in enumerate(grouped.groupby("seed")):
        points = rows.groupby("iteration")["share"].mean()
        label = "FA, one line a seed" if number == 0 else None
        axes.plot(points.index, points, color=style.LOOKS["fa"].color, alpha=0.6, label=label)
    axes.axhline(SPARSE, color="black", linewidth=0.8, linestyle=":", label="least mean of a sparse combination")
    axes.set(xlabel="iteration", ylabel="honest weights below a tenth\nof the largest (share)", ylim=(0, 1.02))
    axes.legend(loc="upper right", fontsize=8)


def claims(table: DataFrame, shares: DataFrame, chance: float, margin: float = MARGIN) -> list[Claim]:
    """Judge C17 and C18, and whether the projection does more than equal norms alone.

    If rules are missing, C17 and the last statement can hold in part only. C18 needs FA only.

    Args:
        table: The curves, one row a point.
        shares: Rows of `small_weights`.
        chance: Accuracy of guessing.
        margin: Accuracies that differ by less are equal.

    Returns:
        The claims with their measurements and verdicts, one for each part that has finished runs.
    """
    final, single = final_accuracies(table, "label"), final_accuracies(table, "label", paired=False)
    testable = learned(final, chance)

    def compare(number: str, words: str, other: str, prefix: str) -> list[Claim]:
        names = [VARIANTS[key].label for key in OTHERS]
        labels = [name for name in names if {PROJECTION + name, prefix + name} <= final.keys()]
        leads = [Lead(one, final[PROJECTION + one], other, final[prefix + one], "projected") for one in labels]
        claim = comparison_claim(number, words, leads, testable, margin, LEVEL / len(OTHERS))
        complete = len(leads) == len(OTHERS) or claim.verdict == IN_PART
        return [claim if complete else replace(claim, verdict=MISSING)] if leads else []

    return [
        *compare(
            "C17",
            "significantly enhances the robustness of state-of-the-art Byzantine resilient aggregators",
            "alone",
            "",
        ),
        *([_sparsity_claim(shares, learned(single, chance))] if len(shares) else []),
        *compare("E11", "FA's projection protects a rule better than equal norms alone", "with equal norms", NORMS),
    ]


def _sparsity_claim(shares: DataFrame, testable: bool) -> Claim:
    mean_share = float(shares["share"].mean())
    by_seed = shares.groupby("seed")["share"].mean()
    return Claim(
        "C18",
        "the subspace gives a sparse linear combination of the gradients",
        f"honest weights below a tenth of the largest: share {mean_share:.3f} "
        f"(seeds {by_seed.min():.3f} to {by_seed.max():.3f}); threshold: {SPARSE:g}",
        verdict([mean_share >= SPARSE], testable),
    )
