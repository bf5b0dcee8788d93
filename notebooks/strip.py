"""Strip a notebook from stdin to stdout: a filter of git, which `make lab` configures.

JupyterLab writes outputs, execution counts and its own metadata into a notebook. With this filter git compares the rest
only, so that a notebook that was opened, run and saved counts as unchanged.
"""

import json
import sys
from typing import Any

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def stripped(text: str) -> str:
    """Return a notebook without outputs, execution counts and metadata of an editor, in nbformat's layout."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        _strip(cell)
    notebook["metadata"] = METADATA
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _strip(cell: dict[str, Any]) -> None:
    cell["metadata"] = {name: value for name, value in cell["metadata"].items() if name == "tags" and value}
    if cell["cell_type"] == "code":
        cell |= {"outputs": [], "execution_count": None}


if __name__ == "__main__":
    sys.stdout.buffer.write(stripped(sys.stdin.buffer.read().decode()).encode())
