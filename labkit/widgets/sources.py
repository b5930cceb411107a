"""What the widgets are made of in the browser: pieces that several share, and each one's own.

Anywidget serves one script and one style sheet for each widget, and a script cannot import another
one from there. So the pieces are joined here.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
COLORS = "colors.css"
ELEMENTS = "elements.js"


def styled(*names: str) -> str:
    """The shared colours, and the named sheets after them."""
    return _joined(COLORS, *names)


def scripted(*names: str) -> str:
    """What makes elements, and the named scripts after it; the last one exports the widget."""
    return _joined(ELEMENTS, *names)


def _joined(*names: str) -> str:
    return "\n".join((HERE / name).read_text("utf-8") for name in names)
