"""Figures as pictures: the bytes of a file, or a file."""

from __future__ import annotations

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
