"""Render mathematics as MathML, which browsers show without scripts or network."""

import re
from html import escape
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

_TAG = re.compile(r"\\tag\{([^}]*)\}")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer and select it."""
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _mathml(latex: str, display: str) -> str:
    """Convert LaTeX. Commands that the converter leaves as they are raise an error.

    Raises:
        ValueError: Unknown command.
    """
    mathml = convert(latex.replace(r"\arg", r"\operatorname{arg}"), display=display)
    if display == "block":  # The converter sets what is minimised over beside "min", as in a line of text.
        mathml = re.sub(r"<msub>(<mo>min</mo><mrow>(?:(?!</?mrow>).)*</mrow>)</msub>", r"<munder>\1</munder>", mathml)
    if "\\" in re.sub(r"<mo>\\</mo>", "", mathml):
        raise ValueError(f"formula must have commands that latex2mathml converts, got {latex!r}")
    return mathml


def _visit_inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _visit_block(translator: Any, node: nodes.math_block) -> None:
    latex = node.astext()
    tag = _TAG.search(latex)
    number = f'<span class="eqno">({escape(tag[1])})</span>' if tag else ""
    translator.body.append(f'<div class="math">{number}{_mathml(_TAG.sub("", latex), "block")}</div>')
    raise nodes.SkipNode
