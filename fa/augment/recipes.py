"""Recipes of augmentation: which training images are warped, how and how far, and how much noise is added.

A recipe is a small TOML file; data_aug/ has the paper's schemes. An augmented data set is four .npy files with a
manifest. The draws for an image depend only on the seed and the size of the data set.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from fa.augment import MOVES, SYSTEMS, add_noise, warp
from fa.augment.flows import check_parameters
from fa.augment.images import INTERPOLATIONS
from fa.augment.maps import check_time
from fa.data import Dataset, MissingDataError, store
from fa.data.dataset import ARRAYS, content_checksum, tensors
from fa.utils.files import new_folder
from fa.utils.seeds import generator
from fa.utils.validation import check, check_one_of, check_real

MANIFEST = "manifest.json"
"""File name of an augmented data set's manifest."""
_CHUNK = 1000  # Images per step. It fixes the order of the noise, so another value changes results.

Images = UInt8[Tensor, "n channels height width"]
Progress = Callable[[int, int], None]
"""Function of the number of images done and the number of all images."""


@dataclass(frozen=True)
class Recipe:
    """A recipe of augmentation. Its fields are keys of the TOML file; the system's parameters are top-level keys there.

    Attributes:
        system: A name in `fa.augment.MOVES`; default "", no warp.
        t: Times. One of them is drawn for each warped image.
        parameters: Parameters of the system that differ from the defaults, as pairs of name and value.
        interpolation: "nearest" (default) or "bilinear".
        share: Share of the images that are warped, greater than 0 and at most 1; default 1.
        noise: Standard deviations as fractions of white. One of them is drawn for each image, warped or not.

    Raises:
        ValueError: A value is out of range.
    """

    system: str = ""
    t: tuple[float, ...] = ()
    parameters: tuple[tuple[str, float], ...] = ()
    interpolation: str = "nearest"
    share: float = 1.0
    noise: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, reader in _READERS.items():
            object.__setattr__(self, name, reader(name, getattr(self, name)))
        object.__setattr__(self, "parameters", tuple((name, _number(name, value)) for name, value in self.parameters))
        check("noise", self.noise, all(level >= 0 for level in self.noise), "a list of numbers of at least 0")
        check("share", self.share, 0 < self.share <= 1, "greater than 0 and at most 1")
        check_one_of("interpolation", self.interpolation, INTERPOLATIONS)
        if not self.system:
            check("system", self.system, not (self.t or self.parameters), "given where t or parameters are")
            check("a recipe", self.options, bool(self.noise), "one with a system, or noise, or both")
            return
        check_one_of("system", self.system, MOVES)
        check("t", self.t, bool(self.t), f"a list of one time or more for {self.system}")
        for t in self.t:
            check_time(self.system, t)
        check_parameters(self.system.removesuffix("_map"), dict(self.parameters))

    @classmethod
    def from_options(cls, options: Any) -> Recipe:
        """Create a recipe from a mapping or from pairs, such as `options` returns.

        Args:
            options: Values by key, as in the TOML file. The system's parameters are keys too.

        Returns:
            The recipe.

        Raises:
            ValueError: Unknown key, or invalid value.
        """
        settings = dict(options)
        system = settings.get("system", "")
        usual = SYSTEMS[system.removesuffix("_map")].parameters if system in MOVES else {}
        values: dict[str, Any] = {}
        for name, value in settings.items():
            check_one_of("a recipe's key", name, (*_READERS, *usual))
            values[name] = _READERS[name](name, value) if name in _READERS else _number(name, value)
        parameters = tuple((name, values.pop(name)) for name in sorted(usual.keys() & values.keys()))
        return cls(parameters=parameters, **values)

    @property
    def options(self) -> dict[str, Any]:
        """Values that differ from the defaults, for TrainConfig(augmentation=...): numbers, strings and tuples."""
        values = {name: getattr(self, name) for name in _READERS}
        return {name: value for name, value in values.items() if value != getattr(Recipe, name)} | dict(self.parameters)


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    """Check a list of numbers and convert it to a tuple of floats."""
    check(name, values, isinstance(values, list | tuple), "a list of numbers")
    return tuple(_number(name, value) for value in values)


def _number(name: str, value: Any) -> float:
    """Check a number and convert it to a float."""
    check_real(name, value, -math.inf)
    return float(value)


