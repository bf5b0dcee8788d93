"""Extra 1: effect of FA's formulations, of the division by the norm, of m, the number of steps and lambda.

It also compares the subspace with the mean of gradients of equal norm, in several regimes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fa.experiments.figures.extras_common import MIN_GAIN, best_label, make_extra, seed_caption, several_seeds
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import Claim, Lead, comparison_verdict, learned, mean
from fa.experiments.reporting.equivalence import LEVEL
from fa.experiments.runs.profiles import MARGIN, for_profile
from fa.experiments.runs.results import final_accuracies, last_points
from fa.experiments.runs.study import Case, OutDir, Seeds, Study
from fa.experiments.runs.variants import OTHER_RULES, VARIANTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "extra01_what_makes_fa_work"
NO_RULES = "it varies FA's options"
NO_ATTACK = "it compares attacks for which its regimes were chosen"
F = 3
EQUAL = {"preaggregators": ("median_norm",)}
PAIRS = {
    "FA, as Algorithm 1": ("fa_printed", "fa_default"),
    **{VARIANTS[key].label: (key, key) for key in OTHER_RULES},
}
"""Variants of each rule on the gradients, and on gradients whose norms are set to their median."""

SINGLE_FORM = {"FA, as released": "fa", "Mean of unit gradients": "mean_unit"}  # Rules without a second form.
DEFAULT = {"m": 8, "a": 2.0, "max_iter": 5, "lam": 0.0}
SWEPT: dict[str, tuple[dict[str, Any], ...]] = {
    "m": (*({"m": m} for m in (1, 2, 4, 8, 15)), *({"m": m, "a": 1.0} for m in (1, 2, 8))),
    "max_iter": tuple({"max_iter": steps} for steps in (1, 2, 5, 100)),
    "lam": tuple({"lam": lam} for lam in (0.0, 1.0, 4.0, 15.0)),
}
"""FA's options, varied one at a time from DEFAULT; m also with a = 1, which gives principal components."""

NAMES = {"m": "m, columns of Y", "max_iter": "IRLS steps", "lam": r"$\lambda$"}
ATTACKS = {"random": "random in [0, 1)", "collude": "colluding"}
"""Attacks of the sweeps, and their names."""

REGIME_LABELS = {"random": "random", "random_honest_norm": "random, honest norm", "collude": "colluding"}
CONTROL = "Mean, equal norms"
SUBSPACES: dict[str, dict[str, Any]] = {"FA, m = 1, a = 1": {"m": 1, "a": 1.0}, "FA, m = 8, a = 2": {}}
_USUAL = (
    ("random", 1, {"lr": 0.2}),
    ("random", 2, {"lr": 0.2}),
    ("random_honest_norm", 3, {"lr": 0.2}),
    ("collude", 1, {"lr": 0.2}),
    ("collude", 4, {"lr": 0.05}),
)
REGIMES = {
    "smoke": _USUAL[:1],
    "quick": _USUAL,
    "cpu": (*_USUAL, ("collude", 4, {"lr": 0.05, "batch": 128, "iterations": 200})),
    "paper": _USUAL,
}
"""Where the subspace might help: an attack, f, and settings.

The first principal component is the honest workers' with few Byzantine workers, or if honest gradients agree. With a
large learning rate, the rest of the attack costs more.
"""


def study(profile: str, out: OutDir = None, seeds: Seeds = None, **overrides: Any) -> Study:
    """Create the study of Extra 1: formulations and options of FA, and the division by the norm.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: the profile's, and three seeds for the regimes except at "smoke".
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, with the cases of norms (f = 3), of options under two attacks (f = 3), and of `REGIMES`.

    Raises:
        ValueError: Unknown profile or setting, an invalid value, or empty `seeds`.
    """
    grid = [*_norms(), *_sweeps(), *_regimes(profile)]
    return make_extra(NAME, profile, grid, out, seeds, **overrides)


