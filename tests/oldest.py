"""Print a constraint for each dependency, the oldest version that pyproject.toml allows: `make test-oldest`."""

import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = ("notebooks", "theory", "tensorboard", "test")


def main() -> None:
    """Of what runs and tests the package; the tools that check its text are as the lock has them."""
    needs = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in EXTRAS)]
    for requirement in map(Requirement, chain.from_iterable(needs)):
        for specifier in requirement.specifier:
            if specifier.operator == ">=":
                print(f"{requirement.name}=={specifier.version}")


if __name__ == "__main__":
    main()
