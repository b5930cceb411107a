"""Figures of surveys: each a function of a table, each a `matplotlib.figure.Figure`.

Pyplot and its global style stay as they are. Every figure brings its own paper, light or dark, so
that it reads in any notebook. Categories have the colours of Okabe and Ito (Color Universal Design,
2008) and ordered values the colormap cividis, both made for colour-blind readers; thin edges keep
bars apart where a printer has no colour. Light blue is the base model and light green the LoRA, as
in the gradient's picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from labkit.errors import LabkitError, shown
from labkit.figures.palette import (
    ADAPTER_COLOR,
    BASE_COLOR,
    INK,
    SEQUENTIAL,
    SIGNED,
    theme_for,
)
from labkit.figures.papers import follows_theme
from labkit.figures.style import (
    grid_of,
    layer_axis,
    legend_below,
    legend_of,
    module_colors,
    new_figure,
    safe_name,
    style_bar,
)
from labkit.gradients.gradient import Gradient
from labkit.surveys.adding_up import OUTSIDE, totals
from labkit.surveys.columns import column_named
from labkit.surveys.overlaps import TOGETHER

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@follows_theme
def norms_by_layer(table: pd.DataFrame, column: str = "norm", *, dark: bool = False) -> Figure:
    """Draw each layer's norm as a bar, stacked by module.

    Norms of modules do not add, their squares do. A bar is as high as the layer's norm `√Σ‖·‖²`,
    and each module has the part of the bar that it has of the squares.

    Args:
        table: a survey.
        column: "norm", or "weighted_norm" of a survey with weights.
        dark: on dark paper.
    """
    figure, (axes,) = new_figure((7.2, 3.6), dark)
    _stack(axes, table, column)
    axes.set_ylabel(column_named(column).title)
    legend_below(figure, axes, theme_for(dark))
    return figure


@follows_theme
def heatmap(table: pd.DataFrame, column: str = "relative_norm", *, dark: bool = False) -> Figure:
    """Draw any column of a survey as a map: layers from left to right, modules from top to bottom.

    Where a layer has no such module, the paper shows. Columns with values of both signs get a scale
    of two colours around 0.

    Args:
        table: a survey, or what `labkit.survival` or `labkit.overlap` gave (of one pair).
        column: a column of numbers.
        dark: on dark paper.
    """
    _, _, modules = grid_of(table, column)
    figure, (axes,) = new_figure((7.2, 1.4 + 0.27 * len(modules)), dark)
    _map(figure, axes, table, column, dark)
    return figure


@follows_theme
def singular_values(table: pd.DataFrame, *, relative: bool = True, dark: bool = False) -> Figure:
    """Draw the singular values of every delta: a panel for each module, a line for each layer.

    Args:
        table: what `labkit.spectra` gave.
        relative: in parts of the largest, `σ_i/σ_1`; else as they are.
        dark: on dark paper.

    Raises:
        LabkitError: another table, such as a survey.
    """
    import pandas as pd
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    if not {"layer", "module", "index", "value", "relative"} <= set(table.columns):
        raise LabkitError(
            "the table has no singular values; make it with spectra(base, adapter), "
            f"found the columns {', '.join(map(shown, table.columns))}"
        )
    if table.empty:
        raise LabkitError("the table is empty: no change of this adapter is a product of factors")
    theme = theme_for(dark)
    modules = list(dict.fromkeys(table["module"]))
    columns = min(4, len(modules))
    rows = math.ceil(len(modules) / columns)
    figure, panels = new_figure((7.2, 0.6 + 1.75 * rows), dark, rows, columns, share=True)
    last = int(table["layer"].max()) if table["layer"].notna().any() else 0
    depth = Normalize(0, max(last, 1))
    colors = colormaps[theme.lines]
    for axes, module in zip(panels, modules, strict=False):
        for layer, line in table[table["module"] == module].groupby("layer", dropna=False):
            outside = bool(pd.isna(layer))
            axes.plot(
                line["index"],
                line["relative" if relative else "value"],
                color=theme.ink if outside else colors(depth(layer)),
                linewidth=1,
                alpha=0.85,
                label=OUTSIDE if outside else f"layer {layer}",
            )
        axes.set_yscale("log")
        axes.set_title(safe_name(module), fontsize=10, color=theme.ink)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
        axes.grid(True, color=theme.grid, linewidth=0.6)
    for axes in panels[len(modules) :]:
        axes.remove()
    figure.supxlabel("index of the singular value", fontsize=10, color=theme.ink)
    label = "σᵢ / σ₁" if relative else "σᵢ"
    figure.supylabel(label, fontsize=10, color=theme.ink)
    if last:
        bar = figure.colorbar(
            ScalarMappable(depth, colors), ax=panels[: len(modules)], shrink=0.9, pad=0.015
        )
        style_bar(bar, "layer", theme)
    return figure


@follows_theme
def gradient_over_norms(table: pd.DataFrame, *, dark: bool = False) -> Figure:
    """Draw a gradient over what it weighs: how much of each layer's change arrives.

    The bar of a layer is its `‖ΔW‖`, light blue where the base model stays and light green up to
    `‖wΔW‖`; the line is the layer weight, on the axis at the right.

    Args:
        table: a survey with weights.
        dark: on dark paper.

    Raises:
        LabkitError: a survey without weights.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if "weighted_norm" not in table:
        raise LabkitError("the table has no weights; make it with survey(base, adapter, weights)")
    theme = theme_for(dark)
    layers = totals(table[table["layer"].notna()], "layer")
    figure, (axes,) = new_figure((7.2, 3.6), dark)
    where = layers["layer"].astype(int)
    axes.bar(where, layers["norm"], width=1, color=BASE_COLOR, label="norm")
    axes.bar(where, layers["weighted_norm"], width=1, color=ADAPTER_COLOR, label="weighted norm")
    # One outline in place of an edge for each bar: edges of touching bars would be drawn twice.
    edges = np.arange(where.min(), where.max() + 2) - 0.5
    heights = layers.set_index(where)["norm"].reindex(range(where.min(), where.max() + 1))
    axes.stairs(heights.fillna(0).to_numpy(), edges, color=INK, linewidth=0.6)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.08 * max(layers["norm"].max(), layers["weighted_norm"].max()) or 1)
    layer_axis(axes)
    axes.set_ylabel(column_named("norm").title)
    right = axes.twinx()
    weights = layers.set_index(where)["weight"].reindex(heights.index)
    line_color = theme.ink
    right.stairs(
        weights.to_numpy(), edges, baseline=None, color=theme.paper, linewidth=4, alpha=0.8
    )
    right.stairs(
        weights.to_numpy(), edges, baseline=None, color=line_color, linewidth=1.8, label="weight"
    )
    low, high = min(0.0, weights.min()), max(1.0, weights.max())
    right.set_ylim(low - 0.02 * (low < 0), high * 1.08)
    right.set_ylabel("layer weight", color=theme.ink, fontsize=10)
    right.tick_params(colors=theme.ink, labelsize=9)
    for spine in right.spines.values():
        spine.set_visible(False)
    whole, arrives = math.hypot(*layers["norm"]), math.hypot(*layers["weighted_norm"])
    axes.set_title(
        f"mean weight {layers['weight'].mean():.2f}, "
        f"effective norm {arrives:.3g} of {whole:.3g} ({arrives / whole if whole else 0:.0%})",
        fontsize=10,
        color=theme.ink,
    )
    legend_of(
        figure,
        [
            Patch(facecolor=BASE_COLOR, edgecolor=INK, linewidth=0.6, label="‖ΔW‖ left out"),
            Patch(facecolor=ADAPTER_COLOR, edgecolor=INK, linewidth=0.6, label="‖wΔW‖ merged"),
            Line2D([], [], color=line_color, linewidth=1.8, label="layer weight w"),
        ],
        theme,
    )
    return figure