def _norms() -> list[Case]:
    """Return the cases with and without the division by the norm, which share their runs with Figure 4."""
    cases = [Case(key, F, label_override=name) for name, key in SINGLE_FORM.items()]
    for name, (off, on) in PAIRS.items():
        cases.append(Case(off, F, label_override=name))
        cases.append(Case(on, F, options={} if on == "fa_default" else EQUAL, label_override=equal(name)))
    return cases


def equal(name: str) -> str:
    """Return the label of a rule whose input gradients all have the median norm.

    Args:
        name: Label of the rule with unchanged gradients.

    Returns:
        The label.

    Example:
        >>> equal("Median")
        'Median, equal norms'
    """
    return f"{name}, equal norms"


def _sweeps() -> list[Case]:
    cases = []
    for attack in ATTACKS:
        setting = {"attack": attack}
        cases.append(Case("mean", F, setting, EQUAL, label_override=CONTROL))
        varied = (DEFAULT | changed for values in SWEPT.values() for changed in values)
        for options in {str(options): options for options in varied}.values():
            cases.append(Case("fa_default", F, setting, options, label_override="FA"))
    return cases


def _regimes(profile: str) -> list[Case]:
    seeds = several_seeds(profile)
    cases = []
    for attack, f, changes in for_profile(REGIMES, profile):
        settings = {"attack": attack, **changes}
        cases.append(Case("mean", f, settings, EQUAL, seeds, CONTROL))
        cases += [Case("fa_default", f, settings, options, seeds, name) for name, options in SUBSPACES.items()]
    return cases


def parts(table: DataFrame) -> tuple[DataFrame, DataFrame, DataFrame]:
    """Return the last points of the runs on norms, on options and on regimes.

    Runs of regimes have a learning rate of their own. Runs on norms have the profile's attack.

    Args:
        table: The curves, one row a point.

    Returns:
        The three tables, one row a run.
    """
    last = last_points(table)
    regimes = last["lr"].notna()
    norms = last["attack"].isna()
    return last[norms], last[~norms & ~regimes], last[regimes]


def swept(sweeps: DataFrame, attack: str, option: str, a: float = 2.0) -> dict[float, float]:
    """Return FA's final accuracy, the mean over seeds, by the values of one option.

    Args:
        sweeps: Last points of the sweeps.
        attack: The attack.
        option: The option; all others are those of DEFAULT.
        a: Inverse of the power in eq. 5.

    Returns:
        Accuracies by value.
    """
    return {value: mean(reached) for value, reached in _swept(sweeps, attack, option, a).items()}


def _swept(sweeps: DataFrame, attack: str, option: str, a: float = 2.0) -> dict[float, list[float]]:
    """Return FA's final accuracies in the order of the seeds, by the values of one option; see `swept`."""
    rows = sweeps[(sweeps["label"] == "FA") & (sweeps["attack"] == attack)].sort_values("seed", kind="stable")
    for name, value in (DEFAULT | {"a": a}).items():
        if name != option:
            rows = rows[rows[name] == value]
    return {float(value): group.tolist() for value, group in rows.groupby(option)["test_accuracy"]}


def control(sweeps: DataFrame, attack: str) -> float:
    """Return the control's final accuracy under an attack, the mean over seeds.

    Args:
        sweeps: Last points of the sweeps.
        attack: The attack.

    Returns:
        The accuracy.
    """
    rows = sweeps[(sweeps["label"] == CONTROL) & (sweeps["attack"] == attack)]
    return float(rows["test_accuracy"].mean())


def leads(regimes: DataFrame) -> list[Lead]:
    """Compare the best of SUBSPACES with the control in each regime, with one difference per seed.

    Args:
        regimes: Last points of the runs on regimes.

    Returns:
        One lead for each regime.
    """
    compared = []
    for name, rows in by_regime(regimes).items():
        reached = final_accuracies(rows, "label")
        ours = best_label(reached, SUBSPACES)
        compared.append(Lead(name, reached[ours], CONTROL, reached[CONTROL], ours))
    return compared


