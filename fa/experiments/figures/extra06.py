"""Extra 6: whether FA's subspace does anything beyond the mean of unit gradients, with steps of equal length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64

from fa.experiments.figures.equal_length import (
    ATTACKS,
    LENGTH,
    SEEDS_BY_PROFILE,
    compare,
    draw_differences,
    interval_caption,
    judge,
    subset_caption,
)
from fa.experiments.figures.extras_common import Arms, arm_cases, make_extra
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import Claim, verdict
from fa.experiments.reporting.equivalence import LEVEL
from fa.experiments.runs.profiles import for_profile
from fa.experiments.runs.recording import MIN_MINIBATCHES, watch
from fa.experiments.runs.study import Cell, OutDir, Seeds, Study
from fa.experiments.runs.variants import VARIANTS
from fa.gradients.gram import Gram
from fa.gradients.measurement import measure
from fa.rules import Rule, make_rule
from fa.training.config import TrainConfig
from fa.training.loop import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "extra06_subspace"
NO_RULES = "it compares FA with the mean of unit gradients"
NO_ATTACK = "its test is specified for four attacks"

RELEASED, FIVE, SPAN, CONTROL = "FA as released", "FA, five steps", "span of m random workers", "Mean of unit gradients"
_RANDOM_SPAN: dict[str, Any] = {"preaggregators": ("unit", "random_span")}
ARMS: Arms = {
    RELEASED: ("fa", {}),
    FIVE: ("fa_default", {}),
    CONTROL: ("mean_unit", {}),
    SPAN: ("mean_unit", _RANDOM_SPAN),
}
FA_ARMS = (RELEASED, FIVE)
"""The arms whose comparisons count in the correction for several tests."""

PAIRS = {arm: (arm, CONTROL) for arm in (*FA_ARMS, SPAN)}
"""The arms with a subspace, each against the mean of unit gradients."""

TEST_LEVEL = LEVEL / (len(FA_ARMS) * len(ATTACKS))
"""Level of the test that an arm helps, with Bonferroni's correction."""

FORMULATIONS = {RELEASED: "fa", FIVE: "fa_default", "FA as printed": "fa_printed"}
"""Formulations of FA whose directions are compared with the mean of unit gradients, and their variants."""

INDISTINGUISHABLE = 0.99  # Cosine from which no training run can distinguish two directions.

BLOCKS = 20  # Number of blocks of iterations in the figure's cosines.

_SPAN_LOOK = style.Look(SPAN, "black", "s", (1, 1))  # As in Figure 3.
LOOKS = {name: style.LOOKS[key] for name, key in FORMULATIONS.items()} | {SPAN: _SPAN_LOOK}
"""Looks of the arms and formulations by their names."""


def study(profile: str, out: OutDir = None, seeds: Seeds = None, **overrides: Any) -> Study:
    """Create the study of Extra 6: subspaces and the mean of unit gradients, in steps of equal length.

    The random span draws by the seed of its run.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: those of `SEEDS_BY_PROFILE`.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, for each of `ATTACKS` and `ARMS`. Its records are in the folder "records-many".

    Raises:
        ValueError: Unknown profile or setting, an invalid value, or empty `seeds`.
    """
    case_seeds = for_profile(SEEDS_BY_PROFILE, profile)
    grid = [case for attack, f in ATTACKS for case in arm_cases(ARMS, f, {"attack": attack}, case_seeds)]
    whole = make_extra(NAME, profile, grid, out, seeds, LENGTH, **overrides)
    return replace(whole, cells=tuple(_draw_by_seed(cell) for cell in whole.cells), records="records-many")


def _draw_by_seed(cell: Cell) -> Cell:
    """Let the random span differ between seeds, so that the interval over seeds covers its draws too."""
    if cell.case.label != SPAN:
        return cell
    options = {**cell.config.options, "seed": cell.config.seed}
    return replace(cell, config=replace(cell.config, rule_options=options))


def cosines(study: Study) -> DataFrame:
    """Compute the cosine of each formulation's direction with the mean of unit gradients, in every iteration.

    The gradients are those of one run of the released FA for each attack. Without a GPU, runs of a GPU are repeated on
    the CPU.

    Args:
        study: The study of this figure.

    Returns:
        One row for each attack, formulation and iteration; the random span is among the formulations.
    """
    import pandas

    first: dict[tuple[str, int], TrainConfig] = {}
    for cell in study.cells:
        if cell.case.label == RELEASED:
            first.setdefault((cell.config.attack, cell.config.byzantine), cell.config)
    columns = ["attack", "f", "formulation", "seed", "iteration", "cosine"]
    rows = []
    for config in first.values():
        device = config.device if torch.cuda.is_available() else "cpu"
        rows += watch(replace(config, device=device), partial(_compare, config, _rules(config)))[0]
    return pandas.DataFrame(rows, columns=columns)


def _rules(config: TrainConfig) -> dict[str, Rule]:
    rules = {name: VARIANTS[key].make_rule(config.rule_f) for name, key in FORMULATIONS.items()}
    return rules | {SPAN: make_rule("mean", f=config.rule_f, seed=config.seed, **_RANDOM_SPAN)}


