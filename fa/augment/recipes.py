"""Recipes: which of a data set's training images are moved, how, how far, and what noise is laid upon them.

A recipe is a small TOML file (data_aug/ has the paper's schemes); an augmented data set is four .npy files with a
manifest. What is drawn for an image depends on the seed and the data set's size alone.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from fa.augment import MOVES, SYSTEMS, add_noise, warp
from fa.augment.flows import check_parameters
from fa.augment.images import INTERPOLATIONS
from fa.data import Dataset, MissingDataError, store
from fa.data.dataset import ARRAYS, content_checksum, tensors
from fa.utils.files import new_folder
from fa.utils.seeds import generator
from fa.utils.validation import check, check_one_of, check_real

MANIFEST = "manifest.json"
_CHUNK = 1000  # images at a time, which also fixes the order in which noise is drawn

Images = UInt8[Tensor, "n channels height width"]
Progress = Callable[[int, int], None]
"""Called with how many images are done, and of how many."""


@dataclass(frozen=True)
class Recipe:
    """How training images are augmented: the keys of the TOML file, with the system's parameters among them there.

    Raises ValueError for values out of range.
    """

    system: str = ""  # what moves them, of fa.augment.MOVES; "": nothing
    t: tuple[float, ...] = ()  # times; one of them is drawn for each image that is moved
    parameters: tuple[tuple[str, float], ...] = ()  # the system's, where they are not the usual ones
    interpolation: str = "nearest"
    share: float = 1.0  # of the images, drawn at random, that are moved
    noise: tuple[float, ...] = ()  # standard deviations in parts of white; one is drawn for each image, moved or not

    def __post_init__(self) -> None:
        check("noise", self.noise, all(level >= 0 for level in self.noise), "a list of numbers of at least 0")
        check("share", self.share, 0 < self.share <= 1, "greater than 0 and at most 1")
        check_one_of("interpolation", self.interpolation, INTERPOLATIONS)
        if not self.system:
            check("system", self.system, not (self.t or self.parameters), "given where t or parameters are")
            check("a recipe", self.options, bool(self.noise), "one with a system, or noise, or both")
            return
        check_one_of("system", self.system, MOVES)
        check("t", self.t, bool(self.t), f"a list of one time or more for {self.system}")
        whole = self.system != "smooth_cat_map" or all(t.is_integer() and t >= 0 for t in self.t)
        check("t", self.t, whole, "a list of whole numbers of iterations for smooth_cat_map")
        check_parameters(self.system.removesuffix("_map"), dict(self.parameters))

    @classmethod
    def of(cls, options: Any) -> Recipe:
        """The recipe of a mapping, or of pairs, such as `options` gives; ValueError for a key or a value of no use.

        The system's parameters are keys like the others.
        """
        given = dict(options)
        system = given.get("system", "")
        usual = SYSTEMS[system.removesuffix("_map")].parameters if system in MOVES else {}
        values: dict[str, Any] = {}
        for name, value in given.items():
            check_one_of("a recipe's key", name, (*_READERS, *usual))
            values[name] = _READERS[name](name, value) if name in _READERS else _number(name, value)
        parameters = tuple((name, values.pop(name)) for name in sorted(usual.keys() & values.keys()))
        return cls(parameters=parameters, **values)

    @property
    def options(self) -> dict[str, Any]:
        """What differs from the defaults, for TrainConfig(augmentation=...): plain numbers, strings and tuples."""
        values = {name: getattr(self, name) for name in _READERS}
        return {name: value for name, value in values.items() if value != getattr(Recipe, name)} | dict(self.parameters)


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    check(name, values, isinstance(values, list | tuple), "a list of numbers")
    return tuple(_number(name, value) for value in values)


def _number(name: str, value: Any) -> float:
    check_real(name, value, -math.inf)
    return float(value)


def _word(name: str, value: Any) -> str:
    check(name, value, isinstance(value, str), "a name")
    return str(value)


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "system": _word,
    "t": _numbers,
    "interpolation": _word,
    "share": _number,
    "noise": _numbers,
}
"""What makes a field of a value as TOML or JSON has it."""


def read(path: str | Path) -> Recipe:
    """The recipe of a TOML file; ValueError that names the file for what is no TOML or no recipe."""
    try:
        return Recipe.of(tomllib.loads(Path(path).read_text()))
    except OSError as error:
        raise ValueError(f"the recipe {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def augment(images: Images, recipe: Recipe, seed: int, progress: Progress | None = None) -> Images:
    """The images (N, C, H, W) by a recipe: round(share N) of them, drawn at random, are moved; noise is laid on all."""
    draw = generator("recipe", seed, 0, 0)
    count = len(images)
    moved = torch.randperm(count, generator=draw) < round(recipe.share * count)
    which = torch.randint(max(1, len(recipe.t)), (count,), generator=draw).where(moved & bool(recipe.system), -1)
    levels = torch.tensor(recipe.noise or (0.0,), dtype=torch.float32)
    level = levels[torch.randint(len(levels), (count,), generator=draw)]
    out = images.clone()
    for start in range(0, count, _CHUNK):
        chunk, mine = out[start : start + _CHUNK], which[start : start + _CHUNK]
        for choice, t in enumerate(recipe.t):
            rows = (mine == choice).nonzero().flatten()
            these = chunk.index_select(0, rows)  # a tenth of the time that brackets take
            chunk[rows] = warp(these, recipe.system, t, recipe.interpolation, **dict(recipe.parameters))
        if recipe.noise:
            chunk.copy_(add_noise(chunk, level[start : start + _CHUNK], draw))
        if progress is not None:
            progress(start + len(chunk), count)
    return out


@lru_cache(maxsize=1)
def augmented(dataset: Dataset, recipe: Recipe, seed: int) -> Dataset:
    """The data set with its training images augmented; the last one made is kept, for all the workers of a run."""
    return _augmented(dataset, recipe, seed, None)


def _augmented(dataset: Dataset, recipe: Recipe, seed: int, progress: Progress | None) -> Dataset:
    images = augment(dataset.train_images, recipe, seed, progress)
    arrays = {name: getattr(dataset, name).numpy() for name in ARRAYS} | {"train_images": images.numpy()}
    return replace(dataset, train_images=images, checksum=content_checksum(arrays))


def build(recipe: Recipe, dataset: Dataset, out: str | Path, seed: int, progress: Progress | None = None) -> Path:
    """Write the augmented data set into the new folder `out`, which appears whole or not at all, and return it.

    Four .npy files, uint8 and int64, and a manifest: recipe, seed, checksums, and what a model needs to know. The test
    images are not augmented. Raises ValueError where `out` exists.
    """
    out = Path(out).absolute()
    check("out", str(out), not out.exists(), "a folder that does not exist yet")
    try:
        with new_folder(out) as folder:
            made = _augmented(dataset, recipe, seed, progress)
            store.write(folder, {name: getattr(made, name).numpy() for name in ARRAYS})
            manifest = {
                "dataset": dataset.name,
                "dataset_checksum": dataset.checksum,
                "recipe": recipe.options,
                "seed": seed,
                "checksum": made.checksum,
                **{name: getattr(dataset, name) for name in ("classes", "mean", "std", "augment")},
            }
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"{out} cannot be written: {error.strerror or error}") from error
    return out


def load_built(folder: str | Path) -> Dataset:
    """The data set that `build` wrote, its content checked against the manifest; MissingDataError if it differs."""
    folder = Path(folder)
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        arrays = store.read(folder)
        found = content_checksum(arrays)
        check("its content's SHA-256", found, found == manifest["checksum"], "the manifest's")
        return Dataset(
            name=f"{manifest['dataset']} augmented",
            **tensors(arrays),
            classes=manifest["classes"],
            mean=tuple(manifest["mean"]),
            std=tuple(manifest["std"]),
            augment=manifest["augment"],
            checksum=found,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MissingDataError(f"there is no whole augmented data set in {folder}: {error}; `fa augment`") from error