def by_regime(regimes: DataFrame) -> dict[str, DataFrame]:
    """Split the runs on regimes by regime.

    Args:
        regimes: Last points of the runs on regimes, with the columns attack, f and lr, and batch if it varies.

    Returns:
        Rows by name, such as "random, f = 1, lr = 0.2", in the order of the table.
    """
    sized = [name for name in ("batch",) if name in regimes]
    groups = regimes.groupby(["attack", "f", "lr", *sized], sort=False, dropna=False)
    return {_regime(attack, int(f), *rest): rows for (attack, f, *rest), rows in groups}


def _regime(attack: str, f: int, lr: float, batch: float = float("nan")) -> str:
    size = "" if batch != batch else f", B = {batch:g}"
    return f"{REGIME_LABELS[attack]}, f = {f}, lr = {lr:g}{size}"


def draw(table: DataFrame, title: str) -> Figure:
    """Draw the division by the norm and the regimes (above); m, the number of steps and lambda (below).

    Args:
        table: The curves, one row a point, with the columns label, attack, f, lr, a column for each
            option in `DEFAULT`, seed, iteration and test_accuracy.
        title: Settings, for the figure's heading; see `Study.title`.

    Returns:
        The figure, with five panels.
    """
    norms, sweeps, regimes = parts(table)
    figure = style.new_figure(13, 8.4)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.1, 1))
    above, below = halves
    left, right = above.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_norms(left, final_accuracies(norms, "label", paired=False), seed_caption(norms))
    _draw_regimes(right, by_regime(regimes), seed_caption(regimes))
    below.suptitle(f"FA's options; {seed_caption(sweeps)}", fontsize=10)
    panels = below.subplots(1, len(SWEPT), sharey=True)
    for axes, option in zip(panels, SWEPT, strict=True):
        _draw_sweep(axes, sweeps, option)
    panels[0].set(ylabel="test accuracy (fraction)", ylim=(0, 1))
    lines = panels[0].get_legend_handles_labels()
    panels[-1].legend(*lines, title=f"f = {F}, attack", loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=8)
    style.set_heading(figure, f"What makes FA work\n{title}")
    return figure


def _draw_norms(axes: Axes, final: Mapping[str, Sequence[float]], seeds: str) -> None:
    names = [*PAIRS, *SINGLE_FORM]
    equalled, unit = style.sequential_colors(2)
    for place, name in enumerate(names):
        if name in SINGLE_FORM:
            axes.scatter(mean(final[name]), place, s=36, color=unit, marker="D", label="norm 1")
            continue
        off, on = mean(final[name]), mean(final[equal(name)])
        axes.plot([off, on], [place, place], color="#bbbbbb", zorder=1)
        axes.scatter(off, place, s=36, facecolors="none", edgecolors="#555555", label="unchanged")
        axes.scatter(on, place, s=36, color=equalled, marker="s", label="norms set to their median")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="test accuracy (fraction)", xlim=(0, 1))
    axes.set_title(f"f = {F}, random in [0, 1): effect of the norm; {seeds}")
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.legend(once.values(), once.keys(), title="gradients", loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=8)


def _draw_regimes(axes: Axes, regimes: Mapping[str, DataFrame], seeds: str) -> None:
    ours = style.LOOKS["fa_default"]
    one, eight = SUBSPACES
    looks = {CONTROL: style.LOOKS["mean_unit"], one: replace(ours, marker="d"), eight: ours}
    for place, rows in enumerate(regimes.values()):
        for shift, (name, look) in zip((-0.22, 0, 0.22), looks.items(), strict=True):
            reached = final_accuracies(rows, "label", paired=False)[name]
            label = None if place else name
            axes.plot(reached, [place + shift] * len(reached), look.marker, color=look.color, alpha=0.6, label=label)
            axes.plot(mean(reached), place + shift, "|", color=look.color, markersize=14)
    axes.set_yticks(range(len(regimes)), list(regimes))
    axes.invert_yaxis()
    axes.set(xlabel="test accuracy (fraction); bar: mean over seeds", xlim=(0, 1))
    axes.set_title(f"where the subspace might help; {seeds}")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=8)


