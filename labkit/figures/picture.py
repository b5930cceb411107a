"""Every matplotlib figure of labkit.

Each function returns a `matplotlib.figure.Figure` that pyplot knows nothing of: nothing global is
changed, nothing has to be closed, and the figure shows itself when it is a cell's last line.
"""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import LabkitError, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from labkit.gradients.gradient import Gradient

BASE_COLOR = "#89b4fa"
"""Light blue: the base model, as in the pictures of published gradient merges."""
ADAPTER_COLOR = "#a6e3a1"
"""Light green: the LoRA."""
INK = "#1e1e2e"
PAPER = "#ffffff"


def gradient_picture(
    gradient: Gradient, base_name: str = "base model", adapter_name: str = "LoRA"
) -> Figure:
    """The picture of a gradient merge: how much of the LoRA each layer gets.

    One bar for each layer, bars touching, layer 0 at the left; light blue is the base model and
    light green the LoRA. The picture brings its own white paper, so it reads the same in a dark
    notebook as in a light one.

    Args:
        gradient: the layer weights.
        base_name: the base model's name, for the legend.
        adapter_name: the LoRA's name, for the legend.
    """
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    from labkit.figures.shown_figure import ShownFigure

    layers = len(gradient)
    figure = ShownFigure(figsize=(5, 4.4), facecolor=PAPER)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    axes = figure.add_subplot(facecolor=BASE_COLOR)
    # One outline for all bars: separate rectangles would show hairlines where they touch.
    edges = [layer - 0.5 for layer in range(layers + 1)]
    axes.stairs(list(gradient), edges, baseline=0, fill=True, facecolor=ADAPTER_COLOR, linewidth=0)
    axes.stairs(list(gradient), edges, baseline=0, color=INK, linewidth=0.8)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(min(0.0, *gradient), max(1.0, *gradient))
    if min(gradient) < 0:
        axes.axhline(0, color=INK, linewidth=1.2)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.set_title(f"mean weight {gradient.mean:.2f}", fontsize=13, color=INK)
    axes.set_xlabel("layer", fontsize=12, color=INK)
    axes.set_ylabel("layer weight", fontsize=12, color=INK)
    axes.tick_params(labelsize=11, colors=INK)
    names = [shown(base_name, 44), shown(adapter_name, 44)]
    legend = figure.legend(
        handles=[
            Patch(facecolor=color, edgecolor=INK, linewidth=0.8, label=name)
            for color, name in zip((BASE_COLOR, ADAPTER_COLOR), names, strict=True)
        ],
        loc="outside lower center",
        ncols=2 if sum(map(len, names)) <= 36 else 1,
        frameon=False,
        fontsize=12,
        labelcolor=INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a model's name may hold dollar signs
    return figure


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
