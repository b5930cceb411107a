"""The picture of a gradient, by what is read back from its axes."""

from __future__ import annotations

import matplotlib
import pytest

import labkit as lk
from labkit.figures import gradient_picture, picture_bytes
from labkit.figures.palette import ADAPTER_COLOR, BASE_COLOR


def axes_of(gradient, **names):
    return gradient_picture(gradient, **names).axes[0]


def test_the_bars_are_the_weights():
    gradient = lk.Gradient.ramp(40, 18, 20)
    axes = axes_of(gradient)
    values, edges, baseline = axes.patches[0].get_data()
    assert list(values) == list(gradient)
    assert baseline == 0
    # Touching: one bar ends where the next begins, and layer 0 is at the left.
    assert list(edges) == [layer - 0.5 for layer in range(41)]
    assert axes.get_xlim() == (-0.5, 39.5)
    assert axes.get_ylim() == (0, 1)
    assert axes.get_title() == "mean weight 0.51"


def test_the_colours_are_the_published_ones():
    axes = axes_of(lk.Gradient([0, 1]))
    same = matplotlib.colors.same_color
    assert (BASE_COLOR, ADAPTER_COLOR) == ("#89b4fa", "#a6e3a1")
    assert same(axes.get_facecolor(), BASE_COLOR)
    assert same(axes.patches[0].get_facecolor(), ADAPTER_COLOR)


def test_negative_and_large_weights_are_all_seen():
    axes = axes_of(lk.Gradient([-0.5, 0, 1.5]))
    assert axes.get_ylim() == (-0.5, 1.5)
    assert axes_of(lk.Gradient([0.2, 0.3])).get_ylim() == (0, 1)


@pytest.mark.parametrize("layers", [1, 2, 12, 30, 126])
def test_the_layer_axis_is_in_whole_numbers(layers):
    axes = axes_of(lk.Gradient.constant(layers))
    ticks = [tick for tick in axes.get_xticks() if -0.5 <= tick <= layers - 0.5]
    assert ticks
    assert all(tick == int(tick) for tick in ticks)


def test_the_legend_has_both_names_as_they_are():
    figure = gradient_picture(lk.Gradient([0, 1]), "a$b$ base", "x" * 500)
    texts = figure.legends[0].get_texts()
    assert texts[0].get_text() == "a$b$ base"
    assert not texts[0].get_parse_math()
    assert len(texts[1].get_text()) < 60
    patches = figure.legends[0].get_patches()
    colors = [matplotlib.colors.to_hex(patch.get_facecolor()) for patch in patches]
    assert colors == [BASE_COLOR, ADAPTER_COLOR]
    picture_bytes(figure)


def test_each_gradient_of_some_modules_has_a_panel():
    some = {"self_attn": lk.Gradient([1, 1, 0, 1]), "$q$": lk.Gradient([-1, 0, 0, 2])}
    figure = gradient_picture(lk.Gradient.constant(4, 0), weights_for=some)
    assert [axes.get_title() for axes in figure.axes] == [
        "all other modules · mean weight 0.00",
        "self_attn · mean weight 0.75",
        "$q$ · mean weight 0.25",
    ]
    drawn = [list(axes.patches[0].get_data().values) for axes in figure.axes]
    assert drawn == [[0, 0, 0, 0], [1, 1, 0, 1], [-1, 0, 0, 2]]
    assert [axes.get_ylim() for axes in figure.axes] == [(0, 1), (0, 1), (-1, 2)]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "layer"]
    picture_bytes(figure)
