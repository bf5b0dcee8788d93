"""Recipes: what is wrong in one is named; what one does is drawn once for each image; a built data set loads again."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fa.augment import warp
from fa.augment.recipes import Recipe, augment, augmented_dataset, load_augmented, read, write_augmented
from fa.cli import cli
from fa.data import MissingDataError, load
from fa.models import build as build_model
from fa.training import TrainConfig, train
from fa.training.setup import configured_attack, make_workers
from fa.training.worker import Worker

FOLDER = Path(__file__).parents[1] / "data_aug"
RECIPES = sorted(FOLDER.glob("*.toml"))
MNIST = load("mnist-mini")
LEVELS = (0.0, 0.1)


def some(count: int = 40) -> torch.Tensor:
    return MNIST.train_images[:count]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_is_read_and_acts(path: Path) -> None:
    recipe = read(path)
    assert Recipe.from_options(recipe.options) == recipe
    assert Recipe.from_options(json.loads(json.dumps(recipe.options))) == recipe
    made = augment(some(), recipe, 1)
    assert (made.dtype, made.shape) == (torch.uint8, some().shape)
    different = (made != some()).flatten(1).any(dim=1).float().mean()
    # Lotka-Volterra's short times leave many a digit as it was: it lies too near to the image's centre.
    assert different > (0.3 if path.stem == "lv_released" else 0.7)


def test_the_papers_schemes_have_recipes() -> None:
    stems = {path.stem for path in RECIPES}
    assert {"lv", "half", "onethird", "cat", "smooth_cat", "noise"} <= stems
    assert [read(FOLDER / f"{name}.toml").share for name in ("lv", "half", "onethird")] == [
        1,
        0.5,
        pytest.approx(1 / 3),
    ]


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_each_image_is_one_of_the_recipes_strengths_and_so_many_are_moved(share: float) -> None:
    recipe = Recipe(system="cat", t=(1, 2), share=share)
    made = augment(some(), recipe, 7)
    moved = {t: [torch.equal(a, b) for a, b in zip(made, warp(some(), "cat", t), strict=True)] for t in (1, 2)}
    still = [torch.equal(a, b) for a, b in zip(made, some(), strict=True)]
    assert sum(still) == 40 - 40 * share
    assert all(map(any, zip(still, *moved.values(), strict=True)))
    assert any(moved[1])
    assert any(moved[2])


def test_noise_of_varying_level_is_on_every_image() -> None:
    grey = torch.full((60, 1, 28, 28), 128, dtype=torch.uint8)
    deviations = augment(grey, Recipe(noise=(0.02, 0.1)), 7).float().flatten(1).std(dim=1) / 255
    large = deviations > 0.05
    assert 10 < large.sum() < 50
    assert torch.allclose(deviations, torch.where(large, 0.1, 0.02), rtol=0.1)


def test_the_seed_alone_decides_and_the_input_stays() -> None:
    recipe = Recipe(system="lotka_volterra", t=(0.005, 0.01), share=0.5, noise=LEVELS)
    before = some().clone()
    assert torch.equal(augment(some(), recipe, 3), augment(some(), recipe, 3))
    assert not torch.equal(augment(some(), recipe, 3), augment(some(), recipe, 4))
    assert torch.equal(some(), before)


def test_more_than_one_chunk_is_one_piece() -> None:
    images = MNIST.train_images[:2500]
    done: list[tuple[int, int]] = []
    made = augment(images, Recipe(system="cat", t=(1,)), 0, lambda *at: done.append(at))
    assert torch.equal(made, warp(images, "cat", 1))
    assert done == [(1000, 2500), (2000, 2500), (2500, 2500)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"noise": (float("inf"),)}, r"^noise must be .*inf"),
        ({"system": "cat", "t": (float("nan"),)}, r"^t must be .*nan"),
        ({"system": "cat", "t": (30.5,)}, r"^t must be .*30\.5"),
    ],
)
def test_a_recipe_of_python_values_is_checked_as_a_file_is(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**values)
    whole = Recipe(system="smooth_cat_map", t=(1,))
    assert whole == Recipe.from_options({"system": "smooth_cat_map", "t": [1]})


WRONG: list[tuple[str, str]] = [
    ('system = "cats"\nt = [1]', r"\bsystem must be .*'cats'.*'cat'"),
    ('sistem = "cat"', r"\bkey must be .*'sistem'.*'system'"),
    ('system = "cat"', r"\bt must be .*\bcat\b.*\(\)"),
    ('system = "cat"\nt = 1', r"\bt must be .*\b1\b"),
    ('system = "cat"\nt = [nan]', r"\bt must be .*\bnan\b"),
    ('system = "smooth_cat_map"\nt = [0.5]', r"\bt must be .*\b0\.5\b"),
    ('system = "rotation"\nt = [1]\nspeed = 1', r"\bkey must be .*\bsystem, .*, omega\b.*'speed'"),
    ('system = "rotation"\nt = [1]\nomega = "3"', r"\bomega must be .*'3'"),
    ("system = 3", r"\bsystem must be .*\b3\b"),
    ('system = "cat"\nt = [1]\nshare = 0', r"\bshare must be .*\b0\b.*\b1\b.*\b0\b"),
    ('system = "cat"\nt = [1]\nshare = 1.5', r"\bshare must be .*\b1\.5\b"),
    ('system = "cat"\nt = [1]\ninterpolation = "cubic"', r"\binterpolation must be .*\bnearest, bilinear\b.*'cubic'"),
    ("noise = [-0.1]", r"\bnoise must be .*-0\.1\b"),
    ("t = [1]", r"\bsystem must be .*\bt\b.*"),
    ("", r"\brecipe must be .*\bsystem\b.*\bnoise\b"),
    ("noise = [0.1", r"one\.toml: "),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_wrong_in_a_recipe_is_named_with_its_file(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert "one.toml" in str(error.value)


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(cli, ["augment", *map(str, arguments)])


def test_the_command_builds_a_data_set_that_loads_again(tmp_path: Path) -> None:
    done = run("half", "--out", tmp_path / "new" / "set", "--seed", 5)
    assert done.exit_code == 0, done.output
    made = load_augmented(tmp_path / "new" / "set")
    recipe = read(FOLDER / "half.toml")
    assert torch.equal(made.train_images, augment(MNIST.train_images, recipe, 5))
    for name in ("train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(made, name), getattr(MNIST, name))
    assert (made.classes, made.mean, made.std, made.crop_and_flip) == (10, MNIST.mean, MNIST.std, False)
    manifest = json.loads((tmp_path / "new" / "set" / "manifest.json").read_text())
    assert Recipe.from_options(manifest["recipe"]) == recipe
    assert (manifest["seed"], manifest["dataset"], manifest["dataset_checksum"]) == (5, "mnist-mini", MNIST.checksum)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["set"]
    again = run(FOLDER / "half.toml", "--out", tmp_path / "again", "--seed", 5)
    assert again.exit_code == 0
    assert load_augmented(tmp_path / "again").checksum == made.checksum == manifest["checksum"]


def test_a_run_trains_on_a_folder_that_was_written(tmp_path: Path) -> None:
    run("half", "--out", tmp_path / "set", "--seed", 5)
    short = {"workers": 3, "byzantine": 0, "iterations": 2, "batch": 4}
    written = train(TrainConfig(dataset=str(tmp_path / "set"), **short))
    assert written.checksum == load_augmented(tmp_path / "set").checksum
    assert written.curve[-1].train_loss != train(TrainConfig(**short)).curve[-1].train_loss


def test_a_damaged_set_is_not_loaded_and_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    out = write_augmented(Recipe(noise=(0.1,)), MNIST, tmp_path / "set", 0)
    with pytest.raises(ValueError, match=rf"^out must be .*{out}"):
        write_augmented(Recipe(noise=(0.1,)), MNIST, out, 0)
    images = np.load(out / "train_images.npy")
    images[0, 0, 0, 0] ^= 1
    np.save(out / "train_images.npy", images)
    with pytest.raises(MissingDataError, match=rf"{out}.*SHA-256"):
        load_augmented(out)
    (out / "test_labels.npy").unlink()
    with pytest.raises(MissingDataError, match=rf"{out}.*\btest_labels\.npy\b"):
        load_augmented(out)


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, _: int) -> None:
        if done >= 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_augmented(Recipe(noise=(0.1,)), MNIST, tmp_path / "set", 0, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_command_names_what_is_wrong(tmp_path: Path) -> None:
    missing = run("lvv", "--out", tmp_path / "set")
    assert isinstance(missing.exception, ValueError)
    assert re.search(r"^recipe must be .*'lvv'.*'lv'", str(missing.exception))
    assert isinstance(run(tmp_path / "no.toml", "--out", tmp_path / "set").exception, ValueError)
    assert list(tmp_path.iterdir()) == []


CAT = Recipe(system="cat", t=(1,), share=0.5)
ALONE = TrainConfig(workers=4, byzantine=2, rule="mean", attack="none", batch=6, iterations=2)
WITH_CAT = replace(ALONE, augmentation=CAT.options)


def test_without_augmentation_a_configuration_says_nothing_of_it() -> None:
    """Or every run that was finished before would be run again."""
    assert not {"augmentation", "augmented"} & json.loads(ALONE.to_json()).keys()
    for config in (ALONE, WITH_CAT, replace(WITH_CAT, augmented="all")):
        assert TrainConfig.from_json(config.to_json()) == config
    read_ = replace(ALONE, augmentation=read(FOLDER / "lv_released.toml").options)
    assert TrainConfig.from_json(read_.to_json()) == read_
    assert json.loads(read_.to_json())["augmentation"]["gamma"] == 1


@pytest.mark.parametrize(("augmented_", "ranks"), [("faulty", (0, 1)), ("all", (0, 1, 2, 3))])
def test_faulty_workers_or_all_draw_the_same_images_from_the_augmented_set(augmented_: str, ranks: Any) -> None:
    model = build_model("convnet", (1, 28, 28), 10, seed=0)
    row = torch.zeros(sum(p.numel() for p in model.parameters()))
    config = replace(WITH_CAT, augmented=augmented_)
    made = augmented_dataset(MNIST, CAT, config.seed)
    rows = dict.fromkeys(range(4), row)
    workers = make_workers(rows, model, MNIST, config, configured_attack(config))
    changed = 0
    for rank in range(4):
        clean, labels = Worker(rank, model, MNIST, ALONE, row).minibatch(1)
        mine, same = workers[rank].minibatch(1)
        other, _ = Worker(rank, model, made, ALONE, row).minibatch(1)
        assert torch.equal(mine, other if rank in ranks else clean)
        assert torch.equal(labels, same)
        changed += not torch.equal(mine, clean)
    assert changed == len(ranks)


def test_a_run_with_augmented_faulty_workers_steps_along_their_gradients() -> None:
    """Rank f and on send what they would without; the loss is theirs."""
    sent: dict[bool, torch.Tensor] = {}
    for given in (False, True):
        train(WITH_CAT if given else ALONE, progress=lambda now, given=given: sent.setdefault(given, now.G.clone()))
    assert torch.equal(sent[True][2:], sent[False][2:])
    assert (sent[True][:2] != sent[False][:2]).any(dim=1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augmentation": {"system": "cats", "t": (1,)}}, r"\bsystem must be .*'cats'"),
        ({"augmentation": {"sort": "cat"}}, r"\bkey must be .*'sort'"),
        ({"augmentation": CAT.options, "augmented": "some"}, r"^augmented must be .*\bfaulty, all\b.*'some'"),
        ({"augmented": "all"}, r"^augmented must be .*'faulty'.*'all'"),
        ({"augmentation": CAT.options, "attack": "random"}, r"^attack must be .*\bnone\b.*'random'"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(TrainConfig.from_json(json.dumps(json.loads(ALONE.to_json()) | settings)))


def test_train_takes_a_recipe_by_its_name(tmp_path: Path) -> None:
    arguments = "train --rule mean --attack none --augmentation cat --augmented all --workers 3 --byzantine 1 --batch 4"
    done = CliRunner().invoke(cli, [*arguments.split(), "--iterations", "1", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (Recipe.from_options(config["augmentation"]), config["augmented"]) == (read(FOLDER / "cat.toml"), "all")
