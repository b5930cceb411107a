"""A figure that was built by hand is turned over on a dark page, and is as it was afterwards."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib import image
from matplotlib.colors import to_hex

from labkit.figures import ShownFigure, picture_bytes, picture_html, save_picture
from labkit.figures.palette import DARK, LIGHT, MODULE_COLORS, PAPER
from labkit.figures.turned_over import turn_over, turned_over

DARK_PAPER, DARK_INK = DARK.paper, DARK.ink


def built(**options):
    figure = ShownFigure(figsize=(4, 3), **options)
    one, other = figure.subplots(1, 2)
    one.plot([0, 1], [1, 0], "o-", color="black", label="line")
    one.plot([0, 1], [0, 0.5], "s", color=MODULE_COLORS[0], label="points")
    one.set(xlabel="across", ylabel="up")
    one.grid(color=LIGHT.grid)
    one.annotate("here", (0.5, 0.5), (0.2, 0.8), arrowprops={"color": "black"})
    one.text(0.1, 0.1, "boxed", bbox={"facecolor": "white", "edgecolor": "black"})
    one.legend()
    other.imshow([[0, 1], [1, 0]])
    other.text(0, 0, "on it", color="white")
    other.scatter([0], [1], color=["#d55e00"])
    return figure


def pixels(data):
    return image.imread(io.BytesIO(data))[..., :3]


def test_ink_and_paper_change_places_greys_keep_their_distance_and_colours_stay():
    assert to_hex(turn_over("white")) == DARK_PAPER
    assert to_hex(turn_over(LIGHT.ink)) == to_hex(turn_over("black")) == DARK_INK
    for color in MODULE_COLORS[:3]:
        assert to_hex(turn_over(color)) == color
    # The grid of labkit's light paper is about that of its dark paper.
    grid, expected = turn_over(LIGHT.grid), np.array([0x45, 0x47, 0x5A]) / 255
    assert np.allclose(grid[:3], expected, atol=0.06)
    assert turn_over((1, 1, 1, 0.25))[3] == 0.25
    rows = turn_over(np.array([[1, 1, 1, 1], [0, 0.5, 0.7, 0.5]]))
    assert [to_hex(row, keep_alpha=True) for row in rows] == [f"{DARK_PAPER}ff", "#0080b280"]
    lightness = [sum(turn_over(str(grey))[:3]) for grey in np.linspace(0.2, 1, 9)]
    assert lightness == sorted(lightness, reverse=True)


def test_everything_is_turned_but_images_and_what_lies_on_them():
    figure = built()
    one, other = figure.axes
    with turned_over(figure):
        assert to_hex(figure.get_facecolor()) == to_hex(one.get_facecolor()) == DARK_PAPER
        line, points = one.lines
        for color in (line.get_color(), line.get_markerfacecolor(), line.get_markeredgecolor()):
            assert to_hex(color) == DARK_INK
        assert to_hex(points.get_color()) == MODULE_COLORS[0]
        legend = one.get_legend()
        texts = [
            one.xaxis.label,
            one.title,
            *one.texts,
            *legend.get_texts(),
            *one.get_xticklabels(),
        ]
        assert {to_hex(text.get_color()) for text in texts} == {DARK_INK}
        assert to_hex(legend.get_frame().get_facecolor()) == DARK_PAPER
        ticks = one.xaxis.get_ticklines()
        assert {to_hex(tick.get_color()) for tick in [*ticks, *one.get_xgridlines()]} != {"#000000"}
        assert to_hex(one.spines["left"].get_edgecolor()) == DARK_INK
        here, boxed = one.texts
        assert to_hex(here.arrow_patch.get_edgecolor()) == DARK_INK
        assert to_hex(boxed.get_bbox_patch().get_facecolor()) == DARK_PAPER
        assert other.texts[0].get_color() == "white"
        assert to_hex(other.collections[0].get_facecolor()[0]) == "#d55e00"


def test_afterwards_it_is_as_it_was_and_follows_what_it_followed():
    figure = built()
    before = picture_bytes(figure)
    with turned_over(figure):
        assert picture_bytes(figure) != before
    assert picture_bytes(figure) == before
    line = figure.axes[0].lines[0]
    line.set_color("#d55e00")  # the dots of a line have its colour until they are given their own
    assert line.get_markerfacecolor() == "#d55e00"
    with pytest.raises(KeyError), turned_over(figure):
        raise KeyError
    assert to_hex(figure.get_facecolor()) == PAPER


def test_a_cell_has_both_and_the_layout_of_one():
    figure = built(layout="constrained")
    bundle, _ = figure._repr_mimebundle_()
    html = bundle["text/html"]
    assert html.count("<img") == 2
    assert 'alt="up against across"' in html
    assert picture_html(figure, "it").count("<img") == 2
    light = pixels(picture_bytes(figure, pixels=400))
    places = [axes.get_position().bounds for axes in figure.axes]
    with turned_over(figure):
        dark = pixels(picture_bytes(figure, pixels=400))
        for axes, place in zip(figure.axes, places, strict=True):
            assert axes.get_position().bounds == pytest.approx(place, abs=1e-4)
    assert light[0, 0].mean() == 1
    assert dark[0, 0].mean() < 0.2


def test_a_figure_with_paper_of_its_own_stays_on_it(tmp_path):
    for paper in ("white", "#ffeedd"):
        figure = built(facecolor=paper)
        bundle, _ = figure._repr_mimebundle_()
        assert "text/html" not in bundle
        assert picture_html(figure, "it").count("<img") == 1
    figure = built()
    save_picture(figure, tmp_path / "file.png")
    assert pixels((tmp_path / "file.png").read_bytes())[0, 0].mean() == 1