def _word(name: str, value: Any) -> str:
    """Check a string."""
    check(name, value, isinstance(value, str), "a name")
    return str(value)


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "system": _word,
    "t": _numbers,
    "interpolation": _word,
    "share": _number,
    "noise": _numbers,
}
"""Functions that check and convert a value from TOML or JSON, by the name of the field."""


def read(path: str | Path) -> Recipe:
    """Read a recipe from a TOML file.

    Args:
        path: The file.

    Returns:
        The recipe.

    Raises:
        ValueError: The file is unreadable, is not TOML, or is not a recipe. The message names the file.
    """
    try:
        return Recipe.from_options(tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"the recipe {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def augment(images: Images, recipe: Recipe, seed: int, progress: Progress | None = None) -> Images:
    """Augment images by a recipe.

    A random share of the images, round(share N), is warped. Noise is added to all.

    Args:
        images: Images, uint8 (N, C, H, W).
        recipe: The recipe.
        seed: Seed of all draws.
        progress: Function called after each step; default None.

    Returns:
        New images of the same shape and dtype.
    """
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
            these = chunk.index_select(0, rows)  # index_select takes a tenth of the time of brackets.
            chunk[rows] = warp(these, recipe.system, t, recipe.interpolation, **dict(recipe.parameters))
        if recipe.noise:
            chunk.copy_(add_noise(chunk, level[start : start + _CHUNK], draw))
        if progress is not None:
            progress(start + len(chunk), count)
    return out


def augmented_dataset(dataset: Dataset, recipe: Recipe, seed: int, progress: Progress | None = None) -> Dataset:
    """Return the data set with augmented training images.

    Args:
        dataset: The data set.
        recipe: The recipe.
        seed: Seed of all draws.
        progress: Function called after each step; default None.

    Returns:
        A new data set, with the checksum of its content. The test images are not augmented.
    """
    images = augment(dataset.train_images, recipe, seed, progress)
    arrays = {name: getattr(dataset, name).numpy() for name in ARRAYS} | {"train_images": images.numpy()}
    return replace(dataset, train_images=images, checksum=content_checksum(arrays))


def write_augmented(
    recipe: Recipe, dataset: Dataset, out: str | Path, seed: int, progress: Progress | None = None
) -> Path:
    """Write an augmented data set into a new folder. The folder appears whole or not at all.

    It holds four .npy files, uint8 and int64, and a manifest with recipe, seed, checksums and the properties that a
    model needs. The test images are not augmented.

    Args:
        recipe: The recipe.
        dataset: The data set.
        out: The folder, which must not exist.
        seed: Seed of all draws.
        progress: Function called after each step; default None.

    Returns:
        The absolute path of the folder.

    Raises:
        ValueError: `out` exists or cannot be written.
    """
    out = Path(out).absolute()
    check("out", str(out), not out.exists(), "a folder that does not exist yet")
    try:
        with new_folder(out) as folder:
            augmented = augmented_dataset(dataset, recipe, seed, progress)
            store.write(folder, {name: getattr(augmented, name).numpy() for name in ARRAYS})
            manifest = {
                "dataset": dataset.name,
                "dataset_checksum": dataset.checksum,
                "recipe": recipe.options,
                "seed": seed,
                "checksum": augmented.checksum,
                **{name: getattr(dataset, name) for name in ("classes", "mean", "std")},
                "augment": dataset.crop_and_flip,  # The key is older than the attribute's name.
            }
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{out} cannot be written: {error.strerror or error}") from error
    return out


def load_augmented(folder: str | Path) -> Dataset:
    """Load a data set that `write_augmented` wrote, and check its content against the manifest.

    Args:
        folder: The folder.

    Returns:
        The data set.

    Raises:
        MissingDataError: The folder is incomplete, or its content differs from the manifest.
    """
    folder = Path(folder)
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        arrays = store.read(folder)
        checksum = content_checksum(arrays)
        check("its content's SHA-256", checksum, checksum == manifest["checksum"], "the manifest's")
        return Dataset(
            name=f"{manifest['dataset']} augmented",
            **tensors(arrays),
            classes=manifest["classes"],
            mean=tuple(manifest["mean"]),
            std=tuple(manifest["std"]),
            crop_and_flip=manifest["augment"],
            checksum=checksum,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise MissingDataError(
            f"{folder} must be a complete data set of `fa augment`, got {found}. Write it again with `fa augment`."
        ) from error
