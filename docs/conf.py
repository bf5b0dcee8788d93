"""Sphinx configuration of the site: `sphinx-build -c docs . build/site`, or `make docs`.

The source folder is the root of the repository, so that a link between two files of the repository is a link between
two pages of the site.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import fa  # noqa: E402 (the checkout of this file, not an installed package)
import fa.data  # noqa: E402
import fa.training  # noqa: E402

# Some public names are imported on first access. They are imported here, so that autodoc finds them.
for package in (fa, fa.data, fa.training):
    vars(package).update({name: getattr(package, name) for name in package.__all__})

project = "flag-aggregator"
author = "the flag-aggregator authors"
version = release = fa.__version__
html_title = f"flag-aggregator {version}"

root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "figures/*/REPORT.md",
    "figures/*/notebooks/*.ipynb",
    "data_aug/README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
exclude_patterns = [".*", "build", "dist", "runs", "fa", "tests", "figures/*/records*", "figures/smoke", "**/.*"]
exclude_patterns += ["figures/*-custom", "figures/cpu/notebooks", "figures/paper/notebooks"]  # not committed

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_click",
    "sphinx_copybutton",
    "extensions.mathml",
    "extensions.modules",
]

# Markdown and notebooks. Notebooks are shown as they were executed.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

# The API reference. A name in single backticks is a link where such an object exists, and code otherwise.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["flwr"]
autosummary_generate = False
suppress_warnings = ["autosummary.import_cycle"]  # names of a package are listed on its own page
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88

html_theme = "pydata_sphinx_theme"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["tables.js"]
html_show_sourcelink = False
html_copy_source = False
html_additional_pages = {"index": "redirect.html"}
templates_path = ["templates"]
html_theme_options = {
    "logo": {"text": project},
    "header_links_before_dropdown": 7,
    "navbar_align": "left",
    "show_toc_level": 2,
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "navigation_with_keys": False,
}
html_context = {"default_mode": "auto"}
html_show_sphinx = False
copyright = "MIT licence"

copybutton_prompt_text = re.escape(">>> ") + r"|\.\.\. |\$ "
copybutton_prompt_is_regexp = True
