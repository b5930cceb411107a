"""The picture of a gradient merge, as published merges show it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from labkit.errors import LabkitError, shown
from labkit.figures.fonts import drawable
from labkit.figures.palette import (
    ABOVE_COLOR,
    ADAPTER_COLOR,
    BASE_COLOR,
    BELOW_COLOR,
    INK,
    PAPER,
    Theme,
    theme_for,
)
from labkit.figures.papers import follows_theme
from labkit.gradients.gradient import Gradient, plain
from labkit.merging.module_rows import gradients_in_force, mean_weight
from labkit.merging.recipe import Recipe, Term

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


OTHERS = "all other modules"
"""What a gradient is for where some modules have gradients of their own."""
LARGEST_DRAWN = 1e100
"""The largest weight that is drawn: matplotlib squares what it scales."""
MOST_BARS = 3
"""Gradients of some modules that are drawn as bars; more of them are rows of a map."""
MOST_GROUPS = 8
"""Groups of layers that the picture in words, or a table, has at most."""
KINDS = {"adapter": "LoRA", "model": "full model"}
"""What pictures and cards call a source of each kind."""


@dataclass(frozen=True)
class Panel:
    """One of the pictures under each other.

    Attributes:
        title: what it shows.
        rows: its gradients: one as bars, or several as the rows of a map, by their names.
        bars: whether they are bars.
    """

    title: str
    rows: Mapping[str, Gradient]
    bars: bool = True

    @property
    def inches(self) -> float:
        """How high it is drawn in a picture of several."""
        return 1.6 if self.bars else 0.6 + 0.22 * len(self.rows)


@follows_theme
def gradient_picture(
    gradient: Gradient,
    base_name: str = "base model",
    adapter_name: str = "LoRA",
    weights_for: Mapping[str, Gradient] | None = None,
    *,
    dark: bool = False,
) -> Figure:
    """Draw a gradient merge: how much of the LoRA each layer gets.

    One bar for each layer, bars touching, layer 0 at the left; light blue is the base model and
    light green the LoRA.

    Args:
        gradient: the layer weights.
        base_name: the base model's name, for the legend.
        adapter_name: the LoRA's name, for the legend.
        weights_for: module pattern -> the gradient of those modules, each in a panel of its own
            below that of all others.
        dark: on dark paper.

    Raises:
        LabkitError: a weight that is too large to be drawn.
    """
    if not weights_for:
        return _one(gradient, base_name, adapter_name, theme_for(dark))
    panels = [_bars(OTHERS, gradient), *_panels_of_patterns("", weights_for)]
    return _several(panels, base_name, adapter_name, theme_for(dark), one_scale=False)


@follows_theme
def recipe_picture(recipe: Recipe, *, dark: bool = False) -> Figure:
    """Draw a merge: the gradient of every LoRA and full model, under each other.

    All have one axis of layers and one of weights. Modules with a gradient of their own have bars
    of their own; where they are many, they are the rows of a map. The mean weight beside a name is
    that over all its modules, the ratio of the merge.

    Args:
        recipe: what is merged.
        dark: on dark paper.

    Raises:
        LabkitError: a weight that is too large to be drawn.
    """
    base, theme = recipe.base.name, theme_for(dark)
    if len(recipe.terms) == 1:
        (term,) = recipe.terms
        found = gradients_in_force(term)
        if set(found) <= {""}:
            return _one(term.weights, base, term.source.name, theme)
        panels = [_bars(OTHERS, found[""])] if "" in found else []
        panels += _panels_of_patterns("", {name: each for name, each in found.items() if name})
        whole = f"mean weight over all modules {mean_weight(recipe.base, term):.2f}"
        return _several(panels, base, term.source.name, theme, whole)
    panels = [panel for term in recipe.terms for panel in _panels_of(recipe, term)]
    kinds = dict.fromkeys(KINDS[term.source.kind] for term in recipe.terms)
    return _several(panels, base, f"the {' or '.join(kinds)} named above", theme)


def described(recipe: Recipe) -> str:
    """The picture of a recipe in words, for those who cannot see it."""
    said = []
    for term in recipe.terms:
        found = gradients_in_force(term)
        if set(found) <= {""}:
            said.append(f"{shown(term.source.name)}: {_in_words(term.weights)}")
            continue
        parts = [f"{shown(name) or OTHERS}: {_in_words(each)}" for name, each in found.items()]
        mean = mean_weight(recipe.base, term)
        said.append(f"{shown(term.source.name)}: mean weight {mean:.2f} over all modules; "
                    f"{'; '.join(parts)}")  # fmt: skip
    first = recipe.terms[0]
    if len(said) == 1 and not first.weights_for:
        return description(first.weights, recipe.base.name, first.source.name)
    layers = len(first.weights)
    return f"Layer weights in {shown(recipe.base.name)}, {layers} layers. {'. '.join(said)}"


def description(gradient: Gradient, base: str, adapter: str) -> str:
    """The picture of one gradient in words."""
    return (
        f"Layer weights of {shown(adapter)} in {shown(base)} as bars, {len(gradient)} layers, "
        + (_in_words(gradient))
    )


def _in_words(gradient: Gradient) -> str:
    groups = "; ".join(
        f"{layers_said(first, last)}: {plain(gradient[first])}"
        for first, last in layer_groups([gradient])
        if len(set(gradient[first : last + 1])) == 1
    )
    return f"mean weight {gradient.mean:.2f}{f', {groups}' if groups else ''}"


def layer_groups(gradients: Sequence[Gradient]) -> list[tuple[int, int]]:
    """Layers to speak of together: those of equal weights in a row, or else equal parts.

    Returns:
        the first and the last layer of each group, `MOST_GROUPS` groups at most.
    """
    layers = len(gradients[0])
    groups = [
        list(group)
        for _, group in groupby(range(layers), lambda layer: [each[layer] for each in gradients])
    ]
    if len(groups) <= MOST_GROUPS:
        return [(group[0], group[-1]) for group in groups]
    edges = [part * layers // MOST_GROUPS for part in range(MOST_GROUPS + 1)]
    return [(start, stop - 1) for start, stop in pairwise(edges)]


def layers_said(first: int, last: int) -> str:
    """A range of layers as text: `3`, or `3–7`."""
    return f"{first}" if first == last else f"{first}–{last}"


def _panels_of(recipe: Recipe, term: Term) -> Iterator[Panel]:
    """The panels of one of several terms."""
    found = gradients_in_force(term)
    name = _label(term.source.name, KINDS[term.source.kind], 24)
    mean = f"{name} · mean weight {mean_weight(recipe.base, term):.2f}"
    if set(found) <= {""}:
        yield Panel(mean, {"": term.weights})
        return
    if "" in found:
        yield Panel(f"{mean}\n{OTHERS} · mean weight {found.pop('').mean:.2f}",
                    {"": term.weights})  # fmt: skip
        yield from _panels_of_patterns(f"{name}, ", found)
        return
    first, *others = _panels_of_patterns(f"{name}, ", found)
    yield Panel(f"{mean}\n{first.title}", first.rows, first.bars)
    yield from others


def _panels_of_patterns(name: str, weights_for: Mapping[str, Gradient]) -> list[Panel]:
    """The gradients of some modules: each as bars, or all as the rows of one map."""
    if len(weights_for) > MOST_BARS:
        rows = {f"{_label(one, 'modules', 18)}  {each.mean:.2f}": each
                for one, each in weights_for.items()}  # fmt: skip
        return [Panel(f"{name}modules' own weights", rows, False)]
    return [_bars(f"{name}{_label(one, 'modules')}", each) for one, each in weights_for.items()]


def _bars(title: str, gradient: Gradient) -> Panel:
    return Panel(f"{title} · mean weight {gradient.mean:.2f}", {"": gradient})


def _one(gradient: Gradient, base_name: str, adapter_name: str, theme: Theme) -> Figure:
    """The picture of one gradient."""
    figure = _new_figure(4.4, theme)
    axes = figure.add_subplot(1, 1, 1, facecolor=BASE_COLOR)
    _draw_bars(axes, gradient, f"mean weight {gradient.mean:.2f}", theme, 13)
    axes.set_xlabel("layer", fontsize=12, color=theme.ink)
    axes.set_ylabel("layer weight", fontsize=12, color=theme.ink)
    _add_legend(figure, base_name, adapter_name, theme)
    return figure


def _several(
    panels: Sequence[Panel],
    base_name: str,
    adapter_name: str,
    theme: Theme,
    title: str = "",
    one_scale: bool = True,
) -> Figure:
    """Panels under each other, with one axis of layers."""
    heights = [panel.inches + 0.2 * panel.title.count("\n") for panel in panels]
    figure = _new_figure(1.1 + 0.3 * bool(title) + sum(heights), theme)
    grid = figure.add_gridspec(len(panels), 1, height_ratios=heights)
    drawn = [each for panel in panels if panel.bars for each in panel.rows.values()]
    weights = [weight for each in drawn for weight in each]
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(grid[number], facecolor=BASE_COLOR)
        if panel.bars:
            _draw_bars(axes, panel.rows[""], panel.title, theme, 11)
            axes.set_ylabel("" if one_scale else "layer weight", fontsize=11, color=theme.ink)
            if one_scale:
                axes.set_ylim(min(0.0, *weights), max(1.0, *weights))
        else:
            _draw_map(axes, panel, theme)
        if number < len(panels) - 1:
            axes.tick_params(labelbottom=False)
    axes.set_xlabel("layer", fontsize=12, color=theme.ink)
    if drawn and one_scale:
        figure.supylabel("layer weight", fontsize=12, color=theme.ink)
    if title:
        figure.suptitle(title, fontsize=12, color=theme.ink)
    beyond = [each for panel in panels if not panel.bars for each in panel.rows.values()]
    _add_legend(figure, base_name, adapter_name, theme, beyond)
    return figure


def _new_figure(inches: float, theme: Theme) -> Figure:
    from labkit.figures.shown_figure import ShownFigure

    figure: Figure = ShownFigure(figsize=(5, inches), facecolor=theme.paper)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    return figure


def _add_legend(
    figure: Figure,
    base_name: str,
    adapter_name: str,
    theme: Theme,
    of_maps: Sequence[Gradient] = (),
) -> None:
    from matplotlib.patches import Patch

    names = [_label(base_name, "base model"), _label(adapter_name, "LoRA")]
    colors = [BASE_COLOR, ADAPTER_COLOR]
    for color, name, beyond in (
        (BELOW_COLOR, "below 0", any(min(each) < 0 for each in of_maps)),
        (ABOVE_COLOR, "above 1", any(max(each) > 1 for each in of_maps)),
    ):
        if beyond:
            names.append(name)
            colors.append(color)
    legend = figure.legend(
        handles=[
            Patch(facecolor=color, edgecolor=theme.ink, linewidth=0.8, label=name)
            for color, name in zip(colors, names, strict=True)
        ],
        loc="outside lower center",
        ncols=2 if sum(map(_width, names[:2])) <= 36 else 1,
        frameon=False,
        fontsize=12,
        labelcolor=theme.ink,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a model's name may hold dollar signs


def _draw_bars(axes: Axes, gradient: Gradient, title: str, theme: Theme, size: int) -> None:
    _require_drawable(gradient)
    layers = len(gradient)
    # One outline for all bars: separate rectangles would show hairlines where they touch.
    edges = [layer - 0.5 for layer in range(layers + 1)]
    axes.stairs(list(gradient), edges, baseline=0, fill=True, facecolor=ADAPTER_COLOR, linewidth=0)
    axes.stairs(list(gradient), edges, baseline=0, color=INK, linewidth=0.8)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(min(0.0, *gradient), max(1.0, *gradient))
    if min(gradient) < 0:
        axes.axhline(0, color=INK, linewidth=1.2)
    _style(axes, title, theme, size)


def _draw_map(axes: Axes, panel: Panel, theme: Theme) -> None:
    """Rows of cells, coloured from the base model's colour at 0 to the adapter's at 1."""
    from matplotlib.colors import LinearSegmentedColormap

    between = LinearSegmentedColormap.from_list("merge", [BASE_COLOR, ADAPTER_COLOR])
    colors = between.with_extremes(under=BELOW_COLOR, over=ABOVE_COLOR)
    for gradient in panel.rows.values():
        _require_drawable(gradient)
    axes.imshow(
        [list(each) for each in panel.rows.values()],
        aspect="auto", interpolation="nearest", cmap=colors, vmin=0, vmax=1,
    )  # fmt: skip
    axes.hlines(
        [row - 0.5 for row in range(1, len(panel.rows))], *axes.get_xlim(), INK, linewidth=0.5
    )
    _style(axes, panel.title, theme, 11)
    axes.set_yticks(range(len(panel.rows)), list(panel.rows), fontsize=9, parse_math=False)


def _style(axes: Axes, title: str, theme: Theme, size: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.set_title(title, fontsize=size, color=theme.ink, parse_math=False)
    axes.tick_params(labelsize=11, colors=theme.ink)
    for spine in axes.spines.values() if theme.paper != PAPER else ():
        spine.set_color(theme.ink)  # on light paper it stays matplotlib's black


def _require_drawable(gradient: Gradient) -> None:
    if max(map(abs, gradient)) > LARGEST_DRAWN:
        raise LabkitError(
            f"a layer weight of {max(gradient, key=abs):g} cannot be drawn; expected at most "
            f"{LARGEST_DRAWN:g} in size"
        )


def _label(name: str, otherwise: str, most: int = 44) -> str:
    """A name for the picture, or what it names where no font on this machine has its letters."""
    label = drawable(shown(name, most))
    if label != shown(name, most) and not any(map(str.isalnum, label)):
        return otherwise
    if _width(label) > max(most, len(label)):
        while _width(label) > most - 2:
            label = label[:-1]
        label += "…"
    return label


def _width(name: str) -> int:
    """How many letters of the usual width a name is wide; Chinese ones are twice as wide."""
    return len(name) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in name)
