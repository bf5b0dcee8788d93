"""Drawings: texts stay within the figure, legends match what they name, and curves begin where their records do."""

import inspect
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text

from fa.experiments import figure_module
from fa.experiments.figures import fig03, fig04, fig06a, fig08
from fa.experiments.paths import figures_dir
from fa.experiments.reporting import run_plot, style
from fa.experiments.reporting.curves import draw_line, draw_panels, label_ends
from fa.experiments.runs.results import INITIAL
from fa.training import TrainConfig, train

LONG = "A title of many words that no figure of one panel could show in a single line, " * 3
COMMITTED = sorted(
    (path.parent.name, path.stem)
    for profile in ("cpu", "paper")
    for path in figures_dir(profile).glob("*.json")
    if not path.stem.startswith("theory")
)


def committed_drawing(profile: str, name: str) -> Figure:
    """Draw a committed figure from its tables."""
    folder, module = figures_dir(profile), figure_module(name)
    arguments: dict[str, Any] = {"title": json.loads((folder / f"{name}.json").read_text())["settings"], "chance": 0.1}
    arguments["table"] = pd.read_csv(folder / f"{name}.csv")
    for path in folder.glob(f"{name}.*.csv"):
        arguments[path.name.split(".")[1]] = pd.read_csv(path)
    if hasattr(module, "detection"):  # is drawn from the workers' records too
        workers = module.workers(module.study(profile).run(progress=False))
        arguments |= {"workers": workers, "detections": module.detection(workers)}
    return module.draw(**{name: arguments.get(name) for name in inspect.signature(module.draw).parameters})


