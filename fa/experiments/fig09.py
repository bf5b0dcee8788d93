"""Figure 9: FA with up to 60 workers, 14 of them faulty, on the MNIST CNN, and what the server's part costs."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from fa.experiments import style
from fa.experiments.claims import LEARNED, Claim, learned, mean, verdict
from fa.experiments.curves import draw_line, finish
from fa.experiments.own import sent
from fa.experiments.recording import record
from fa.experiments.study import Case, Place, Seeds, Study, last_points, make_study
from fa.rules import make_rule
from fa.timing import taken

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "fig09_scaling"
CROWDS = ((15, 3), (30, 6), (60, 12), (60, 14))  # p and f; the last is the text's largest f
ITERATIONS = {"smoke": (4, 4, 4), "quick": (120, 60, 30), "cpu": (625, 313, 157), "paper": (625, 313, 157)}
CALLS = 20  # of a rule that are timed
RULES = ("fa", "mean")


def study(profile: str, out: Place = None, seeds: Seeds = None, **given: Any) -> Study:
    """The runs of Figure 9; settings that are given, and not None, replace the profile's."""
    iterations = dict(zip((15, 30, 60), ITERATIONS.get(profile, (1, 1, 1)), strict=True))
    grid = [Case("fa", f, {"workers": p, "iterations": iterations[p]}) for p, f in CROWDS]
    own = {"dataset": "mnist", "model": "convnet"} if profile in ("cpu", "paper") else {}
    return make_study(NAME, profile, grid, out, seeds, own, **given)


def server_times(study: Study) -> DataFrame:
    """Milliseconds that a rule takes to aggregate the gradients of a run's first iteration: the median of CALLS.

    One row for each p, f and rule: FA, and the mean beside it. These are of the machine that draws.
    """
    import pandas

    rows = []
    for cell in {cell.case.columns["workers"]: cell for cell in study.cells}.values():
        G = record(cell.config, at=(1,))[1]
        for name in RULES:
            variant = style.VARIANTS[name]
            rule = make_rule(variant.rule, f=cell.config.rule_f, **dict(variant.options))
            rows.append({"workers": len(G), "n": G.shape[1], "rule": name, "milliseconds": _time(rule, G)})
    return pandas.DataFrame(rows)


def _time(rule: Any, G: Any) -> float:
    rule(G)  # compiles, where it must
    return 1000 * median(taken(lambda: rule(G)) for _ in range(CALLS))


def draw(table: DataFrame, times: DataFrame, title: str) -> Figure:
    """Left the curves, as in the paper; right, what an aggregation costs the server."""
    style.use()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    for (p, f), colour, marker in zip(CROWDS, style.ramp(len(CROWDS)), "osD^", strict=True):
        rows = table[(table["workers"] == p) & (table["f"] == f)]
        draw_line(left, rows, f"p = {p}, f = {f}", colour, marker)
    finish(left)
    left.legend(title="FA", loc="lower right")
    for name in RULES:
        look, rows = style.VARIANTS[name], times[times["rule"] == name]
        right.plot(rows["workers"], rows["milliseconds"], color=look.colour, marker=look.marker, label=look.label)
    right.set(xlabel="workers p", ylabel="one aggregation (ms)", ylim=(0, None), xticks=sorted(set(times["workers"])))
    right.legend(title=f"n = {times['n'].iloc[0]:,}")
    figure.suptitle(f"Faulty workers send {sent(table)}; {style.FA_FORMULATION}\n{title}", fontsize=10)
    return figure


def claims(table: DataFrame, times: DataFrame, chance: float) -> list[Claim]:
    """C10: whether FA learns at every size; with what an aggregation costs."""
    last = last_points(table).groupby(["workers", "f"])["test_accuracy"].apply(list)
    final = {(p, f): last[p, f] for p, f in CROWDS}
    costs = times[times["rule"] == "fa"].set_index("workers")["milliseconds"]
    measured = ", ".join(f"p = {p}, f = {f}: {mean(values):.3f}" for (p, f), values in final.items())
    spent = ", ".join(f"p = {p}: {cost:.1f} ms" for p, cost in costs.items())
    return [
        Claim(
            "C10",
            "FA is feasible for larger setups, with up to 60 workers and 14 faulty ones",
            f"final accuracy {measured}; one aggregation {spent}",
            verdict([mean(values) > LEARNED * chance for values in final.values()], learned(final, chance)),
        )
    ]
