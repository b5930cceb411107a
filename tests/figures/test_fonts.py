"""Names in other scripts: real letters where a font has them, and never a warning."""

from __future__ import annotations

import warnings

import pandas as pd
import pytest
from matplotlib.font_manager import FontProperties, findfont, fontManager

import labkit as lk
from labkit.figures import fonts, gradient_picture, heatmap, picture_bytes, side_by_side
from labkit.figures.style import safe_name

CHINESE, DEVANAGARI = "通义千问-7B", "हिन्दी"
NOWHERE = "\U00050000\U00050001"  # not assigned


@pytest.fixture(autouse=True)
def every_time():
    """What was found with other fonts is forgotten."""
    fonts._families_for.cache_clear()
    yield
    fonts._families_for.cache_clear()


@pytest.fixture
def no_fonts(monkeypatch):
    own = [font for font in fontManager.ttflist if font.name.startswith("DejaVu")]
    monkeypatch.setattr(fontManager, "ttflist", own)


def legend(*names):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = gradient_picture(lk.Gradient([0, 1]), *names)
        picture_bytes(figure)
    return figure.legends[0].get_texts()


def test_names_that_the_usual_font_draws_are_drawn_by_it_alone():
    for text in legend("Größe-7B Ωλ", "Лама"):
        assert text.get_fontfamily() == ["sans-serif"]


@pytest.mark.skipif(
    not any(font.name in fonts.FAMILIES for font in fontManager.ttflist),
    reason="no font with Chinese letters is installed",
)
def test_real_letters_where_a_font_has_them():
    base, adapter = legend(CHINESE, "LoRA")
    assert base.get_text() == CHINESE
    assert adapter.get_fontfamily() == ["sans-serif"]
    assert base.get_fontfamily()[0] == "sans-serif"
    found = findfont(FontProperties(family=base.get_fontfamily()[1]), fallback_to_default=False)
    assert set(CHINESE) - {"7", "B", "-"} <= fonts._letters(found)
    [long, _] = legend("千" * 40, "LoRA")
    assert long.get_text() == "千" * 21 + "…"


@pytest.mark.usefixtures("no_fonts")
def test_what_no_font_has_is_left_out():
    assert [text.get_text() for text in legend(CHINESE, "翻译")] == ["…-7B", "LoRA"]
    assert [text.get_text() for text in legend("通义千问", "翻译 LoRA")] == ["base model", "… LoRA"]
    assert fonts.drawable(f"a]^{CHINESE}") == "a]^…-7B"
    assert safe_name(f"{DEVANAGARI}$") == r"…\$"


def test_a_letter_that_is_nowhere():
    assert fonts.drawable(f"x{NOWHERE}y") == "x…y"


@pytest.mark.filterwarnings("error")
def test_other_figures_draw_names_without_warnings():
    table = pd.DataFrame(
        {"layer": pd.array([0, 1], "Int64"), "module": ["层", "a"], "relative_norm": [1.0, 2.0]}
    )
    gradient = lk.Gradient([0, 1])
    for figure in (heatmap(table), side_by_side(gradient, gradient, (CHINESE, "翻译"))):
        picture_bytes(figure)
        picture_bytes(figure, "svg")
        written = [t for axes in figure.axes for t in (axes.title, *axes.get_yticklabels())]
        for text in written:
            if "层" in text.get_text() or "译" in text.get_text():
                assert len(text.get_fontfamily()) > 1