def is_within_the_page(figure: Figure) -> bool:
    """Return whether no part of a drawing, texts and legends included, leaves the figure by more than a pixel."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = figure.get_tightbbox(canvas.get_renderer())
    width, height = figure.get_size_inches()
    pixel = 1 / figure.dpi
    return bool(drawn.x0 >= -pixel and drawn.y0 >= -pixel and drawn.x1 <= width + pixel and drawn.y1 <= height + pixel)


def curves(values: tuple[int, ...] = (5,), seeds: tuple[int, ...] = (1,)) -> pd.DataFrame:
    points = [
        {
            "variant": key,
            "label": key,
            "f": value,
            "seed": seed,
            "iteration": iteration,
            "test_accuracy": 0.1 * iteration,
        }
        for key in ("fa", "mean")
        for value in values
        for seed in seeds
        for iteration in (2, 4)
    ]
    return pd.DataFrame(points).assign(seconds=1.0)


@pytest.mark.parametrize(("profile", "name"), COMMITTED)
def test_every_text_of_a_committed_figure_lies_within_it(profile: str, name: str) -> None:
    assert is_within_the_page(committed_drawing(profile, name))


@pytest.mark.parametrize("values", [(5,), (5, 6), (5, 6, 7, 8, 9)])
def test_a_long_title_wraps_inside_any_number_of_panels(values: tuple[int, ...]) -> None:
    figure = draw_panels(curves(values), "f", "f", LONG)
    assert is_within_the_page(figure)
    assert figure.get_suptitle().split() == LONG.split()


@pytest.mark.parametrize("faulty", [(1,), (1, 3)])
def test_a_selection_of_figure_4_keeps_its_title_within_it(faulty: tuple[int, ...]) -> None:
    assert is_within_the_page(fig04.draw(curves(faulty), LONG))


@pytest.mark.parametrize(("initial", "first"), [({1: 0.1, 2: 0.3}, (0, 0.2)), ({1: 0.1}, (2, 0.2)), ({}, (2, 0.2))])
def test_a_curve_begins_at_iteration_0_where_all_seeds_have_its_accuracy(
    initial: dict[int, float], first: tuple[int, float]
) -> None:
    table = curves(seeds=(1, 2))
    table.attrs[INITIAL] = initial
    axes = style.new_figure(4, 3).subplots()
    draw_line(axes, table[table["variant"] == "fa"], style.Look("FA", "black", "o"))
    assert axes.lines[0].get_xydata()[0] == pytest.approx(first)
    assert len(axes.lines[0].get_xdata()) == 2 + (first[0] == 0)


def test_a_short_run_is_drawn_as_a_curve_from_iteration_0(tmp_path: Path) -> None:
    config = TrainConfig(rule="mean", workers=3, byzantine=1, iterations=4, batch=4, evaluate_every=2)
    run = train(config, out=tmp_path / "run")
    figure = run_plot.draw(run_plot.read(tmp_path / "run"))
    (axes,) = figure.findobj(lambda artist: isinstance(artist, Axes) and "accuracy" in artist.get_ylabel())
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [0, 2, 4]
    assert line.get_ydata()[0] == run.initial_accuracy


def test_the_initial_accuracy_is_recorded_and_depends_on_neither_rule_nor_resumption(tmp_path: Path) -> None:
    configs = [TrainConfig(rule=rule, workers=3, byzantine=1, iterations=2, batch=4) for rule in ("mean", "median")]
    runs = [train(config, checkpoint=tmp_path / config.rule) for config in configs]
    again = train(configs[0], checkpoint=tmp_path / "mean")  # Resumes from its last iteration.
    assert {run.initial_accuracy for run in (*runs, again)} == {runs[0].description()["initial_accuracy"]}


def test_the_legend_of_figure_3_has_the_histograms_looks() -> None:
    figure = committed_drawing("cpu", fig03.NAME)
    panel = figure.axes[0]
    drawn = [patch for patch in panel.patches if len(patch.get_xy()) > 4]
    named = [handle for handle in panel.get_legend().legend_handles if isinstance(handle, Patch)]
    assert [_area(patch) for patch in named] == [_area(patch) for patch in drawn]


def _area(patch: Patch) -> tuple[Any, ...]:
    return (patch.get_fill(), patch.get_facecolor() if patch.get_fill() else patch.get_edgecolor())


def test_every_panel_of_figure_6a_names_its_model_and_data() -> None:
    titles = [axes.get_title() for axes in committed_drawing("cpu", fig06a.NAME).axes]
    assert len(titles) == 3
    assert all("MNIST" in title or "CIFAR" in title for title in titles)


def test_coinciding_curves_differ_in_width_and_marker() -> None:
    lines = committed_drawing("cpu", fig06a.NAME).axes[0].lines
    assert len({line.get_linewidth() for line in lines}) == len({line.get_marker() for line in lines}) == len(lines)


def test_every_lambda_of_figure_8_is_named_beside_its_curve_in_its_color() -> None:
    axes = committed_drawing("cpu", fig08.NAME).axes[0]
    names = {text.get_text(): to_rgba(text.get_color()) for text in axes.texts}
    assert names == {line.get_label(): to_rgba(line.get_color()) for line in axes.lines}
    assert len(set(names.values())) == len(names) == len(fig08.LAMBDAS) + len(fig08.OTHERS)


def test_names_beside_coinciding_lines_do_not_overlap() -> None:
    figure = style.new_figure(6, 4)
    axes = figure.subplots()
    for number in range(6):
        axes.plot([0, 1], [0, 0], label=f"line {number}")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    label_ends(axes)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = sorted((Text.get_window_extent(text, canvas.get_renderer()) for text in axes.texts), key=lambda box: box.y0)
    assert all(upper.y0 >= lower.y1 - 1 for lower, upper in pairwise(boxes))


def test_a_heading_fits_the_figure_and_keeps_an_equation_and_a_colon_together() -> None:
    text = "not finished: seeds 2022, 2023; workers = 11, 13: Bulyan, Multi-Krum, Median, MeaMed, Phocas\nlr = 0.2: all"
    figure = style.new_figure(3.2, 2)
    style.set_heading(figure, text)
    lines = figure.get_suptitle().splitlines()
    assert len(lines) > 3
    assert " ".join(lines) == text.replace("\n", " ")
    assert "lr = 0.2: all" in lines  # a new line stays one
    assert not [line for line in lines if line.endswith((":", "=")) or line.startswith("=")]
    figure.canvas.draw()
    extent = figure._suptitle.get_window_extent()
    assert extent.x0 >= 0
    assert extent.x1 <= figure.bbox.width
