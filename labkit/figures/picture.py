"""Figures as pictures: the bytes of a file, a file, or HTML for a notebook's cell."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import LabkitError, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def picture_bytes(figure: Figure, kind: str = "png", pixels: int = 1600) -> bytes:
    """A figure as a file's bytes, the same bytes for the same figure every time.

    Args:
        figure: what to draw.
        kind: "png" or "svg".
        pixels: width of a PNG, in pixels.
    """
    from matplotlib import rc_context

    buffer = io.BytesIO()
    # A fixed salt and no date: two runs of one merge write the same picture.
    with rc_context({"svg.hashsalt": "labkit", "svg.fonttype": "path"}):
        figure.savefig(
            buffer,
            format=kind,
            dpi=pixels / figure.get_figwidth(),
            facecolor=figure.get_facecolor(),
            metadata={"Date": None} if kind == "svg" else {"Software": None},
        )
    return buffer.getvalue()


def save_picture(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG or SVG, whichever the file's name ends in.

    Raises:
        LabkitError: another ending, or a folder that does not exist or cannot be written.
    """
    target = Path(path)
    kind = target.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise LabkitError(
            f"a picture is written as .png or .svg, found {shown(target.name)!r}; "
            "change the ending of the file's name"
        )
    try:
        target.write_bytes(picture_bytes(figure, kind))
    except OSError as error:
        raise LabkitError(
            f"cannot write the picture {shown(target)}: {error.strerror}; "
            "choose a folder that exists and can be written"
        ) from error
    return target


def picture_html(figure: Figure, description: str, caption: str) -> str:
    """A figure and a caption for a notebook cell.

    Args:
        figure: what to draw.
        description: the image's text for those who cannot see it; escaped here.
        caption: HTML under the picture, already escaped.
    """
    data = base64.b64encode(picture_bytes(figure, pixels=1000)).decode()
    return (
        f'<figure style="margin:0;max-width:500px"><img style="width:100%;border-radius:4px" '
        f'alt="{html.escape(description)}" src="data:image/png;base64,{data}">'
        f'<figcaption style="overflow-wrap:anywhere">{caption}</figcaption></figure>'
    )