def _compare(config: TrainConfig, rules: Mapping[str, Rule], progress: Progress) -> Iterator[dict[str, Any]]:
    """Yield the cosines of one iteration, unless a gradient has NaN or Inf."""
    gram, finite = measure(progress.G)
    if not finite.all():
        return
    about = {"attack": config.attack, "f": config.byzantine, "seed": config.seed, "iteration": progress.iteration}
    for name, rule in rules.items():
        yield about | {"formulation": name, "cosine": cosine_with_unit_mean(gram, _weights(rule, progress))}


def _weights(rule: Rule, progress: Progress) -> Float64[np.ndarray, " p"]:
    weights = rule.aggregate(progress.G, progress.iteration - 1).decision.weights
    assert weights is not None  # These rules weight gradients.
    return weights


def cosine_with_unit_mean(gram: Gram, weights: Float64[np.ndarray, " p"]) -> float:
    """Return the cosine of d = sum_i weights_i g_i with the mean of unit gradients; NaN if one of them is zero.

    Args:
        gram: Gram matrix of the gradients.
        weights: Weights (p,).

    Returns:
        The cosine, from -1 to 1.
    """
    on_units = weights * gram.norms
    products = gram.cosines @ np.stack([on_units, np.ones(gram.p)], axis=1)
    squares = np.array([on_units @ products[:, 0], products[:, 1].sum()])
    return float(on_units @ products[:, 1] / np.sqrt(squares.prod())) if squares.min() > 0 else float("nan")


def draw(table: DataFrame, cosines: DataFrame, title: str) -> Figure:
    """Draw paired differences with intervals for each attack (above), and cosines by iteration (below).

    Args:
        table: The curves, one row a point, with the columns label, attack, f, seed, iteration and test_accuracy.
        cosines: Cosines of directions with the mean of unit gradients, as `cosines` returns them.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure, with a column of two panels for each of `ATTACKS`.
    """
    figure = style.new_figure(13, 6.4)
    grid = figure.subplots(2, len(ATTACKS), sharey="row")
    draw_differences(grid[0], compare(table, PAIRS, TEST_LEVEL), {arm: LOOKS[arm] for arm in PAIRS})
    for axes, (attack, f) in zip(grid[1], ATTACKS, strict=True):
        _draw_cosines(axes, cosines[(cosines["attack"] == attack) & (cosines["f"] == f)])
    grid[1, 0].set_ylabel(
        f"cosine with the mean of unit gradients\n(median and range of blocks; line: {INDISTINGUISHABLE})"
    )
    names = {line.get_label(): line for axes in grid[1] for line in axes.lines if line.get_label() in LOOKS}
    figure.legend(names.values(), names.keys(), loc="outside lower center", ncols=len(names), frameon=False)
    style.set_heading(
        figure,
        f"Steps of equal length: each arm less the {CONTROL.lower()}, paired by seed{subset_caption(table)}\n"
        f"{interval_caption(TEST_LEVEL)}\n{title}",
    )
    return figure


def _draw_cosines(axes: Axes, cosines: DataFrame) -> None:
    """Draw the median of each block of iterations as a line, and its range as a band."""
    for name, look in LOOKS.items():
        rows = cosines[cosines["formulation"] == name]
        if len(rows):
            length = max(1, rows["iteration"].max() // BLOCKS)
            blocks = rows["cosine"].groupby((rows["iteration"] - 1) // length * length + 1)
            line: dict[str, Any] = {"color": look.color, "linestyle": look.linestyle, "linewidth": 1.2}
            axes.plot(blocks.median(), label=name, marker=look.marker, markersize=3, **line)
            axes.fill_between(blocks.min().index, blocks.min(), blocks.max(), color=look.color, alpha=0.08, lw=0)
    axes.axhline(INDISTINGUISHABLE, color="#555555", linewidth=0.6)
    axes.set(xlabel="iteration", ylim=(None, 1.02))


def claims(table: DataFrame, cosines: DataFrame, chance: float) -> list[Claim]:
    """Judge E6: whether directions can be distinguished, and whether each arm helps or is equivalent.

    Args:
        table: The curves, one row a point.
        cosines: Cosines of directions, as `cosines` returns them.
        chance: Accuracy of guessing.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    words = {arm: f"at equal length, {arm} is better than the mean of unit gradients" for arm in PAIRS}
    return [_cosine_claim(cosines), *judge("E6", words, table, compare(table, PAIRS, TEST_LEVEL), chance)]


def _cosine_claim(cosines: DataFrame) -> Claim:
    """Judge whether every formulation's direction is close to the mean of unit gradients throughout."""
    ours = cosines[cosines["formulation"].isin(FORMULATIONS)]
    least = ours.groupby(["formulation", "attack", "f"], sort=False)["cosine"].agg(["min", "median"])
    texts = [
        f"{name}, {ATTACKS[attack, int(f)]}: {row['min']:.3f} (median {row['median']:.3f})"
        for (name, attack, f), row in least.iterrows()
    ]
    words = f"each formulation's direction has a cosine above {INDISTINGUISHABLE:g} with the mean of unit gradients"
    holds = [bool(row["min"] > INDISTINGUISHABLE) for _, row in least.iterrows()]
    testable = cosines["iteration"].nunique() >= MIN_MINIBATCHES
    return Claim("E6", words, "least over iterations: " + "; ".join(texts), verdict(holds, testable))
