"""One palette: what the screen shows has the colours of the figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from labkit.figures import palette

LABKIT = Path(palette.__file__).parents[1]
EDITOR = {
    "paper": palette.PAPER,
    "ink": palette.INK,
    "soft": palette.SOFT_INK,
    "edge": palette.EDGE,
    "field": palette.CARD,
    "base": palette.BASE_COLOR,
    "adapter": palette.ADAPTER_COLOR,
    "line": palette.INK,
    "wrong": palette.WRONG,
}


def test_the_widgets_have_these_colours():
    css = (LABKIT / "widgets" / "colors.css").read_text()
    light = css[: css.index("}")]
    assert (
        light.lstrip("/* ").count(
            ":is(.labkit-editor, .labkit-runs, .labkit-plane, .labkit-front) {"
        )
        == 1
    )
    found = dict(re.findall(r"--labkit-(\w+): (?:var\(.*?, )?(#[0-9a-f]{6})", light))
    assert {name: found[name] for name in EDITOR} == EDITOR
    assert f"--labkit-focus: {palette.MARK}" in css.split('light="false"', 1)[1]


@pytest.mark.parametrize("color", [palette.BASE_COLOR, palette.ADAPTER_COLOR])
def test_no_other_file_repeats_them(color):
    files = [path for kind in ("py", "js", "css") for path in LABKIT.rglob(f"*.{kind}")]
    having = {path.name for path in files if color in path.read_text().lower()}
    assert having == {"palette.py", "colors.css"}


def test_the_colours_are_the_published_ones():
    assert (palette.BASE_COLOR, palette.ADAPTER_COLOR) == ("#89b4fa", "#a6e3a1")


@pytest.mark.parametrize("dark", [False, True])
def test_ink_is_read_on_its_paper(dark):
    """By WCAG 2.2's contrast of text, 7:1 for the stricter of its two bars."""
    theme = palette.theme_for(dark)
    lighter, darker = sorted((luminance(theme.paper), luminance(theme.ink)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) > 7
    assert dark == (luminance(theme.paper) < luminance(theme.ink))


def luminance(color):
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    """By WCAG 2.2; graphics need 3:1."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_lines_of_other_gradients_are_seen_on_both_colours_of_the_bars():
    css = (LABKIT / "widgets" / "editor.css").read_text()
    lines = re.findall(r"\.color-\d \{ stroke: (#[0-9a-f]{6})", css)
    assert len(lines) == len(set(lines)) == 4
    for line in lines:
        assert contrast(line, palette.BASE_COLOR) > 3
        assert contrast(line, palette.ADAPTER_COLOR) > 3


def test_weights_beyond_0_and_1_stand_apart_from_those_between():
    assert contrast(palette.BELOW_COLOR, palette.BASE_COLOR) > 3
    assert contrast(palette.ABOVE_COLOR, palette.ADAPTER_COLOR) > 3
    for color in (palette.BELOW_COLOR, palette.ABOVE_COLOR):
        assert contrast(color, "#ffffff") > 4.5  # the sign on it
