"""A figure that was built by hand, on dark paper: what is white, grey or black is turned over.

Ink and paper change places, and greys between them keep their distance from the paper; colours
stay. So who built it says everything once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.figures.palette import DARK, LIGHT

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

GREY = 0.1
"""Colours whose red, green and blue differ by less than this, of 1, are greys."""


@contextmanager
def turned_over(figure: Figure) -> Iterator[None]:
    """Have a figure on dark paper, and as it was afterwards.

    Args:
        figure: on light paper. Texts that lie on an image stay as they are, since the image does.
    """
    from matplotlib.collections import Collection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.text import Text

    colors = {
        Text: ("color",),
        Line2D: ("color", "markerfacecolor", "markeredgecolor"),
        Patch: ("facecolor", "edgecolor"),
        Collection: ("facecolor", "edgecolor"),
    }
    figure.draw_without_rendering()  # ticks are made when they are drawn
    before = []
    try:
        for artist in _coloured(figure):
            kinds = next((names for kind, names in colors.items() if isinstance(artist, kind)), ())
            # Setting a colour ends that it follows another one, which is why all is put back.
            before.append((artist, dict(vars(artist))))
            found = {name: getattr(artist, f"get_{name}")() for name in kinds}
            for name, color in found.items():
                getattr(artist, f"set_{name}")(turn_over(color))
        yield
    finally:
        for artist, state in before:
            vars(artist).clear()
            vars(artist).update(state)


def turn_over(color: Any) -> Any:
    """A colour, or rows of colours, on dark paper.

    Returns:
        red, green, blue and opacity from 0 to 1; a row for each of several.
    """
    from matplotlib.colors import to_rgba, to_rgba_array

    one = not isinstance(color, np.ndarray)
    rows = np.array(to_rgba_array(color))
    paper, ink, dark_paper, dark_ink = (
        np.array(to_rgba(each)[:3]) for each in (LIGHT.paper, LIGHT.ink, DARK.paper, DARK.ink)
    )
    rgb = rows[:, :3]
    grey = np.ptp(rgb, axis=1) < GREY
    # 0 is ink, or darker; 1 is paper.
    place = np.clip((rgb.mean(axis=1) - ink.mean()) / (paper.mean() - ink.mean()), 0, 1)[:, None]
    rows[:, :3] = np.where(grey[:, None], dark_ink + place * (dark_paper - dark_ink), rgb)
    return tuple(rows[0]) if one else rows


def _coloured(figure: Figure) -> Iterator[Artist]:
    """What has colours of its own, but for what takes them from numbers or lies on an image."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.text import Annotation, Text

    def from_numbers(artist: Artist) -> bool:
        return isinstance(artist, ScalarMappable) and artist.get_array() is not None

    on_images = {
        text
        for axes in figure.axes
        if any(from_numbers(child) for child in axes.get_children())
        for text in axes.texts
    }
    for artist in figure.findobj():
        if artist in on_images or from_numbers(artist):
            continue
        yield artist
        if isinstance(artist, Text) and (box := artist.get_bbox_patch()) is not None:
            yield box
        if isinstance(artist, Annotation) and artist.arrow_patch is not None:
            yield artist.arrow_patch
