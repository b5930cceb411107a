"""What labkit's figures of tables share: paper, axes and legends.

Nothing here touches matplotlib's global style: everything is said to each figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.errors import LabkitError, shown
from labkit.figures.fonts import drawable
from labkit.figures.palette import MANY, MODULE_COLORS, Theme, theme_for
from labkit.surveys.adding_up import OUTSIDE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(
    size: tuple[float, float], dark: bool, rows: int = 1, columns: int = 1, share: bool = False
) -> tuple[Figure, list[Axes]]:
    """Make a figure with its axes in one style, row by row."""
    from labkit.figures.shown_figure import ShownFigure

    theme = theme_for(dark)
    figure = ShownFigure(figsize=size, facecolor=theme.paper)
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    panels = figure.subplots(
        rows, columns, squeeze=False, sharex=share, sharey=share and columns > 1
    )
    for axes in panels.flat:
        axes.set_facecolor(theme.paper)
        axes.tick_params(colors=theme.ink, labelsize=9, which="both")
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(theme.ink)
            label.set_fontsize(10)
        for side, spine in axes.spines.items():
            spine.set_color(theme.ink)
            spine.set_linewidth(0.8)
            spine.set_visible(side in ("left", "bottom"))
    return figure, list(panels.flat)


def grid_of(table: pd.DataFrame, column: str) -> tuple[np.ndarray[Any, Any], list[str], list[str]]:
    """A column as a matrix, modules × layers; layers without a row of their own included."""
    import pandas as pd
    from pandas.api.types import is_numeric_dtype

    if column not in table or not is_numeric_dtype(table[column]):
        numbers = [str(name) for name in table if is_numeric_dtype(table[name])]
        raise LabkitError(
            f"the table has no column of numbers {shown(repr(column))}; it has {', '.join(numbers)}"
        )
    modules = list(dict.fromkeys(table["module"]))
    inside = table["layer"].dropna()
    layers = [str(layer) for layer in range(int(inside.max()) + 1)] if len(inside) else []
    if table["layer"].isna().any():
        layers.append(OUTSIDE)
    grid = np.full((len(modules), len(layers)), np.nan)
    for layer, module, value in zip(table["layer"], table["module"], table[column], strict=True):
        name = OUTSIDE if pd.isna(layer) else str(layer)
        grid[modules.index(module), layers.index(name)] = value
    return grid, layers, modules


def module_colors(modules: Sequence[str]) -> dict[str, Any]:
    """Give each module its colour."""
    from matplotlib import colormaps

    if len(modules) <= len(MODULE_COLORS):
        return dict(zip(modules, MODULE_COLORS, strict=False))
    many = colormaps[MANY](np.linspace(0, 1, len(modules)))
    return {module: tuple(color) for module, color in zip(modules, many, strict=True)}


def layer_axis(axes: Axes, layers: Sequence[str] = ()) -> None:
    """Label the axis of layers; `layers` only where one of them is "outside"."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("layer")
    inside = len(layers) - (OUTSIDE in layers)
    if OUTSIDE in layers:
        step = max(1, round(inside / 8))
        ticks = [layer for layer in range(0, inside, step) if layer < inside - 1]
        axes.set_xticks([*ticks, inside], [*map(str, ticks), "out"])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def legend_below(figure: Figure, axes: Axes, theme: Theme) -> None:
    """Put the legend of some axes under the figure."""
    handles, _ = axes.get_legend_handles_labels()
    legend_of(figure, handles, theme)


def legend_of(figure: Figure, handles: list[Any], theme: Theme) -> None:
    """Put a legend under the figure."""
    legend = figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(7, len(handles)),
        frameon=False,
        fontsize=9,
        labelcolor=theme.ink,
        columnspacing=1.2,
        handlelength=1.4,
        handletextpad=0.5,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def style_bar(bar: Any, label: str, theme: Theme) -> None:
    """Put a colour bar into the figure's style."""
    bar.set_label(label, color=theme.ink, fontsize=9)
    bar.ax.tick_params(colors=theme.ink, labelsize=8)
    bar.outline.set_visible(False)


def safe_name(name: str) -> str:
    """Make a name safe to draw, and short."""
    # A name from a file may hold dollar signs, which would start a formula.
    return drawable(shown(name, 30)).replace("$", r"\$")
