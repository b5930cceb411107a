"""The lab's fold Fit in a real JupyterLab, with a tiny model: fit, slide, undo."""

from __future__ import annotations

from typing import Any

import pytest
from axe import axe_script, serious_findings
from harness import Jupyter, Pages, until

from tests.tiny import make_adapter, make_base, make_letters

SLOW = 120_000  # ms; a laptop that does something else as well
CELL = """
import labkit as lk
lk.Lab("base", "lora", gradient="0.5x4", device="cpu")
"""


@pytest.fixture(scope="module")
def page(pages: Pages, jupyter: Jupyter) -> Any:
    base = make_base(jupyter.folder / "base", initializer_range=0.3, vocab_size=97)
    make_letters(base)
    make_adapter(jupyter.folder / "lora", base, scale=0.15)
    # A narrow window, in which JupyterLab folds parts of its toolbar away.
    opened = pages.notebook([CELL], viewport={"width": 900, "height": 1500})
    opened.locator(".labkit-editor .base").wait_for(timeout=SLOW)
    opened.locator(".jupyter-widget-Collapse-header", has_text="Fit").click()
    return opened


def cells(page: Any, row: str) -> list[float]:
    """The numbers of a row of the fold's table."""
    line = page.get_by_role("row", name=row).first
    return [float(one) for one in line.get_by_role("cell").all_inner_texts()]


def wait_until_measured(page: Any) -> None:
    measured = page.get_by_role("row", name="measured").first
    measured.wait_for(timeout=SLOW)
    until(lambda: "…" not in measured.inner_text(), measured.inner_text, SLOW / 1000)


def test_a_fit_is_drawn_measured_and_taken_back(page: Any) -> None:
    weights = page.get_by_label("layer weights as a list")
    before = weights.input_value()
    page.get_by_role("button", name="Fit to the first text").click()
    wait_until_measured(page)
    drawn = weights.input_value()
    assert drawn != before
    predicted, measured = cells(page, "predicted"), cells(page, "measured")
    for expected, found in zip(predicted, measured, strict=True):
        assert abs(expected - found) < 0.02
    # Another strength is drawn at once and measured when the hand rests.
    page.get_by_role("slider", name="strength of keeping").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    until(lambda: weights.input_value() != drawn, weights.input_value, SLOW / 1000)
    wait_until_measured(page)
    # The slides are one step of history, and the search is another.
    page.get_by_label("undo").click()
    until(lambda: weights.input_value() == before, weights.input_value, SLOW / 1000)


def test_no_serious_accessibility_finding(page: Any, tmp_path: Any) -> None:
    assert serious_findings(page, axe_script(tmp_path), ".labkit-lab") == []
