"""The style sheets of the widgets: the colours that all draw with, and each one's own rules."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
COLORS = "colors.css"


def styled(*names: str) -> str:
    """The shared colours, and the named sheets after them."""
    return "".join((HERE / name).read_text("utf-8") for name in (COLORS, *names))
