"""Figures of what was measured from a model's behaviour: each a function of a table.

Green makes a text likelier and vermilion less likely; grey is what an interval at 95 % cannot tell
from 0. They measure nothing, and leave pyplot and its global style alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.errors import LabkitError, shown
from labkit.figures.palette import (
    ADAPTER_COLOR,
    BASE_COLOR,
    EFFECTS,
    HARMS,
    HELPS,
    INK,
    MINE,
    UNSURE,
    Theme,
    theme_for,
)
from labkit.figures.papers import follows_theme
from labkit.figures.style import (
    grid_of,
    layer_axis,
    legend_of,
    new_figure,
    safe_name,
    style_bar,
)
from labkit.surveys.adding_up import OUTSIDE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EFFECT_COLUMNS = ("adapter", "layer", "module", "text", "metric", "estimate", "low", "high")
LABELS = {
    "dnll_dw": "∂NLL/∂w, nats per token",
    "nll_change": "change of the NLL, nats per token",
}
"""What an effect's metric is called on an axis."""
AXES_POINTS = (410.0, 300.0)
"""The size of the axes of `benefit_against_harm`, about."""
NAME_POINTS = 11.0
"""How far apart a number and its neighbours are there, at least."""
COMPARED = {
    "nll": "NLL less the base's, nats per token",
    "kl": "KL(base ‖ merge), nats per token",
    "exact_match": "exact match, share of prompts",
}
"""What an evaluation's metric is called on an axis."""


@follows_theme
def effects_by_layer(table: pd.DataFrame, *, dark: bool = False) -> Figure:
    """Draw what each layer does to a text as a bar with its interval, a panel for each text.

    Below 0 a layer makes the text likelier: it helps. Bars are grey where the interval includes 0.

    Args:
        table: what `labkit.attribution`, `labkit.sensitivity` or `labkit.ablation` gave, by layer.
        dark: on dark paper.

    Raises:
        LabkitError: another table, or rows by module.
    """
    from matplotlib.patches import Patch

    panels = _panels(table)
    for _, rows in panels:
        if rows["layer"].duplicated().any():
            raise LabkitError(
                "the table has several rows for a layer; measure by layer, or draw effects_map"
            )
    theme = theme_for(dark)
    figure, every = new_figure((7.2, 0.9 + 2.3 * len(panels)), dark, len(panels), 1, share=True)
    # One scale, so that benefit and harm can be compared.
    bottom, top = min(0.0, float(table["low"].min())), max(0.0, float(table["high"].max()))
    room = 0.05 * (top - bottom) or 1.0
    for axes, (title, rows) in zip(every, panels, strict=True):
        _bars(axes, rows, theme)
        axes.set_ylim(bottom - room, top + room)
        sure = int(_sure(rows).sum())
        total = float(rows["estimate"].sum())
        said = f"{title}: {sure} of {len(rows)} intervals leave out 0"
        if rows["metric"].iloc[0] == "nll_change" and "attribution" in rows["method"].iloc[0]:
            said += f", all layers together {total:+.3f}".replace("-", "−")
        axes.set_title(said, fontsize=10, color=theme.ink, loc="left")
        axes.set_xlabel("")
    layer_axis(every[-1], _layer_names(table))
    count = len(panels[0][1])
    figure.supylabel(LABELS[table["metric"].iloc[0]], fontsize=10, color=theme.ink)
    legend_of(
        figure,
        [
            Patch(color=HELPS, label="helps"),
            Patch(color=HARMS, label="harms"),
            Patch(color=UNSURE, label="interval includes 0"),
            Patch(
                alpha=0, label=f"of {count} intervals at 95 %, {0.05 * count:.2g} miss by chance"
            ),
        ],
        theme,
    )
    return figure


