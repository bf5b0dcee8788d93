"""Build the API reference into the folder that is named: `make docs`."""

import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import fa
import fa.data
import fa.training


def main() -> None:
    """Of every module; what packages name when it is first used is there beforehand.

    A warning is an error, save of the annotations of a NamedTuple's fields, which pdoc looks up in another module than
    they are of, and of modules named here that pdoc also finds by itself, as it does in packages without __all__.
    """
    warnings.filterwarnings("error", module="pdoc")
    warnings.filterwarnings("ignore", message="Error parsing type annotation", module="pdoc")
    warnings.filterwarnings("ignore", message="The module specification", module="pdoc")
    for package in (fa, fa.data, fa.training):
        vars(package).update({name: getattr(package, name) for name in package.__all__})
    modules = [module.name for module in pkgutil.walk_packages(fa.__path__, "fa.")]
    pdoc.pdoc("fa", *modules, output_directory=Path(sys.argv[1]))


if __name__ == "__main__":
    main()
