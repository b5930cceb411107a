"""The colours of labkit, on paper and on screen.

`colors.css` has its own copy of those that the widgets show, which a test compares with these.
"""

from __future__ import annotations

from dataclasses import dataclass

BASE_COLOR = "#89b4fa"
"""Light blue: the base model, as in the pictures of published gradient merges."""
ADAPTER_COLOR = "#a6e3a1"
"""Light green: the LoRA."""
BELOW_COLOR = "#1e5ba8"
"""Darker blue: a weight below 0, where a weight is shown as a colour."""
ABOVE_COLOR = "#2e7d32"
"""Darker green: a weight above 1."""
INK = "#1e1e2e"
PAPER = "#ffffff"
LIGHT_INK = "#cdd6f4"
"""Ink on dark paper."""
MARK = "#f9e2af"
"""Light yellow: what a reader is to look at."""
WRONG = "#a51d2d"
"""Dark red: the ground of an error's white text."""
SOFT_INK = "#44445a"
EDGE = "#b9b9c4"
CARD = "#f7f7fa"
"""Paper of a field or a box."""
MODULE_COLORS = (
    "#0072b2", "#56b4e9", "#009e73", "#8c8fa1", "#e69f00", "#d55e00", "#cc79a7", "#f0e442",
)  # fmt: skip
"""Of Okabe and Ito (Color Universal Design, 2008), for colour-blind readers; the grey is ours."""

SEQUENTIAL = "cividis"
"""matplotlib's colormap of ordered values, made for colour-blind readers."""
SIGNED = "PuOr"
"""The colormap of values of both signs."""
HELPS = "#009e73"
"""Bluish green of Okabe and Ito: a layer that makes a text likelier."""
HARMS = "#d55e00"
"""Their vermilion: a layer that makes a text less likely."""
UNSURE = "#8c8fa1"
"""Grey: an interval that includes 0."""
EFFECTS = "BrBG_r"
"""The colormap of effects of both signs, from green (helps) to brown (harms)."""
MINE = "#0072b2"
"""Their blue: a gradient of the reader's own, beside base, LoRA and constant."""
MANY = "viridis"
"""The colormap that gives each of many modules its colour."""


@dataclass(frozen=True)
class Theme:
    """Paper, ink and grid of a figure, and the colormap of its lines."""

    paper: str
    ink: str
    grid: str
    lines: str


LIGHT = Theme(PAPER, INK, "#d9dce4", SEQUENTIAL)
DARK = Theme(INK, LIGHT_INK, "#45475a", "viridis")


def theme_for(dark: bool) -> Theme:
    """Light paper, or dark."""
    return DARK if dark else LIGHT