@follows_theme
def survival_map(table: pd.DataFrame, *, dark: bool = False) -> Figure:
    """Draw what rounding leaves: elements that change, and the part of the change that is lost.

    Args:
        table: what `labkit.survival` gave, or a survey with weights and a base.
        dark: on dark paper.

    Raises:
        LabkitError: a table without those columns.
    """
    if "lost" not in table:
        raise LabkitError(
            "the table does not say what survives rounding; make it with survival(base, adapter, "
            "weights)"
        )
    _, _, modules = grid_of(table, "lost")
    figure, panels = new_figure((7.2, 1.5 + 0.5 * len(modules)), dark, 2, 1, share=True)
    seen = table.copy()
    # A layer of weight 0 asks for nothing: its unchanged elements are no loss.
    seen["changed"] = seen["changed"].where(seen["lost"].notna())
    _map(figure, panels[0], seen, "changed", dark, limits=(0, 1))
    # At least up to a fifth, so that a small loss does not look like a large one.
    _map(figure, panels[1], seen, "lost", dark, limits=(0, max(0.2, float(seen["lost"].max()))))
    panels[0].set_xlabel("")
    dtypes = ", ".join(sorted(set(table["dtype"].dropna().astype(str))))
    theme = theme_for(dark)
    title = f"what survives rounding to {dtypes}"
    if seen["lost"].isna().any():
        title += " (empty: weight 0)"
    panels[0].set_title(title, fontsize=10, color=theme.ink)
    return figure


