"""Build the API reference: `python docs/build.py FOLDER`, or `make docs`."""

import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import fa
import fa.data
import fa.training


def main() -> None:
    """Write the pages of all modules into the folder of the command line.

    Packages import some names on first access. They are imported here, so that pdoc finds them.

    Warnings of pdoc are errors, with two exceptions:

    - Annotations of NamedTuple fields, which pdoc looks up in the wrong module.
    - Modules passed to pdoc that it also finds itself, as in packages without `__all__`.
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
