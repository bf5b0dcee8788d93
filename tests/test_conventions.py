"""Habits that no other test holds: shapes are checked, notebooks stripped, no machine's path is in git."""

import importlib
import json
import pkgutil
import re
import subprocess
from pathlib import Path

import jaxtyping
import pytest
import torch

from fa.gradients import measurement

ROOT = Path(__file__).parents[1]

# The compiled loops, which numba takes as they are written, and the rooms at whose border people type.
UNCHECKED = {"kernels", "cli"}

MACHINE = re.compile(
    rb"(?<![\w.~/-])/(?:home|work|tmp|root|Users)/(?!\.{3})\w"
    rb"|\b(?:pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)|registry\.yarnpkg\.com|download\.pytorch\.org)\b"
)


def tracked(*patterns: str) -> list[Path]:
    """The files that git tracks, or would track if they were added."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout, so that git cannot tell what is tracked")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


def test_every_room_is_checked() -> None:
    """A room that the hook does not know would run unchecked, unnoticed."""
    for module in pkgutil.iter_modules([str(ROOT / "fa")]):
        if module.name not in UNCHECKED:
            loader = importlib.import_module(f"fa.{module.name}").__loader__
            assert type(loader).__module__.startswith("jaxtyping."), f"fa.{module.name} is not checked"


def test_a_wrong_shape_is_an_error() -> None:
    """The list is one thing; that what is on it is checked is another."""
    assert measurement.measure(torch.ones(2, 3))[1].all()
    with pytest.raises(jaxtyping.TypeCheckError):
        measurement.measure(torch.ones(6))


def test_no_path_of_one_machine() -> None:
    """A path or a package index of the machine where something was written works nowhere else."""
    found = [(path.name, match[0]) for path in tracked() for match in MACHINE.finditer(path.read_bytes())]
    assert found == []


def test_notebooks_are_stripped() -> None:
    """Outputs in git hide every other change. Executed copies are in figures/PROFILE/notebooks."""
    for path in tracked("*.ipynb", ":!figures"):
        notebook = json.loads(path.read_text())
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [], f"{path.relative_to(ROOT)} holds outputs"
                assert cell["execution_count"] is None, f"{path.relative_to(ROOT)} holds execution counts"
        assert "papermill" not in notebook["metadata"], f"{path.relative_to(ROOT)} was written by papermill"
