"""Figure 10: wall-clock time with worker processes: to an accuracy, of an epoch, and of all iterations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from fa.data import load
from fa.experiments.measurements.cost import svd_steps
from fa.experiments.reporting import style
from fa.experiments.reporting.claims import NOT, Claim, comparison_verdict, lead, learned, verdict
from fa.experiments.reporting.curves import finish, line_options, with_initial
from fa.experiments.reporting.style import looks
from fa.experiments.reporting.time_to_accuracy import describe_races, fa_first, races, targets
from fa.experiments.runs.profiles import MARGIN, for_profile
from fa.experiments.runs.recording import record
from fa.experiments.runs.results import Results, final_accuracies, last_points
from fa.experiments.runs.study import Case, OutDir, RuleNames, Seeds, Study, make_study
from fa.experiments.runs.user_rules import attack_heading, builtin_rows, label, register_rules, user_rules_in
from fa.experiments.runs.variants import PAPER_RULES, PAPER_RULES_AND_MEAN
from fa.rules import make_rule
from fa.utils.timing import call_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "fig10_wall_clock"
F_BY_PROFILE = {"smoke": 1, "quick": 3, "cpu": 3, "paper": 3}
TIMED_CALLS = 10  # Number of timed calls per method.
MIN_COST_RATIO = 1.1  # Least ratio of two measured times that counts.
PHASES = {
    "compute": "the slowest worker's gradient",
    "network": "network and waiting",
    "aggregation": "aggregation",
    "update": "update",
}
_SETTINGS = {"smoke": {"workers": 7}}


def study(profile: str, out: OutDir = None, seeds: Seeds = None, rules: RuleNames = None, **overrides: Any) -> Study:
    """Create the study of Figure 10: wall-clock time with workers that are processes on the CPU.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: the profile's.
        rules: Names of the user's rules that are added, such as "FILE.py:NAME". None: no rules.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None. `device` is ignored.

    Returns:
        The study, with a case for each rule, at f = 3 (1 at "smoke").

    Raises:
        ValueError: Unknown profile, rule or setting, an invalid value, or empty `seeds`.
    """
    grid = [Case(key, for_profile(F_BY_PROFILE, profile)) for key in (*PAPER_RULES_AND_MEAN, *register_rules(rules))]
    study = make_study(NAME, profile, grid, out, seeds, _SETTINGS.get(profile), **overrides | {"device": None})
    return replace(study, worker_processes=True)


def iteration_times(results: Results) -> DataFrame:
    """Return one row per run: seconds of an iteration by `PHASES`, and seconds of an epoch.

    Args:
        results: Results of this figure's study.

    Returns:
        Columns variant, seed, those of `PHASES`, and epoch.
    """
    import pandas

    rows = []
    for cell in results.study.cells:
        phases = results.record(cell).description["seconds_of"]
        seconds = {phase: total / cell.config.iterations for phase, total in phases.items()}
        gather, compute, aggregate, update = (seconds[part] for part in ("gather", "compute", "aggregate", "update"))
        gram = seconds.get("gram", 0.0)  # Belongs to the aggregation, but runs while others compute.
        network = max(0.0, gather - compute - gram)
        split = {"compute": compute, "network": network, "aggregation": gram + aggregate, "update": update}
        epoch = cell.config.epoch_length(len(load(cell.config.dataset).train_labels)) * (gather + aggregate + update)
        rows.append({"variant": cell.variant, "seed": cell.config.seed, **split, "epoch": epoch})
    return pandas.DataFrame(rows)


def aggregation_times(study: Study) -> DataFrame:
    """Measure one aggregation of the first gradients of FA's run, as the least of TIMED_CALLS in milliseconds.

    The methods are FA, and plain torch on the n x p matrix with one SVD (released code) or five (paper).

    Args:
        study: The study of this figure.

    Returns:
        Columns method, milliseconds, workers and n.
    """
    import pandas

    config = next(cell.config for cell in study.cells if cell.variant == "fa")
    options: dict[str, Any] = config.options
    G = record(config, at=(1,))[1]
    workers = [row[None] for row in G]
    works: dict[str, Callable[[], object]] = {
        "FA": partial(make_rule("fa", **options), G),
        "FA by 1 SVD": partial(svd_steps, workers, steps=1),
        "FA by 5 SVDs": partial(svd_steps, workers, steps=5),
    }
    milliseconds = {name: 1000 * min(call_seconds(work, TIMED_CALLS)) for name, work in works.items()}
    table = pandas.DataFrame(milliseconds.items(), columns=["method", "milliseconds"])
    return table.assign(workers=len(G), n=G.shape[1])


def draw(table: DataFrame, times: DataFrame, costs: DataFrame, title: str, chance: float) -> Figure:
    """Draw (a) accuracy by seconds, (b) an epoch, (c) the ends of all runs, (d) the time of an aggregation.

    Args:
        table: The curves, one row a point.
        times: Seconds by phase; see `iteration_times`.
        costs: Milliseconds of one aggregation; see `aggregation_times`.
        title: Settings, for the figure's title.
        chance: Accuracy of guessing.

    Returns:
        The figure.
    """
    figure = style.new_figure(9.5, 8.4)
    (a, b), (c, d) = figure.subplots(2, 2)
    _draw_curves(a, table, targets(table, chance))
    _draw_epochs(b, times)
    _draw_ends(c, table)
    _draw_aggregations(d, times, costs)
    figure.legend(*a.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    heading = f"Workers are processes; f = {table['f'].iloc[0]} of them send {attack_heading(table)}"
    style.set_heading(figure, f"{heading}; {style.FA_FORMULATION}\n{title}")
    return figure


def _draw_curves(axes: Axes, table: DataFrame, aims: Sequence[float]) -> None:
    variants = looks(user_rules_in(table))
    keys = (*PAPER_RULES_AND_MEAN, *user_rules_in(table))
    for place, key in enumerate(keys):
        rows = with_initial(table[table["variant"] == key])
        curve = rows.groupby("iteration")[["seconds", "test_accuracy"]].mean()
        line = line_options(variants[key], 1 - place / len(keys))
        axes.plot(*curve.to_numpy().T, markevery=max(1, len(curve) // 8), **line)
    for number, accuracy in enumerate(aims):
        name = "" if number else "target accuracy"
        axes.axhline(accuracy, color="#222222", linewidth=1, linestyle=":", label=name)
    finish(axes, "seconds")
    axes.set_title("(a) time to accuracy")


def _draw_epochs(axes: Axes, times: DataFrame) -> None:
    means = times.groupby("variant", sort=False).mean(numeric_only=True)
    total = means[list(PHASES)].sum(axis=1)
    start = total * 0
    for (part, what), color in zip(PHASES.items(), style.sequential_colors(len(PHASES))[::-1], strict=True):
        seconds = means[part] / total * means["epoch"]
        axes.barh([label(key) for key in means.index], seconds, left=start, color=color, label=what)
        start += seconds
    axes.set(title="(b) an epoch", xlabel="seconds")
    axes.invert_yaxis()
    axes.legend(fontsize=8, loc="upper right", bbox_to_anchor=(1, -0.14), ncols=2, frameon=False)


def _draw_ends(axes: Axes, table: DataFrame) -> None:
    ends = last_points(table).groupby("variant", sort=False)[["seconds", "test_accuracy"]].mean()
    variants = looks(ends.index)
    for key, (seconds, accuracy) in ends.iterrows():
        look = variants[key]
        axes.scatter(seconds, accuracy, color=look.color, marker=look.marker, s=60, label=look.label)
    finish(axes, "seconds")
    axes.set_title("(c) all iterations finished")
    axes.set_xlim(0, 1.08 * ends["seconds"].max())


def _draw_aggregations(axes: Axes, times: DataFrame, costs: DataFrame) -> None:
    means = 1000 * times.groupby("variant", sort=False)["aggregation"].mean()
    ours = style.LOOKS["fa"]
    variants = looks(means.index)
    dots = [(variants[key].label, value, variants[key], "full") for key, value in means.items()]
    dots += [(f"{row.method}*", row.milliseconds, ours, "none") for row in costs.itertuples()]
    for place, (_, value, look, fill) in enumerate(dots):
        axes.plot(value, place, look.marker, color=look.color, markersize=7, fillstyle=fill)
        text = style.three_digits(value)
        axes.annotate(text, (value, place), (7, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(dots)), [name for name, *_ in dots])
    axes.set(
        title="(d) the server's aggregation",
        xlabel=f"milliseconds (n = {costs['n'].iloc[0]:,})\n* outside of training",
        xscale="log",
    )
    axes.set_xlim(right=4 * max(value for _, value, *_ in dots))
    axes.invert_yaxis()


def claims(table: DataFrame, times: DataFrame, costs: DataFrame, chance: float, margin: float = MARGIN) -> list[Claim]:
    """Judge the first three parts of C11, and C12.

    An iteration transfers 8 p n bytes: each worker receives and sends n coordinates of four bytes.

    Args:
        table: The curves, one row a point.
        times: Seconds of an iteration by phase, as `iteration_times` returns them.
        costs: Milliseconds of one aggregation, as `aggregation_times` returns them.
        chance: Accuracy of guessing.
        margin: Accuracies that differ by less are equal.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    table, times = builtin_rows(table), builtin_rows(times)
    final = final_accuracies(table, "variant", "f")
    testable = learned(final, chance)
    (f,) = set(table["f"])
    final_lead, seconds, iterations = lead(final, f, "f"), races(table, chance, "seconds"), races(table, chance)
    first, better = (
        bool(iterations) and all(fa_first(iterations)),
        comparison_verdict([final_lead], testable, margin=margin),
    )
    cost = {key: 1000 * value for key, value in times.groupby("variant", sort=False)["aggregation"].mean().items()}
    costlier = [cost["fa"] > MIN_COST_RATIO * cost[key] for key in PAPER_RULES if key != "fa"]
    by_rule = ", ".join(f"{label(key)} {value:.1f} ms" for key, value in sorted(cost.items(), key=itemgetter(1)))
    svd = ", ".join(f"{row.method} {row.milliseconds:.1f} ms" for row in costs.itertuples())
    megabytes = 8 * costs["workers"].iloc[0] * costs["n"].iloc[0] / 1e6
    return [
        Claim(
            "C11",
            "the iteration complexity of FA is higher",
            f"one aggregation during training: {by_rule}; outside of training: {svd}",
            verdict(costlier),
        ),
        Claim(
            "C11",
            "higher utility of each iteration, as reflected in time to accuracy",
            f"time to {describe_races(seconds, '{:.1f} s')}; threshold: {MIN_COST_RATIO:g} times FA's time",
            verdict(fa_first(seconds, MIN_COST_RATIO), bool(seconds)),
        ),
        Claim(
            "C11",
            "given more time FA converges to a better state (all iterations finished)",
            f"final accuracy {final_lead}",
            better,
        ),
        Claim(
            "C12",
            "simultaneous improvements in communication efficiency and accuracy",
            f"megabytes ({megabytes:.2f} an iteration) to {describe_races(iterations, '{:.1f}', megabytes)}; final"
            f" accuracy {final_lead}",
            better if first else verdict([False], testable and (bool(iterations) or better == NOT)),
        ),
    ]
