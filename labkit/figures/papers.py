"""Figures on light paper and on dark: in a notebook's cell a picture follows the page's theme.

A figure function draws on the paper that it is told to. Where it is not told, `follows_theme` gives
its figure the same one on dark paper, and both go into the cell as pictures of which the page shows
one. A figure that was built by hand is turned over for the dark one. Files are always one picture,
on light paper unless `dark=True`.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from labkit.figures.picture import picture_bytes
from labkit.figures.turned_over import turned_over

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Given = ParamSpec("Given")

# Where a page says that its theme is dark: JupyterLab, Notebook 7, Voilà and nbconvert; VS Code;
# Colab; Sphinx's themes; MkDocs. Where it says nothing, the browser's preference counts.
DARK_PAGES = (
    ':is(body[data-jp-theme-light="false"],body.vscode-dark,html[theme="dark"],'
    'html[data-theme="dark"],[data-md-color-scheme="slate"])'
)
SILENT_PAGES = (
    "html:not([theme],[data-theme]) "
    "body:not([data-jp-theme-light],[data-md-color-scheme],.vscode-light,.vscode-dark)"
)
RULES = (
    "{page} .labkit-themed>.labkit-on-light{{display:none!important}}"
    "{page} .labkit-themed>.labkit-on-dark"
    "{{display:block!important;width:100%;height:auto;border-radius:4px}}"
)
FOLLOW_THE_PAGE = (
    f"<style>{RULES.format(page=DARK_PAGES)}"
    f"@media (prefers-color-scheme:dark){{{RULES.format(page=SILENT_PAGES)}}}</style>"
)
"""Shows the dark picture in place of the light one on a dark page."""


def follows_theme(draw: Callable[Given, Figure]) -> Callable[Given, Figure]:
    """Make the figures of a function follow the theme, unless it is told which paper to draw on.

    Args:
        draw: a function of figures that takes `dark`.
    """

    @wraps(draw)
    def drawn(*given: Given.args, **named: Given.kwargs) -> Figure:
        figure: Any = draw(*given, **named)
        if "dark" not in named:
            figure.on_dark = draw(*given, **{**named, "dark": True})  # type: ignore[arg-type]
            said = (draw.__doc__ or "").partition("\n")[0].rstrip(".")
            figure.said = said.removeprefix("Draw ")
        return figure  # type: ignore[no-any-return]

    return drawn


def on_dark(figure: Figure) -> Figure | None:
    """The same figure on dark paper.

    None for one that does not follow the theme, or was changed after it was made: the one on dark
    paper does not have what was added, such as a title.
    """
    other = getattr(figure, "on_dark", None)
    return other if other is not None and _contents(figure) == _contents(other) else None


def dark_picture(figure: Figure, pixels: int) -> bytes | None:
    """A figure on dark paper as a PNG; None for one that does not follow the theme.

    Args:
        figure: on light paper.
        pixels: as in `picture_bytes`.
    """
    other = on_dark(figure)
    if other is not None:
        return picture_bytes(other, pixels=pixels)
    if not getattr(figure, "by_hand", False):
        return None
    with turned_over(figure):
        return picture_bytes(figure, pixels=pixels)


def picture_html(figure: Figure, description: str, caption: str = "", width: int = 500) -> str:
    """A figure and a caption for a notebook cell, which follows the theme where the figure does.

    Args:
        figure: what to draw.
        description: the image's text for those who cannot see it; escaped here.
        caption: HTML under the picture, already escaped.
        width: the picture's width on the page, in pixels.
    """
    light, dark = picture_bytes(figure, pixels=2 * width), dark_picture(figure, 2 * width)
    return html_of(light, dark, description, caption, width)


def html_of(light: bytes, dark: bytes | None, description: str, caption: str, width: int) -> str:
    """PNGs as HTML: as `picture_html`.

    Where styles are taken out (GitHub, a notebook that JupyterLab does not trust), attributes hide
    the dark picture, and the light one is read on its own white paper.
    """
    said = html.escape(description)
    images = (
        f'<img class="labkit-on-light" style="width:100%;border-radius:4px" alt="{said}" '
        f'src="data:image/png;base64,{base64.b64encode(light).decode()}">'
    )
    if dark is not None:
        images += (
            f'<img class="labkit-on-dark" hidden width="0" height="0" alt="{said}" '
            f'src="data:image/png;base64,{base64.b64encode(dark).decode()}">{FOLLOW_THE_PAGE}'
        )
    below = f'<figcaption style="overflow-wrap:anywhere">{caption}</figcaption>' if caption else ""
    return (
        f'<figure class="labkit-themed" style="margin:0;max-width:{width}px">{images}{below}'
        "</figure>"
    )


def _contents(figure: Figure) -> list[object]:
    """What a figure shows, but for its colours and what is laid out when it is drawn."""
    texts = [text.get_text() for text in figure.texts]
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return [
        tuple(figure.get_size_inches()), texts, legends,
        *(
            (
                [axes.get_title(place) for place in ("left", "center", "right")],
                axes.get_xlabel(), axes.get_ylabel(), axes.get_xlim(), axes.get_ylim(),
                [type(child) for child in axes.get_children()],
                [text.get_text() for text in axes.texts],
            )
            for axes in figure.axes
        ),
    ]  # fmt: skip