@follows_theme
def effects_map(table: pd.DataFrame, *, dark: bool = False) -> Figure:
    """Draw what each layer's modules do to a text: layers × modules, a panel for each text.

    A dot is on what the interval cannot tell from 0.

    Args:
        table: what `labkit.attribution` or `labkit.sensitivity` gave, with `by="kind"`.
        dark: on dark paper.

    Raises:
        LabkitError: another table, or rows of whole layers.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    panels = _panels(table)
    if (table["module"] == "").all():
        raise LabkitError('the table has no modules; measure with by="kind"')
    theme = theme_for(dark)
    modules = len(set(table["module"]))
    size = (7.2, 0.5 + (0.5 + 0.25 * modules) * len(panels))
    figure, every = new_figure(size, dark, len(panels), 1, share=True)
    # One module that does far more than all others would leave these without colour.
    sizes = table["estimate"].abs()
    largest = float(max(sizes.quantile(0.99), sizes.max() / 4)) or 1.0
    image: Any = None
    for axes, (title, rows) in zip(every, panels, strict=True):
        grid, layers, names = grid_of(rows, "estimate")
        image = axes.imshow(
            np.ma.masked_invalid(grid), aspect="auto", interpolation="nearest", cmap=EFFECTS,
            vmin=-largest, vmax=largest,
        )  # fmt: skip
        axes.set_facecolor(theme.grid)
        unsure = rows[~_sure(rows)]
        where = [
            (layers.index(OUTSIDE if outside else str(layer)), names.index(module))
            for layer, module, outside in zip(
                unsure["layer"], unsure["module"], unsure["layer"].isna(), strict=True
            )
        ]
        axes.scatter(
            [x for x, _ in where], [y for _, y in where], s=3, color=INK, alpha=0.55, linewidths=0
        )
        axes.set_yticks(range(len(names)), [safe_name(name) for name in names])
        axes.tick_params(axis="y", length=0)
        axes.set_title(title, fontsize=10, color=theme.ink, loc="left")
        for spine in axes.spines.values():
            spine.set_visible(False)
    layer_axis(every[-1], _layer_names(table))
    beyond = "both" if float(sizes.max()) > largest else "neither"
    bar = figure.colorbar(image, ax=every, pad=0.015, aspect=24, extend=beyond, extendfrac=0.02)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _signed(value)))
    style_bar(bar, LABELS[table["metric"].iloc[0]], theme)
    for height, word, side in ((1.04, "harms", "bottom"), (-0.04, "helps", "top")):
        bar.ax.text(
            0.5, height, word, transform=bar.ax.transAxes, ha="center", va=side, fontsize=8,
            style="italic", color=theme.ink,
        )  # fmt: skip
    legend_of(
        figure,
        [
            Line2D(
                [],
                [],
                linestyle="",
                marker="o",
                markersize=2.5,
                color=theme.ink,
                label="interval at 95 % includes 0",
            )
        ],
        theme,
    )
    return figure


@follows_theme
def benefit_against_harm(
    table: pd.DataFrame, target: str | None = None, keep: str | None = None, *, dark: bool = False
) -> Figure:
    """Draw a dot for each layer: what it gives one text, and what it costs another.

    Right is benefit on the target, up is harm to what is to stay as it is; the best layers lie
    at the lower right. Lines are the intervals; dots are grey where both include 0.

    Args:
        table: what `labkit.attribution`, `labkit.sensitivity` or `labkit.ablation` gave on two
            texts or more, by layer, of one adapter.
        target: the name of the text that the merge is for; the table's first if left out.
        keep: the name of the text that is to stay as it is; the table's second if left out.
        dark: on dark paper.

    Raises:
        LabkitError: another table, a text that it does not have, or several adapters.
    """
    import pandas as pd
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    _panels(table)
    names = list(dict.fromkeys(table["text"]))
    chosen = [target or names[0], keep or names[min(1, len(names) - 1)]]
    if not set(chosen) <= set(names) or chosen[0] == chosen[1]:
        raise LabkitError(
            f"this figure takes two texts of the table, which has {', '.join(map(shown, names))}"
        )
    right, up = (table[table["text"] == name].set_index("layer") for name in chosen)
    if right.index.duplicated().any() or len(set(table["adapter"])) > 1:
        raise LabkitError(
            "this figure has one dot for each layer of one adapter; measure by layer, and choose "
            "an adapter with table[table.adapter == …]"
        )
    theme = theme_for(dark)
    figure, (axes,) = new_figure((7.2, 5.2), dark)
    layers = [layer for layer in right.index if layer in up.index]
    right, up = right.loc[layers], up.loc[layers]
    x, y = -right["estimate"].to_numpy(float), up["estimate"].to_numpy(float)
    axes.axhline(0, color=theme.ink, linewidth=0.8)
    axes.axvline(0, color=theme.ink, linewidth=0.8)
    axes.errorbar(
        x, y,
        xerr=(right["high"] - right["estimate"], right["estimate"] - right["low"]),
        yerr=(up["estimate"] - up["low"], up["high"] - up["estimate"]),
        fmt="none", ecolor=UNSURE, elinewidth=0.7, alpha=0.4, zorder=1,
    )  # fmt: skip
    named = [OUTSIDE if pd.isna(layer) else str(layer) for layer in layers]
    depth = Normalize(0, max([1, *(int(name) for name in named if name != OUTSIDE)]))
    colors = colormaps[theme.lines]
    sure = (_sure(right) | _sure(up)).to_numpy()
    for number, (name, told) in enumerate(zip(named, sure, strict=True)):
        color = theme.ink if name == OUTSIDE else colors(depth(int(name)))
        axes.plot(
            x[number], y[number], "o", markersize=6, color=color if told else UNSURE,
            markeredgecolor=theme.ink, markeredgewidth=0.4, zorder=3,
        )  # fmt: skip
    axes.margins(0.06)
    _label(axes, x, y, named, theme)
    axes.grid(True, color=theme.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"benefit: {safe_name(chosen[0])} becomes likelier, nats per token →")
    axes.set_ylabel(f"harm: {safe_name(chosen[1])} becomes less likely →")
    axes.set_title(
        f"what each layer of {safe_name(table['adapter'].iloc[0])} gives and costs "
        f"({safe_name(right['method'].iloc[0])})",
        fontsize=10, color=theme.ink,
    )  # fmt: skip
    bar = figure.colorbar(ScalarMappable(depth, colors), ax=axes, pad=0.015, aspect=30)
    style_bar(bar, "layer", theme)
    return figure


@follows_theme
def gradients_compared(table: pd.DataFrame, *, dark: bool = False) -> Figure:
    """Draw gradients side by side on texts, with base, full LoRA and the best constant marked.

    A column for each text and a row of panels for each metric. NLLs are differences to the base,
    text by text, whose intervals are far narrower than those of the NLLs themselves. The dashed
    line is the best constant: a gradient that is no better says little about layers.

    Args:
        table: what `labkit.evaluate` gave.
        dark: on dark paper.

    Raises:
        LabkitError: another table.
    """
    from labkit.probing.evaluation import BASE, FULL

    if not {"gradient", "text", "metric", "estimate", "from_base"} <= set(table.columns):
        raise LabkitError(
            "the table compares no gradients; make it with evaluate(model, gradients, texts), "
            f"found the columns {', '.join(map(shown, table.columns))}"
        )
    theme = theme_for(dark)
    texts = list(dict.fromkeys(table["text"]))
    metrics = list(dict.fromkeys(table["metric"]))
    always = [BASE, FULL, str(table.attrs.get("best_constant"))]
    found = dict.fromkeys(table["gradient"])
    names = [*(name for name in always if name in found), *(n for n in found if n not in always)]
    size = (7.2, 0.7 + (0.75 + 0.27 * len(names)) * len(metrics))
    figure, panels = new_figure(size, dark, len(metrics), len(texts))
    places = {name: len(names) - number for number, name in enumerate(names)}
    for number, axes in enumerate(panels):
        metric, text = metrics[number // len(texts)], texts[number % len(texts)]
        rows = table[(table["metric"] == metric) & (table["text"] == text)]
        begin = "from_base" if metric == "nll" else ""
        columns = [begin or "estimate", f"{begin}_low".lstrip("_"), f"{begin}_high".lstrip("_")]
        for name, value, low, high in zip(
            rows["gradient"], *(rows[column] for column in columns), strict=True
        ):
            constant = name == table.attrs.get("best_constant")
            color, mark = {BASE: (BASE_COLOR, "s"), FULL: (ADAPTER_COLOR, "s")}.get(
                name, (UNSURE, "D") if constant else (MINE, "o")
            )
            axes.errorbar(
                [value], [places[name]], xerr=[[value - low], [high - value]], fmt=mark,
                color=color, ecolor=theme.ink, elinewidth=1, markersize=7,
                markeredgecolor=theme.ink, markeredgewidth=0.7,
            )  # fmt: skip
            if constant:
                axes.axvline(value, color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        if metric != "exact_match":
            axes.axvline(0, color=theme.ink, linewidth=0.8, zorder=0)
        axes.set_ylim(0.4, len(names) + 0.6)
        axes.set_yticks(
            list(places.values()),
            [safe_name(name) for name in places] if number % len(texts) == 0 else [""] * len(names),
        )
        axes.tick_params(axis="y", length=0)
        axes.grid(True, axis="y", color=theme.grid, linewidth=0.6)
        axes.set_axisbelow(True)
        if number < len(texts):
            axes.set_title(safe_name(text), fontsize=10, color=theme.ink)
        axes.set_xlabel(COMPARED.get(metric, safe_name(metric)), fontsize=9)
    return figure


def _panels(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each adapter and text, with a title for them."""
    missing = [name for name in EFFECT_COLUMNS if name not in table]
    if missing or table.empty or set(table["metric"]) - set(LABELS):
        raise LabkitError(
            "the table has no effects of layers; make it with attribution, sensitivity or "
            f"ablation, found the columns {', '.join(map(shown, table.columns))}"
        )
    if len(set(table["metric"])) > 1 or len(set(table["method"])) > 1:
        raise LabkitError(
            "the table has several methods, whose effects are not drawn on one scale; choose one "
            "with table[table.method == …]"
        )
    several = len(set(table["adapter"])) > 1
    return [
        (safe_name(f"{adapter} on {text}" if several else str(text)), rows)
        for (adapter, text), rows in table.groupby(["adapter", "text"], sort=False)
    ]


