"""The site: docstrings and pages refer to existing things, and Sphinx builds it without a warning."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

import fa

ROOT = Path(__file__).parents[1]
MEMBERS = (FunctionType, classmethod, staticmethod, property, cached_property)
REFERENCE = re.compile(r"`(fa\.[\w.]+)(?:\(\.*\))?`")


def modules() -> Iterator[ModuleType]:
    yield fa
    for module in pkgutil.walk_packages(fa.__path__, "fa."):
        yield importlib.import_module(module.name)


def documented(module: ModuleType) -> Iterator[str]:
    """The docstrings of a module, of what it defines, and of its classes' members."""
    yield module.__doc__ or ""
    for thing in vars(module).values():
        if getattr(thing, "__module__", None) == module.__name__:
            yield inspect.getdoc(thing) or ""
            if inspect.isclass(thing):
                own = [member for member in vars(thing).values() if isinstance(member, MEMBERS)]
                yield from (inspect.getdoc(member) or "" for member in own)


def resolved(name: str) -> Any:
    """What a dotted name stands for; AttributeError or ImportError where it is nothing."""
    found: Any = fa
    done = "fa"
    for part in name.split(".")[1:]:
        done = f"{done}.{part}"
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(done)
    return found


def test_what_docstrings_refer_to_is_there() -> None:
    seen, broken = 0, []
    for module in modules():
        for text in documented(module):
            for name in REFERENCE.findall(text):
                seen += 1
                try:
                    resolved(name)
                except (AttributeError, ImportError):
                    broken.append(f"{module.__name__}: {name}")
    assert broken == []
    assert seen > 20


def test_the_examples_of_docstrings_run() -> None:
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(verbose=False)
    examples = [test for module in modules() for test in finder.find(module, module.__name__) if test.examples]
    for test in examples:
        runner.run(test)
    assert runner.failures == 0
    assert len(examples) >= 3


def pages() -> list[Path]:
    """Return the Markdown pages of README, the site and the reports."""
    patterns = ("*.md", "docs/*.md", "data_aug/*.md", "figures/*/REPORT.md")
    return sorted(page for pattern in patterns for page in ROOT.glob(pattern) if page.parent.name != "smoke")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a Markdown page: explicit ones, and those that headings get from GitHub and the site."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Yield file and anchor of each link of a page to another page or file; the file is empty for the page itself."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"\w+:", target):
            file, _, anchor = target.partition("#")
            yield file, anchor


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for file, anchor in links(page):
        target = page.parent / file if file else page
        assert target.is_file(), f"{file} does not exist"
        assert not anchor or anchor in anchors(target), f"{file}#{anchor} does not exist"


FOLDERS = "benchmarks|data_aug|docs|examples|fa|figures|notebooks|tests"
PLACEHOLDER = re.compile(r"[A-Z]{2,}|-custom|/records")  # written by commands, or stand for several names


def quoted_paths(page: Path) -> Iterator[str]:
    """Yield the paths of this repository in a page's back-quoted text; folders end without a slash."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for code in re.findall(r"`([^`]+)`", text):
        for path in re.findall(rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]*\w)", code):
            if not PLACEHOLDER.search(path.removesuffix("README.md")):
                yield path


def test_paths_in_pages_exist() -> None:
    found = [(page.name, path) for page in pages() if page.name != "CHANGELOG.md" for path in quoted_paths(page)]
    assert [(name, path) for name, path in found if not (ROOT / path).exists()] == []
    assert len(found) >= 40


def test_every_public_module_has_a_page() -> None:
    reference = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.rst"))
    packages = re.findall(r"^\.\. package:: ([\w.]+)$", reference, flags=re.MULTILINE)
    assert sorted(packages) == sorted(["fa", *public_packages()])


def public_packages() -> list[str]:
    """Return the modules in the root of fa that ARCHITECTURE.md does not call internal."""
    internal = re.search(
        r"A name in the root is public, except (.*?)\.", (ROOT / "ARCHITECTURE.md").read_text(), re.DOTALL
    )
    assert internal
    names = {module.name for module in pkgutil.iter_modules(fa.__path__)}
    return [f"fa.{name}" for name in names - set(re.findall(r"`(\w+)`", internal[1]))]


@pytest.mark.long
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("myst_nb", reason="needs flag-aggregator[docs]")
    sphinx = [sys.executable, "-m", "sphinx", "--keep-going", "-q", "-W", "-c", "docs", "-d", str(tmp_path / "cache")]
    done = subprocess.run([*sphinx, ".", str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    pages = {page.relative_to(tmp_path / "site").with_suffix("").as_posix() for page in tmp_path.rglob("*.html")}
    executed = {f"figures/quick/notebooks/{path.stem}" for path in (ROOT / "figures/quick/notebooks").glob("*.ipynb")}
    assert {"index", "docs/tutorial", "docs/commands", "docs/api/rules", "CHANGELOG"} | executed <= pages
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert loaded == [], f"{page.name} needs the network"
    reference = "".join(page.read_text() for page in (tmp_path / "site" / "docs" / "api").glob("*.html"))
    internal = ("fa.cli", "fa.bench", "fa.kernels", "fa.utils")
    for module in modules():
        if not module.__name__.startswith(internal) and "._" not in module.__name__:
            assert f'id="module-{module.__name__}"' in reference, f"{module.__name__} is not in the reference"
