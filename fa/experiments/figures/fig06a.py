"""Figure 6a: three links that lose 10% of their packets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fa.experiments.reporting import style
from fa.experiments.reporting.claims import MISSING, NOT, Claim, comparison_verdict, lead, learned, verdict
from fa.experiments.reporting.curves import draw_curves, finish, line_options
from fa.experiments.reporting.style import FA_FORMULATION, LOOKS
from fa.experiments.reporting.time_to_accuracy import describe_races, fa_first, races
from fa.experiments.runs.profiles import MARGIN
from fa.experiments.runs.results import final_accuracies
from fa.experiments.runs.study import Case, OutDir, RuleNames, Seeds, Study, make_study
from fa.experiments.runs.user_rules import builtin_rows, register_rules, user_rules_in
from fa.experiments.runs.variants import OTHER_RULES, PAPER_RULES, PAPER_RULES_AND_MEAN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "fig06a_packet_loss"
NO_ATTACK = "its faults are links that lose packets"
F = 3
_SETTINGS = {"paper": {"iterations": 660}}


def study(profile: str, out: OutDir = None, seeds: Seeds = None, rules: RuleNames = None, **overrides: Any) -> Study:
    """Create the study of Figure 6a: three links (f = 3) that lose 10% of their packets.

    Args:
        profile: A key of `PROFILES`, which sets the size of the runs: "smoke", "quick", "cpu" or "paper".
        out: Folder of the figure and its records. None: as for `make_study`.
        seeds: Seeds of all runs. None: the profile's.
        rules: Names of the user's rules that are added, such as "FILE.py:NAME". None: no rules.
        **overrides: Settings of `TrainConfig` that replace all others, unless they are None.

    Returns:
        The study, with a case for each rule.

    Raises:
        ValueError: Unknown profile, rule or setting, an invalid value, or empty `seeds`.
    """
    settings = {"attack": "chunk_loss", **_SETTINGS.get(profile, {})}
    grid = [Case(key, F) for key in (*PAPER_RULES_AND_MEAN, *register_rules(rules))]
    return make_study(NAME, profile, grid, out, seeds, settings, **overrides)


def draw(table: DataFrame, title: str, links: DataFrame | None = None) -> Figure:
    """Draw accuracy by iteration under chunk loss, and by time under link loss.

    Args:
        table: The curves under chunk loss.
        title: Settings, for the figure's title.
        links: The curves over lossy links; see `load_or_measure`.

    Returns:
        The figure.
    """
    panels = [] if links is None else list(links.groupby("loss"))
    figure = style.new_figure(7 if not panels else 10.5, 4.2)
    left, *right = figure.subplots(1, 1 + len(panels), squeeze=False)[0]
    draw_curves(left, table, (*PAPER_RULES_AND_MEAN, *user_rules_in(table)))
    left.set_title(f"datagrams: 10% of three gradients\nlost, {title.partition(';')[0]}")
    figure.legend(*left.get_legend_handles_labels(), title="rule", loc="outside right center")
    for axes, (loss, rows) in zip(right, panels, strict=True):
        _draw_links(axes, rows)
        name = f"{loss:.0%} of packets lost on {rows['lossy'].iloc[0]} links" if loss else "no loss"
        axes.set_title(f"TCP, {name}\nMNIST CNN, {rows['workers'].iloc[0]} processes")
    unmeasured = "" if panels else "; TCP links were not measured here"
    style.set_heading(figure, f"f = 3 links lose 10% of their packets; {FA_FORMULATION}{unmeasured}\n{title}")
    return figure


def _draw_links(axes: Axes, links: DataFrame) -> None:
    variants = list(dict.fromkeys(links["variant"]))
    for place, key in enumerate(variants):
        curve = links[links["variant"] == key]
        axes.plot(curve["seconds"], curve["test_accuracy"], **line_options(LOOKS[key], 1 - place / len(variants)))
    finish(axes, "seconds")


def claims(table: DataFrame, chance: float, links: DataFrame | None = None, margin: float = MARGIN) -> list[Claim]:
    """Judge both parts of C6.

    If rules are missing, the first part can fail but not hold, and the second is not judged.

    Args:
        table: The curves, one row a point.
        chance: Accuracy of guessing.
        links: Curves over lossy links, whose times are added to the text.
        margin: Accuracies that differ by less are equal.

    Returns:
        The claims with their measurements and verdicts, one for each part; none until FA and another rule are
        finished with a common seed.
    """
    table = builtin_rows(table)
    final = final_accuracies(table, "variant", "f")
    if ("fa", F) not in final or not any((key, F) in final for key in OTHER_RULES):
        return []
    last = lead(final, F, "f")
    higher = comparison_verdict([last], learned(final, chance), margin=margin)
    complete = all((key, F) in final for key in PAPER_RULES)
    seeds = set.intersection(*(set(rows["seed"]) for _, rows in table.groupby("variant")))
    iterations = races(table[table["seed"].isin(seeds)], chance)
    return [
        Claim(
            "C6",
            "under 10% packet loss FA converges to a significantly higher accuracy than other aggregators",
            f"final accuracy {last}",
            higher if complete or higher == NOT else MISSING,
        ),
        Claim(
            "C6",
            "FA reaches a similar accuracy in fewer iterations than other aggregators",
            f"iterations to {describe_races(iterations, '{:.0f}')}{_slower(links)}",
            verdict(fa_first(iterations), bool(iterations)) if complete else MISSING,
        ),
    ]


def _slower(links: DataFrame | None) -> str:
    if links is None or not len(links):
        return ""
    # Measure between evaluations: the first iterations include the preparation of the server.
    curves = links[links["variant"] == "fa"].groupby("loss")[["seconds", "iteration"]]
    steps = curves.last() - curves.first()
    times = 1000 * steps["seconds"] / steps["iteration"]
    step_times = [f"{milliseconds:.0f} ms at {loss:.0%} loss" for loss, milliseconds in times.items()]
    return f"; over TCP, an iteration of the MNIST CNN takes {' and '.join(step_times)}"
