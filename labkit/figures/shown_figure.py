"""A matplotlib figure that shows itself as the last line of a notebook's cell."""

from __future__ import annotations

import base64
from typing import Any

from matplotlib.figure import Figure

from labkit.figures.fonts import use_fallback_fonts
from labkit.figures.palette import PAPER
from labkit.figures.papers import dark_picture, html_of
from labkit.figures.picture import picture_bytes

PIXELS = 1440
"""Enough for a screen with two dots a pixel."""


class ShownFigure(Figure):
    """A figure that is seen without pyplot, which a bare Figure needs in a notebook.

    Its texts are drawn in other fonts where matplotlib's own lacks their letters. A figure of
    labkit's own functions follows the page's theme, until it is changed. One that you build
    follows it, too: on a dark page paper and ink change places, and colours stay.

    Args:
        given: as matplotlib's `Figure`.
        facecolor: the paper, for a figure that stays on it in every theme.
        named: as matplotlib's `Figure`.
    """

    on_dark: Figure | None = None
    said: str = ""
    """What it shows, for those who cannot see it."""

    def __init__(self, *given: Any, facecolor: Any = None, **named: Any) -> None:
        self.by_hand = facecolor is None
        super().__init__(*given, facecolor=PAPER if facecolor is None else facecolor, **named)

    def draw(self, renderer: Any) -> None:
        """Draw it; every way to a picture leads here."""
        use_fallback_fonts(self)
        super().draw(renderer)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return picture_bytes(self, pixels=PIXELS), {"width": self._width}

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> tuple[dict[str, str], dict[str, Any]]:
        """The light picture for what shows pictures alone, and both for pages."""
        light, size = self._repr_png_()
        bundle = {"text/plain": repr(self), "image/png": base64.b64encode(light).decode()}
        dark = dark_picture(self, PIXELS)
        if dark is not None:
            titles = [
                axes.get_title(loc=place) for axes in self.axes for place in ("left", "center")
            ]
            said = "; ".join(filter(None, (self.said, *titles))) or self._axes_said()
            bundle["text/html"] = html_of(light, dark, said, "", self._width)
        return bundle, {"image/png": size}

    def _axes_said(self) -> str:
        labels = ([axes.get_ylabel(), axes.get_xlabel()] for axes in self.axes)
        return "; ".join(" against ".join(filter(None, pair)) for pair in labels if any(pair))

    @property
    def _width(self) -> int:
        """Its width on a page, in pixels."""
        return round(100 * self.get_figwidth())
