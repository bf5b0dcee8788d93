"""pyproject.toml, requirements.lock and environment.yml describe one environment."""

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import fa

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UNLOCKED = {"flower"}
LEFT_TO_TORCH = re.compile(r"nvidia-|cuda-|triton$")
in_venv = pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="only .venv is made from the lock")


def lock() -> dict[str, Version]:
    """The pins of requirements.lock by canonical name; every line that is no comment is `name==version`."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines if not line.startswith("#")]
    assert all(pins), "requirements.lock holds a line that is not name==version"
    return {canonicalize_name(pin[1]): Version(pin[2]) for pin in pins if pin}


def requirements() -> Iterator[Requirement]:
    """What pyproject.toml asks for, extras included save those that say they are not in the lock, the project's own
    name left out.
    """
    extras = [needs for extra, needs in PROJECT["optional-dependencies"].items() if extra not in UNLOCKED]
    groups = [PROJECT["dependencies"], *extras]
    for requirement in map(Requirement, chain.from_iterable(groups)):
        if requirement.name != PROJECT["name"]:
            yield requirement


def needed(requirement: Requirement) -> Iterator[Requirement]:
    """What an installed package, with the extras asked for, needs on this platform."""
    for text in metadata.requires(requirement.name) or []:
        need = Requirement(text)
        if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in ("", *requirement.extras)):
            yield need


@in_venv
def test_every_pin_installs_with_the_least_python() -> None:
    least = "3.11.0"
    assert SpecifierSet(PROJECT["requires-python"]).contains(least)
    installed = {name: metadata.metadata(name)["Requires-Python"] for name in lock()}
    assert [name for name, needs in installed.items() if needs and not SpecifierSet(needs).contains(least)] == []


def test_every_requirement_is_pinned_within_its_range() -> None:
    pins = lock()
    for requirement in requirements():
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is in pyproject.toml and not in requirements.lock: make lock"
        assert requirement.specifier.contains(pins[name]), f"{name}=={pins[name]} is not {requirement}"


@in_venv
def test_lock_is_closed() -> None:
    """An unpinned dependency of a dependency would let two installations of one lock differ."""
    pins, queue, reached = lock(), list(requirements()), {"setuptools"}
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        key = f"{name}[{','.join(sorted(requirement.extras))}]"
        if key in reached or LEFT_TO_TORCH.match(name):
            continue
        reached |= {key, name}
        assert name in pins, f"{name} is needed and not in requirements.lock: make lock"
        assert requirement.specifier.contains(pins[name], prereleases=True), (
            f"{name}=={pins[name]} is not {requirement}"
        )
        queue += needed(requirement)
    assert set(pins) <= reached, f"nothing needs {sorted(set(pins) - reached)}: make lock"


def test_lock_serves_other_platforms() -> None:
    """torch itself pins the CUDA packages, with markers; named in the lock, they would fail elsewhere."""
    assert not [name for name in lock() if LEFT_TO_TORCH.match(name)]


@in_venv
def test_this_environment_is_the_locked_one() -> None:
    """A stale .venv would let the tests pass with other versions than those that the lock promises."""
    installed = {name: Version(metadata.version(name)) for name in lock()}
    assert {name: Version(version.public) for name, version in installed.items()} == lock()


def test_conda_takes_the_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    python, pip, packages = environment["dependencies"]
    assert pip == "pip"
    assert packages == {"pip": ["--requirement requirements.lock", "--editable ."]}
    version = re.fullmatch(r"python=(\d+\.\d+)", python)
    assert version
    assert SpecifierSet(PROJECT["requires-python"]).contains(version[1])


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert fa.__version__ == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
