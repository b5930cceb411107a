"""The picture of a gradient merge, as published merges show it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING

from labkit.errors import LabkitError, shown
from labkit.figures.fonts import drawable
from labkit.figures.palette import ADAPTER_COLOR, BASE_COLOR, INK, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from labkit.gradients.gradient import Gradient


OTHERS = "all other modules"
"""What a gradient is for where some modules have gradients of their own."""
LARGEST_DRAWN = 1e100
"""The largest weight that is drawn: matplotlib squares what it scales."""


def gradient_picture(
    gradient: Gradient,
    base_name: str = "base model",
    adapter_name: str = "LoRA",
    weights_for: Mapping[str, Gradient] | None = None,
) -> Figure:
    """The picture of a gradient merge: how much of the LoRA each layer gets.

    One bar for each layer, bars touching, layer 0 at the left; light blue is the base model and
    light green the LoRA. The picture brings its own white paper, so it reads the same in a dark
    notebook as in a light one.

    Args:
        gradient: the layer weights.
        base_name: the base model's name, for the legend.
        adapter_name: the LoRA's name, for the legend.
        weights_for: module pattern -> the gradient of those modules, each in a panel of its own
            below that of all others.

    Raises:
        LabkitError: a weight that is too large to be drawn.
    """
    from matplotlib.patches import Patch

    from labkit.figures.shown_figure import ShownFigure

    panels = {OTHERS: gradient, **weights_for} if weights_for else {"": gradient}
    count = len(panels)
    figure = ShownFigure(figsize=(5, 4.4 if count == 1 else 1.2 + 2.4 * count), facecolor=PAPER)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    for number, (name, each) in enumerate(panels.items()):
        title = f"{_label(name, 'modules')} · " if name else ""
        axes = figure.add_subplot(count, 1, number + 1, facecolor=BASE_COLOR)
        _draw(axes, each, title)
        if number < count - 1:
            axes.set_xlabel("")
    names = [_label(base_name, "base model"), _label(adapter_name, "LoRA")]
    legend = figure.legend(
        handles=[
            Patch(facecolor=color, edgecolor=INK, linewidth=0.8, label=name)
            for color, name in zip((BASE_COLOR, ADAPTER_COLOR), names, strict=True)
        ],
        loc="outside lower center",
        ncols=2 if sum(map(_width, names)) <= 36 else 1,
        frameon=False,
        fontsize=12,
        labelcolor=INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a model's name may hold dollar signs
    return figure


def _draw(axes: Axes, gradient: Gradient, title: str) -> None:
    if max(map(abs, gradient)) > LARGEST_DRAWN:
        raise LabkitError(
            f"a layer weight of {max(gradient, key=abs):g} cannot be drawn; expected at most "
            f"{LARGEST_DRAWN:g} in size"
        )
    from matplotlib.ticker import MaxNLocator

    layers = len(gradient)
    # One outline for all bars: separate rectangles would show hairlines where they touch.
    edges = [layer - 0.5 for layer in range(layers + 1)]
    axes.stairs(list(gradient), edges, baseline=0, fill=True, facecolor=ADAPTER_COLOR, linewidth=0)
    axes.stairs(list(gradient), edges, baseline=0, color=INK, linewidth=0.8)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(min(0.0, *gradient), max(1.0, *gradient))
    if min(gradient) < 0:
        axes.axhline(0, color=INK, linewidth=1.2)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.set_title(
        f"{title}mean weight {gradient.mean:.2f}", fontsize=13, color=INK, parse_math=False
    )
    axes.set_xlabel("layer", fontsize=12, color=INK)
    axes.set_ylabel("layer weight", fontsize=12, color=INK)
    axes.tick_params(labelsize=11, colors=INK)


def _label(name: str, otherwise: str) -> str:
    """A name for the legend, or what it names where no font on this machine has its letters."""
    label = drawable(shown(name, 44))
    if label != shown(name, 44) and not any(map(str.isalnum, label)):
        return otherwise
    if _width(label) > max(44, len(label)):
        while _width(label) > 42:
            label = label[:-1]
        label += "…"
    return label


def _width(name: str) -> int:
    """How many letters of the usual width a name is wide; Chinese ones are twice as wide."""
    return len(name) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in name)