@follows_theme
def overlap_by_layer(table: pd.DataFrame, *, dark: bool = False) -> Figure:
    """Draw where two adapters pull together or apart: the cosine, and the spans they share.

    Above, the cosine of their deltas, a line for each module; within the grey band they do not
    meet. Below, the overlap of the top singular spans, as the mean over the modules, with what
    chance would give.

    Args:
        table: what `labkit.overlap` gave, of one pair of adapters.
        dark: on dark paper.

    Raises:
        LabkitError: a table of several pairs.
    """
    pairs = list(dict.fromkeys(zip(table["a"], table["b"], strict=True)))
    if len(pairs) != 1:
        raise LabkitError(
            f"this figure shows one pair of adapters, found {len(pairs)}; choose one with "
            "table[(table.a == …) & (table.b == …)]"
        )
    theme = theme_for(dark)
    figure, (above, below) = new_figure((7.2, 4.8), dark, 2, 1, share=True)
    inside = table[table["layer"].notna()]
    for module, color in module_colors(list(dict.fromkeys(inside["module"]))).items():
        line = inside[inside["module"] == module]
        above.plot(
            line["layer"].astype(int), line["cosine"], color=color, linewidth=1.4, marker="o",
            markersize=2.5, label=safe_name(module),
        )  # fmt: skip
    above.axhline(0, color=theme.ink, linewidth=0.8)
    above.axhspan(-TOGETHER, TOGETHER, color=theme.grid, alpha=0.5, linewidth=0)
    limit = max(1.5 * TOGETHER, 1.1 * float(inside["cosine"].abs().max()))
    above.set_ylim(-limit, limit)
    above.set_ylabel("cosine ⟨ΔA, ΔB⟩")
    for height, word, side in ((0.97, "together", "top"), (0.03, "apart", "bottom")):
        above.text(
            0.995, height, word, transform=above.transAxes, ha="right", va=side,
            fontsize=9, style="italic", color=theme.ink,
        )  # fmt: skip
    numbers = ["left_overlap", "right_overlap", "left_chance", "right_chance"]
    means = inside.groupby("layer")[numbers].mean()
    where = means.index.astype(int)
    for side, style, what in (("left", "-", "written (left)"), ("right", "--", "read (right)")):
        color = theme.ink
        below.plot(where, means[f"{side}_overlap"], style, color=color, linewidth=1.6, label=what)
        below.plot(
            where, means[f"{side}_chance"], style, color=color, linewidth=0.8, alpha=0.5,
            label=f"{what}, by chance",
        )  # fmt: skip
    below.set_ylim(0, min(1.0, 1.15 * float(means.max().max())))
    below.set_ylabel("overlap of spans")
    below.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, fontsize=8, frameon=False,
        labelcolor=theme.ink,
    )  # fmt: skip
    for axes in (above, below):
        axes.grid(True, color=theme.grid, linewidth=0.6)
    layer_axis(below)
    above.set_title(
        f"{safe_name(pairs[0][0])} and {safe_name(pairs[0][1])}", fontsize=10, color=theme.ink
    )
    legend_below(figure, above, theme)
    return figure


