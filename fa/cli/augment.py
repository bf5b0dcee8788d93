"""`fa augment`: a data set whose training images are augmented by a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from fa.cli.data import root_option
from fa.cli.paths import UserPath
from fa.utils.progress_bar import reporter


@click.command()
@click.argument("recipe")
@click.option("--dataset", default="mnist-mini", show_default=True, help="Data set to augment.")
@click.option("--out", type=UserPath(), required=True, help="New folder for the augmented data set.")
@click.option("--seed", type=click.IntRange(min=0), default=2021, show_default=True, help="Seed of the augmentation.")
@root_option
def augment(recipe: str, dataset: str, out: Path, seed: int, root: Path | None) -> None:
    """Write a data set whose training images are augmented by RECIPE.

    RECIPE is a TOML file, or the name of one in data_aug: lv, half, onethird, cat, smooth_cat, noise and others.
    """
    import torch

    from fa.augment.recipes import read, write_augmented
    from fa.data import load
    from fa.experiments.paths import recipe_path as find

    source = read(find(recipe))
    torch.set_num_threads(1)  # the steps are short, and several threads would mostly wait for one another
    with reporter("images") as report:
        folder = write_augmented(source, load(dataset, root), out, seed, lambda done, total: report(done, total, str))
    click.echo(str(folder))
