"""Formulas as MathML, which browsers draw by themselves: no script and no font is fetched."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

log = logging.getLogger(__name__)


def inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(_drawn(node, display=False))
    raise nodes.SkipNode


def block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{_drawn(node, display=True)}</div>\n')
    raise nodes.SkipNode


def _drawn(node: nodes.Element, display: bool) -> str:
    try:
        text = re.sub(r"\\dots(?![a-zA-Z])", r"\\ldots", node.astext())  # which docutils knows
        return str(tex2mathml(text, as_block=display))
    except MathError as error:
        # A warning fails the build, which is strict.
        log.warning("a formula that cannot be drawn: %s: %s", node.astext(), error, location=node)
        return f"<code>{nodes.Text(node.astext())}</code>"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
