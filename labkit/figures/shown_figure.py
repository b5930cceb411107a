"""A matplotlib figure that shows itself as the last line of a notebook's cell."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from labkit.figures.fonts import use_fallback_fonts
from labkit.figures.picture import picture_bytes

PIXELS = 1440
"""Enough for a screen with two dots a pixel."""


class ShownFigure(Figure):
    """A figure that is seen without pyplot, which a bare Figure needs in a notebook.

    Its texts are drawn in other fonts where matplotlib's own lacks their letters.
    """

    def draw(self, renderer: Any) -> None:
        """Draw it; every way to a picture leads here."""
        use_fallback_fonts(self)
        super().draw(renderer)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        size = {"width": round(100 * self.get_figwidth())}
        return picture_bytes(self, pixels=PIXELS), size
