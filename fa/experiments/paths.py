"""Where the project's figures, notebooks and recipes are, from whatever folder it is called."""

from pathlib import Path

from fa.utils.validation import check_one_of


def project() -> Path:
    """The checkout: the folder at or above the working directory, else around this package, that holds `notebooks`."""
    here = Path.cwd().resolve()
    package = Path(__file__).resolve().parents[2]
    for folder in (here, *here.parents, package):
        if (folder / "notebooks").is_dir() and (folder / "fa").is_dir():
            return folder
    raise ValueError(f"there is no checkout of the project at or above {here}: call it from inside one")


def figures(profile: str, out: str | Path | None = None, custom: bool = False) -> Path:
    """The folder of a profile's figures, or of `custom` ones, with other settings or rules: `out` if given."""
    return Path(out) if out is not None else project() / "figures" / (f"{profile}-custom" if custom else profile)


def recipe(name: str) -> Path:
    """The file of an augmentation recipe: a path that ends in .toml as it is, else NAME.toml in data_aug."""
    if name.endswith(".toml"):
        return Path(name)
    there = {path.stem: path for path in sorted((project() / "data_aug").glob("*.toml"))}
    check_one_of("recipe", name, tuple(there))
    return there[name]