def _draw_sweep(axes: Axes, sweeps: DataFrame, option: str) -> None:
    for (attack, label), color, marker in zip(
        ATTACKS.items(), style.sequential_colors(len(ATTACKS)), "os", strict=True
    ):
        for a, dashes in ((2.0, "-"), (1.0, ":")):
            points = swept(sweeps, attack, option, a)
            places = [ticks(option).index(value) for value in points]
            if len(points) > 1:
                line: dict[str, Any] = {"color": color, "marker": marker, "linestyle": dashes}
                axes.plot(places, list(points.values()), label=f"{label}, FA, a = {a:g}", **line)
        axes.axhline(control(sweeps, attack), color=color, linestyle=(0, (5, 3)), label=f"{label}, {CONTROL}")
    axes.set_xticks(range(len(ticks(option))), [f"{value:g}" for value in ticks(option)])
    axes.set(xlabel=NAMES[option])


def ticks(option: str) -> list[float]:
    """Return the values of an option in the sweeps, for the ticks of its axis.

    Args:
        option: A key of `SWEPT`: "m", "max_iter" or "lam".

    Returns:
        The distinct values in ascending order.

    Example:
        >>> ticks("lam")
        [0.0, 1.0, 4.0, 15.0]
    """
    return sorted({float(values[option]) for values in SWEPT[option]})


def claims(table: DataFrame, chance: float, margin: float = MARGIN) -> list[Claim]:
    """Judge E1: the effect of equal norms on each rule, the subspace against equal norms alone, and FA's options.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.
        margin: Accuracies that differ by less are equal.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    norms, sweeps, regimes = parts(table)
    final = final_accuracies(norms, "label")
    gains = [Lead(f"f = {F}", final[equal(name)], name, final[name], equal(name)) for name in PAIRS]
    compared = leads(regimes)
    level = LEVEL / (len(compared) * len(SUBSPACES))  # Bonferroni correction: one subspace in one regime is enough.
    decisive = max(compared, key=lambda lead: (lead.better(margin, level), lead.difference))
    moves = {(attack, option): _best_move(sweeps, attack, option) for attack in ATTACKS for option in SWEPT}
    alternatives = max(len(ticks(option)) for option in SWEPT) - 1
    testable = {
        part: learned(final_accuracies(rows, "label", paired=False), chance)
        for part, rows in (("norms", norms), ("sweeps", sweeps), ("regimes", regimes))
    }
    return [
        Claim(
            "E1",
            "setting all norms to their median improves every rule",
            f"f = {F}, random: "
            + ", ".join(f"{lead.other} {lead.difference:+.3f}" for lead in gains)
            + f"; threshold: {MIN_GAIN:g}",
            comparison_verdict(gains, testable["norms"], margin=MIN_GAIN),
        ),
        Claim(
            "E1",
            "in some regime the subspace is better than the mean of gradients of equal norm",
            f"{len(compared)} regimes and {len(SUBSPACES)} subspaces, p < {level:g} required: "
            + "; ".join(f"{lead.describe()}, lead {lead.difference_text}" for lead in compared),
            comparison_verdict([decisive], testable["regimes"] and len(decisive.accuracies) > 1, level, margin),
        ),
        Claim(
            "E1",
            "FA's options matter: another m, more steps or lambda > 0 is better than the default by more than"
            f" {MIN_GAIN:g}",
            "; ".join(f"{attack}, {option}: {text}" for (attack, option), (_, text) in moves.items()),
            comparison_verdict(
                [lead for lead, _ in moves.values()], testable["sweeps"], LEVEL / alternatives, margin=MIN_GAIN
            ),
        ),
    ]


def _best_move(sweeps: DataFrame, attack: str, option: str) -> tuple[Lead, str]:
    """Return the lead of the best other value of an option over the default, and the accuracies of all values."""
    points, default = _swept(sweeps, attack, option), float(DEFAULT[option])
    text = ", ".join(f"{value:g} {mean(reached):.3f}" for value, reached in points.items())
    best = max((value for value in points if value != default), key=lambda value: mean(points[value]))
    return Lead(attack, points[best], f"{option} = {default:g}", points[default], f"{option} = {best:g}"), text
