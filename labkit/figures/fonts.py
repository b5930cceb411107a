"""Finds a font for names in other scripts than the usual one draws.

matplotlib's own font, DejaVu Sans, has no Chinese, Japanese, Korean, Thai or Devanagari letters;
without another font it draws boxes and warns on standard error. Names that it can draw are drawn by
it alone, so that their pictures are the same bytes everywhere.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAMILIES = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans CJK TC",
    "Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans", "Heiti TC",
    "Apple SD Gothic Neo", "Microsoft YaHei", "SimHei", "Yu Gothic", "MS Gothic", "Malgun Gothic",
    "IPAGothic", "TakaoGothic", "NanumGothic", "Noto Sans", "Arial Unicode MS", "FreeSans",
    "Unifont",
)  # fmt: skip
"""Families that have such letters, of Linux, macOS and Windows; those installed are used, in this
order, and after them all others called Noto Sans, of which there is one for each script."""


def drawable(name: str) -> str:
    """A name as it can be drawn here: letters that no font on this machine has become `…`."""
    _, lacking = _families_for(name)
    if not lacking:
        return name
    return re.sub(f"[{re.escape(lacking)}]+", "…", name)


def use_fallback_fonts(figure: Figure) -> None:
    """Give each text of a figure the fonts that its letters need, beyond its own."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        families, _ = _families_for(text.get_text())
        own = text.get_fontfamily()
        if families and not set(families) <= set(own):
            text.set_fontfamily([*own, *families])


@cache
def _families_for(text: str) -> tuple[tuple[str, ...], str]:
    """The families that a text needs beyond matplotlib's own, and the letters that none has."""
    if text.isascii():
        return (), ""
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    lacking = {letter for letter in text if not letter.isspace()}
    lacking -= _letters(findfont(FontProperties()))
    families: list[str] = []
    if lacking:
        installed = {font.name for font in fontManager.ttflist}
        others = sorted(name for name in installed if name.startswith("Noto Sans "))
        for family in dict.fromkeys((*FAMILIES, *others)):
            if family in installed:
                drawn = lacking & _letters(findfont(FontProperties(family=family)))
                if drawn:
                    families.append(family)
                    lacking -= drawn
            if not lacking:
                break
    return tuple(families), "".join(sorted(lacking))


@cache
def _letters(font: Any) -> frozenset[str]:
    """The letters that a font draws."""
    from matplotlib.font_manager import get_font

    return frozenset(map(chr, get_font(font).get_charmap()))
