"""Pictures in cells follow the page's theme; what is changed or saved has one paper."""

from __future__ import annotations

import base64
import io
import re

import matplotlib.image
import pytest

import labkit as lk
from labkit.figures import ShownFigure, gradient_picture, picture_html, side_by_side
from labkit.figures.papers import on_dark
from labkit.figures.style import theme_for

GRADIENT = lk.Gradient([0, 0.5, 1])


def pictures(html):
    """The papers of the PNGs in some HTML: the colour of each one's corner."""
    found = []
    for data in re.findall(r"data:image/png;base64,([^\"]+)", html):
        corner = matplotlib.image.imread(io.BytesIO(base64.b64decode(data)))[0, 0]
        found.append("#" + "".join(f"{round(255 * part):02x}" for part in corner[:3]))
    return found


def test_a_figure_shows_itself_on_both_papers():
    figure = side_by_side(GRADIENT, GRADIENT, ("one", "two"))
    bundle, size = figure._repr_mimebundle_()
    html = bundle["text/html"]
    papers = [theme_for(dark).paper for dark in (False, True)]
    assert pictures(html) == papers
    # The dark one is hidden without styles, too; both have their text.
    light, dark = re.findall(r"<img [^>]*>", html)
    assert 'class="labkit-on-light"' in light
    assert "hidden" not in light
    assert 'class="labkit-on-dark" hidden width="0" height="0"' in dark
    said = "two gradients, or the norms of two adapters, on one scale; one, mean weight 0.50"
    assert f'alt="{said}' in light
    assert f'alt="{said}' in dark
    assert 'body[data-jp-theme-light="false"]' in html
    assert "@media (prefers-color-scheme:dark)" in html
    # What shows pictures alone gets the light one.
    png = f'"{"data:image/png;base64,"}{bundle["image/png"]}"'
    assert pictures(png) == papers[:1]
    assert size == {"image/png": {"width": 720}}


@pytest.mark.parametrize("dark", [False, True])
def test_a_figure_that_is_told_its_paper_keeps_it(dark):
    figure = side_by_side(GRADIENT, GRADIENT, dark=dark)
    assert set(figure._repr_mimebundle_()[0]) == {"text/plain", "image/png"}
    assert figure.get_facecolor() == matplotlib.colors.to_rgba(theme_for(dark).paper)


@pytest.mark.parametrize(
    "change",
    [
        lambda axes: axes.set_title("mine"),
        lambda axes: axes.axvline(1),
        lambda axes: axes.set_xlim(0, 1),
        lambda axes: axes.text(0, 0, "here"),
        lambda axes: axes.figure.suptitle("all of it"),
    ],
)
def test_a_figure_that_was_changed_is_shown_as_it_is(change):
    figure = gradient_picture(GRADIENT)
    assert on_dark(figure) is not None
    change(figure.axes[0])
    assert on_dark(figure) is None
    assert on_dark(ShownFigure()) is None


def test_a_gradient_and_a_caption():
    html = GRADIENT._repr_mimebundle_()["text/html"]
    assert len(pictures(html)) == 2
    assert "<code>0,0.5,1</code></figcaption>" in html
    plain = picture_html(gradient_picture(GRADIENT, dark=False), 'a "b"', "<b>below</b>")
    assert len(pictures(plain)) == 1
    assert 'alt="a &quot;b&quot;"' in plain
    assert "<style>" not in plain
    assert plain.endswith("<b>below</b></figcaption></figure>")