@follows_theme
def side_by_side(
    first: Gradient | pd.DataFrame,
    second: Gradient | pd.DataFrame,
    names: Sequence[str] = ("", ""),
    *,
    dark: bool = False,
) -> Figure:
    """Draw two gradients, or the norms of two adapters, on one scale.

    Args:
        first: a gradient, or a survey.
        second: another of the same kind.
        names: what to write above each; a survey knows its adapter's name.
        dark: on dark paper.
    """
    theme = theme_for(dark)
    figure, panels = new_figure((7.2, 3.4), dark, 1, 2, share=True)
    tops: list[float] = []
    for axes, one, name in zip(panels, (first, second), names, strict=True):
        if isinstance(one, Gradient):
            edges = np.arange(len(one) + 1) - 0.5
            axes.set_facecolor(BASE_COLOR)
            axes.stairs(
                list(one), edges, baseline=0, fill=True, facecolor=ADAPTER_COLOR, linewidth=0
            )
            axes.stairs(list(one), edges, baseline=0, color=INK, linewidth=0.8)
            axes.set_xlim(edges[0], edges[-1])
            layer_axis(axes)
            title = f"mean weight {one.mean:.2f}"
            title = f"{safe_name(name)}, {title}" if name else title
        else:
            _stack(axes, one, "norm")
            tops.append(axes.get_ylim()[1])
            title = safe_name(name or str(one.attrs.get("adapter", "")))
        axes.set_title(title, fontsize=10, color=theme.ink)
    gradients = [one for one in (first, second) if isinstance(one, Gradient)]
    if gradients:
        weights = [weight for one in gradients for weight in one]
        panels[0].set_ylim(min(0.0, *weights), max(1.0, *weights))
        panels[0].set_ylabel("layer weight")
    else:
        panels[0].set_ylim(0, max(tops))
        panels[0].set_ylabel(column_named("norm").title)
        legend_below(figure, panels[0], theme)
    return figure


def _stack(axes: Axes, table: pd.DataFrame, column: str) -> None:
    if column not in table:
        raise LabkitError(f"the table has no column {shown(repr(column))}; give survey weights")
    grid, layers, modules = grid_of(table, column)
    squares = np.nan_to_num(grid) ** 2
    whole = squares.sum(axis=0)
    heights = np.sqrt(whole)
    parts = squares / np.where(whole > 0, whole, 1) * heights
    bottom = np.zeros(len(layers))
    where = np.arange(len(layers))
    for part, (module, color) in zip(parts, module_colors(modules).items(), strict=True):
        axes.bar(
            where, part, bottom=bottom, width=1, color=color, edgecolor=axes.get_facecolor(),
            linewidth=0.4, label=safe_name(module),
        )  # fmt: skip
        bottom += part
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_ylim(0, 1.05 * heights.max() or 1)
    layer_axis(axes, layers)


def _map(
    figure: Figure,
    axes: Axes,
    table: pd.DataFrame,
    column: str,
    dark: bool,
    limits: tuple[float, float] | None = None,
) -> None:
    from matplotlib.ticker import PercentFormatter

    theme = theme_for(dark)
    shown_column = column_named(column)
    grid, layers, modules = grid_of(table, column)
    signed = bool(np.nanmin(grid, initial=0) < 0)
    if limits is None:
        largest = float(np.nanmax(np.abs(grid), initial=0)) or 1.0
        limits = (-largest if signed else shown_column.scale_from, largest)
    image = axes.imshow(
        np.ma.masked_invalid(grid),
        aspect="auto",
        interpolation="nearest",
        cmap=SIGNED if signed else SEQUENTIAL,
        vmin=limits[0],
        vmax=limits[1],
    )
    axes.set_facecolor(theme.grid)
    axes.set_yticks(range(len(modules)), [safe_name(module) for module in modules])
    axes.tick_params(axis="y", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=12)
    if shown_column.per_cent:
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    style_bar(bar, shown_column.title, theme)
    layer_axis(axes, layers)
