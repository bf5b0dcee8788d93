"""Figure 7's cases, its verdicts on made-up runs, and the pictures of the augmentation."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from fa.augment.recipes import Recipe, read
from fa.data import load
from fa.experiments.figures import fig07
from fa.experiments.paths import recipe_path
from fa.experiments.reporting import augmented_images
from fa.experiments.reporting.claims import HOLDS, IN_PART, NOT, UNTESTABLE
from fa.experiments.runs.variants import PAPER_RULES_AND_MEAN

PATHS = sorted((Path(__file__).parents[1] / "data_aug").glob("*.toml"))
CURVES = (*PAPER_RULES_AND_MEAN, fig07.CONTROL)


def curves(of: dict[str, list[float]]) -> pd.DataFrame:
    """The same curves of every scheme; rules that are not named stay at 0.5."""
    rows = []
    for scheme in fig07.SCHEMES:
        for rule in CURVES:
            for epoch, accuracy in enumerate(of.get(rule, [0.5] * 4), start=1):
                about = {
                    "variant": rule,
                    "label": rule,
                    "scheme": scheme,
                    "seed": 1,
                    "iteration": epoch * 10,
                    "epoch": epoch,
                }
                rows.append(about | {"test_accuracy": accuracy})
    return pd.DataFrame(rows)


def values(clean: float, augmented: float) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"scheme": scheme, "iteration": i, "worker": w, "value": augmented if w < 3 else clean, "augmented": w < 3}
            for scheme in fig07.SCHEMES
            for i in (1, 2)
            for w in range(5)
        ]
    )


def verdicts(of: dict[str, list[float]], gap: float = 0.2) -> list[str]:
    return [claim.verdict for claim in fig07.claims(curves(of), values(0.6 + gap, 0.6), chance=0.1)]


def test_the_cases_are_eight_rules_and_a_control_under_five_recipes_whose_faulty_workers_train_honestly() -> None:
    study = fig07.study("quick")
    assert len(study.cells) == len(study.configs) == 45
    assert not study.skipped
    assert {cell.config.attack for cell in study.cells} == {"none"}
    assert {cell.config.augmented for cell in study.cells} == {"faulty"}
    recipes = {Recipe.from_options(cell.config.augmentation) for cell in study.cells}
    assert recipes == {read(recipe_path(name)) for name in fig07.SCHEMES}
    assert fig07.study("paper").configs[0].iterations == 800


@pytest.mark.parametrize(
    ("of", "gap", "expected"),
    [
        ({"fa": [0.5, 0.6, 0.7, 0.8]}, 0.2, [HOLDS, UNTESTABLE, HOLDS]),  # the others do not fall either
        ({"fa": [0.5, 0.6, 0.7, 0.5], "median": [0.5, 0.8, 0.8, 0.6]}, 0.0, [NOT, UNTESTABLE, NOT]),
        ({key: [0.15] * 4 for key in CURVES}, 0.2, [UNTESTABLE] * 3),
    ],
)
def test_verdicts(of: dict[str, list[float]], gap: float, expected: list[str]) -> None:
    assert verdicts(of, gap) == expected


def test_a_rule_is_more_stable_when_its_curve_falls_less() -> None:
    rough = {key: [0.5, 0.7, 0.4, 0.8] for key in CURVES}
    assert verdicts(rough | {"fa": [0.5, 0.6, 0.55, 0.8]})[1] == HOLDS
    assert verdicts(rough | {"fa": [0.5, 0.7, 0.3, 0.8]})[1] == NOT
    assert verdicts(rough | {"fa": [0.5, 0.7, 0.415, 0.8]})[1] == NOT  # 0.285 for 0.3 is no difference
    assert verdicts(rough | {"fa": [0.5, 0.6, 0.55, 0.8], "mean": [0.1] * 4})[1] == HOLDS  # that learns nothing
    assert verdicts(rough | {"fa": [0.5, 0.6, 0.65, 0.8], "median": [0.5, 0.6, 0.7, 0.8]})[1] == UNTESTABLE
    assert verdicts(rough | {"fa": [0.1] * 4})[1] == UNTESTABLE  # FA learned nothing, and has nothing to lose
    assert verdicts({rule: curve[:2] for rule, curve in rough.items()})[1] == UNTESTABLE


def test_a_lead_in_some_of_the_schemes_is_one_in_part() -> None:
    table = curves({"fa": [0.5, 0.6, 0.7, 0.8]})
    table.loc[(table["variant"] == "median") & (table["scheme"] == "cat"), "test_accuracy"] = 0.9
    assert fig07.claims(table, values(0.8, 0.6), chance=0.1)[0].verdict == IN_PART


def test_the_figure_has_two_panels_for_each_scheme() -> None:
    figure = fig07.draw(curves({}), values(0.8, 0.6), "title")
    panels = [axes for axes in figure.axes if axes.lines]
    assert [len(axes.lines) for axes in panels] == [9] * 5 + [2] * 5
    lines = panels[5].lines
    assert [float(line.get_ydata()[0]) for line in lines] == [pytest.approx(0.8), pytest.approx(0.6)]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_each_recipe_has_its_grid(path: Path) -> None:
    """In data_aug, as a picture, and drawn with a column for each strength that is shown."""
    assert path.with_suffix(".png").stat().st_size < 200_000
    its: Recipe = read(path)
    images = load("mnist-mini").train_images[:2]
    columns = 1 + min(len(its.t), augmented_images.STRENGTHS) + sum(level > 0 for level in its.noise)
    assert len(augmented_images.samples(its, images, 0).axes) == 3 * columns


def test_displacements_of_a_map_that_is_known() -> None:
    images = torch.randint(1, 256, (3, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made: dict[str, Any] = {"back": Recipe(system="cat", t=(3,)), "once": Recipe(system="cat", t=(1,))}
    table = augmented_images.displacements(made, images)
    assert table["mean distance"].tolist() == pytest.approx([0, 3 / 4 * 1.0 + (2**0.5 - 1) / 4])
    assert table["black"].tolist() == [0, 0]
    assert table["images unchanged"].tolist() == [1, 0]


def test_values_are_spread_evenly() -> None:
    assert augmented_images.evenly(range(1, 11), 5) == [1, 3, 5, 8, 10]
    assert augmented_images.evenly((1.0, 2.0), 5) == [1.0, 2.0]
    assert augmented_images.evenly((), 5) == []