def _sure(rows: pd.DataFrame) -> pd.Series[bool]:
    """Where the interval leaves out 0."""
    return (rows["low"] > 0) | (rows["high"] < 0)


def _layer_names(table: pd.DataFrame) -> Sequence[str]:
    numbers = table["layer"].dropna()
    inside = range(int(numbers.max()) + 1) if len(numbers) else ()
    return [*map(str, inside), *([OUTSIDE] if table["layer"].isna().any() else [])]


def _bars(axes: Axes, rows: pd.DataFrame, theme: Theme) -> None:
    """A bar with its whisker for each layer."""
    names = _layer_names(rows)
    where = [
        names.index(OUTSIDE if outside else str(layer))
        for layer, outside in zip(rows["layer"], rows["layer"].isna(), strict=True)
    ]
    values = rows["estimate"].to_numpy(float)
    colors = [
        (HELPS if value < 0 else HARMS) if sure else UNSURE
        for value, sure in zip(values, _sure(rows), strict=True)
    ]
    axes.bar(where, values, width=0.82, color=colors)
    low, high = values - rows["low"].to_numpy(float), rows["high"].to_numpy(float) - values
    axes.errorbar(
        where, values, yerr=(low, high), fmt="none", ecolor=theme.ink, elinewidth=0.9, capsize=0
    )
    axes.axhline(0, color=theme.ink, linewidth=0.8)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(True, axis="y", color=theme.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(lambda value, _: _signed(value))


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−") if abs(value) > 1e-12 else "0"


def _label(
    axes: Axes,
    x: np.ndarray[Any, Any],
    y: np.ndarray[Any, Any],
    names: Sequence[str],
    theme: Theme,
) -> None:
    """Write a name beside each dot, where no dot and no other name is; with a line from afar."""
    from matplotlib.patheffects import withStroke

    # About how many points the axes measure, which is enough to keep names apart.
    (left, end), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    places = np.column_stack(
        [(x - left) / (end - left) * AXES_POINTS[0], (y - bottom) / (top - bottom) * AXES_POINTS[1]]
    )
    choices = np.array(
        [
            (radius * np.cos(angle), radius * np.sin(angle))
            for radius in (12, 18, 26, 35, 45)
            for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False)
        ]
    )
    taken = list(places)
    distances = np.hypot(*(places[:, None] - places).transpose(2, 0, 1))
    # The loneliest first: in a crowd names go around others anyway.
    for number in np.argsort(-np.sort(distances)[:, min(1, len(places) - 1)]):
        around = places[number] + choices
        free = np.hypot(*(around[:, None] - np.array(taken)).transpose(2, 0, 1)).min(axis=1)
        # The nearest place that is free, or else the freest.
        best = int(np.argmax(free > NAME_POINTS) if (free > NAME_POINTS).any() else free.argmax())
        taken.append(around[best])
        offset = choices[best]
        far = bool(np.hypot(*offset) > 13)
        written = axes.annotate(
            names[number], (x[number], y[number]), xytext=tuple(offset), textcoords="offset points",
            ha="center", va="center", fontsize=8, color=theme.ink, zorder=4,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": theme.ink, "shrinkA": 4,
                        "shrinkB": 2} if far else None,
        )  # fmt: skip
        written.set_path_effects([withStroke(linewidth=2, foreground=theme.paper)])
