"""Folders of the project, from any working directory."""

from pathlib import Path

from fa.utils.files import expand_user
from fa.utils.validation import check_one_of


def project_root() -> Path:
    """Return the checkout at or above the working directory, or else around this package.

    Raises:
        ValueError: Neither is in a checkout.
    """
    cwd = Path.cwd().resolve()
    for folder in (cwd, *cwd.parents, Path(__file__).resolve().parents[2]):
        if (folder / "notebooks").is_dir() and (folder / "fa").is_dir():
            return folder
    raise ValueError(f"the working directory must be in a checkout of the project, got {cwd}")


def figures_dir(profile: str, out: str | Path | None = None, custom: bool = False) -> Path:
    """Return the folder of a profile's figures.

    Args:
        profile: Name of the profile.
        out: Folder to return instead.
        custom: True if the figures have other settings or rules than the profile's.
    """
    return Path(out) if out is not None else project_root() / "figures" / (f"{profile}-custom" if custom else profile)


def recipe_path(name: str) -> Path:
    """Return the file of an augmentation recipe.

    Args:
        name: A path that ends in .toml, or NAME for data_aug/NAME.toml.

    Raises:
        ValueError: Unknown recipe.
    """
    if name.endswith(".toml"):
        return expand_user("recipe", name)
    recipes = {path.stem: path for path in sorted((project_root() / "data_aug").glob("*.toml"))}
    check_one_of("recipe", name, tuple(recipes))
    return recipes[name]
