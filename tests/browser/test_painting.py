"""The matrix under a real mouse, keyboard and finger; gradients chosen by their lines; papers.

Their own code on a page, without Jupyter and Python.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe import axe_script, serious_findings
from test_what_is_drawn import PAGE

from labkit.figures.papers import html_of
from labkit.widgets.editor import GradientEditor
from labkit.widgets.matrix import Matrix

ROWS = ("q_proj", "k_proj", "up_proj")
LAYERS = 6
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f"
    "0005fe02fe0def46b80000000049454e44ae426082"
)
Draw = Callable[..., Any]


@pytest.fixture
def draw(browser: Any) -> Iterator[Draw]:
    """Draws a widget alone, in a browser with some options."""
    opened = []

    def drawn(widget: Any, **options: Any) -> Any:
        state = {name: getattr(widget, name) for name in widget.trait_names(sync=True)}
        state = {name: value for name, value in state.items() if not name.startswith("_")}
        context = browser.new_context(viewport={"width": 900, "height": 500}, **options)
        opened.append(context)
        page = context.new_page()
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        code = str(widget._esm).replace("export default", "const widget =")
        page.set_content(
            PAGE.format(
                style=str(widget._css),
                code=code,
                width=860,
                traits=json.dumps(state, default=str),
            )
        )
        page.locator(".layer, .cell").first.wait_for()
        return page

    yield drawn
    for context in opened:
        assert [error for page in context.pages for error in page.errors] == []
        context.close()


def matrix(**traits: Any) -> Matrix:
    return Matrix({name: [0.0] * LAYERS for name in ROWS}, **traits)


def sent(page: Any) -> list[list[float]]:
    """The cells that Python has, once the last of them have arrived."""
    page.wait_for_timeout(80)
    return page.evaluate("model.get('cells')")


def painted(*cells: tuple[int, int], weight: float = 1) -> list[list[float]]:
    return [[weight if (row, layer) in cells else 0 for layer in range(LAYERS)] for row in range(3)]


def middle(page: Any, row: int, layer: int) -> tuple[float, float]:
    """Where a cell is; -1 for the heads of rows and of columns."""
    node = page.locator(".row").nth(row + 1).locator("> *").nth(layer + 1)
    box = node.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page: Any, *places: tuple[int, int]) -> None:
    page.mouse.move(*middle(page, *places[0]))
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*middle(page, *place))
    page.mouse.up()


def test_a_mouse_paints_cells_rows_and_columns(draw: Draw) -> None:
    page = draw(matrix(absent={"k_proj": [2]}))
    # One move from corner to corner leaves no cell on its way out.
    drag(page, (0, 0), (2, 4))
    cells = sent(page)
    assert cells[0][0] == cells[2][4] == 1
    assert [any(column) for column in zip(*cells, strict=True)] == [1, 1, 0, 1, 1, 0]
    assert cells[1][2] == 0  # there is no such module
    page.get_by_label("undo").click()
    assert sent(page) == painted()
    page.get_by_label("redo").click()
    assert sent(page) == cells
    page.get_by_label("undo").click()
    page.get_by_label("weight of the brush").fill("0.25")
    drag(page, (1, -1))
    row = [(1, layer) for layer in range(LAYERS) if layer != 2]
    assert sent(page) == painted(*row, weight=0.25)
    drag(page, (-1, 4), (-1, 5))
    columns = [(line, layer) for line in range(3) for layer in (4, 5)]
    assert sent(page) == painted(*row, *columns, weight=0.25)
    drag(page, (-1, -1))
    whole = [
        (line, layer) for line in range(3) for layer in range(LAYERS) if (line, layer) != (1, 2)
    ]
    assert sent(page) == painted(*whole, weight=0.25)
    for _ in range(3):
        page.get_by_label("undo").click()
    assert sent(page) == painted()
    assert page.get_by_label("undo").is_disabled()


def test_cells_say_and_show_their_weights(draw: Draw) -> None:
    page = draw(matrix())
    norms = [[0.01 * n for n in range(LAYERS)]] * 3
    page.evaluate(f"model.set('norms', {norms})")  # measured later
    page.evaluate("model.set('cells', [[0, 0.5, 1, 1.5, -0.5, 0], [0,0,0,0,0,0], [0,0,0,0,0,0]])")
    page.mouse.move(*middle(page, 0, 3))
    said = page.locator(".said")
    assert said.inner_text() == "q_proj, layer 3: 1.5 · ‖ΔW‖/‖W‖ 3 %"
    height = "cell => Number(cell.style.getPropertyValue('--norm'))"
    assert page.locator(".cell").nth(3).evaluate(height) == pytest.approx(0.6)
    page.mouse.move(*middle(page, -1, 2))
    assert said.inner_text() == "layer 2, all modules"
    classes = [one.get_attribute("class") for one in page.locator(".cell").all()[:LAYERS]]
    assert [("above" in one, "below" in one) for one in classes] == [
        (False, False), (False, False), (False, False), (True, False), (False, True), (False, False)
    ]  # fmt: skip
    colors = page.locator(".cell").evaluate_all(
        """cells => cells.slice(0, 3).map(cell => {
            const canvas = new OffscreenCanvas(1, 1).getContext('2d');
            canvas.fillStyle = getComputedStyle(cell).backgroundColor;
            canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
        })"""
    )
    base, adapter = [0x89, 0xB4, 0xFA], [0xA6, 0xE3, 0xA1]
    between = [(a + b) / 2 for a, b in zip(base, adapter, strict=True)]
    for found, expected in zip(colors, (base, between, adapter), strict=True):
        assert found == pytest.approx(expected, abs=2)
    assert "above 1" in page.locator(".legend").inner_text()
    assert page.locator(".row-mean").first.inner_text() == "0.42"
    # What Python sets is a step of undo, and another matrix begins anew.
    assert page.get_by_label("undo").is_enabled()
    page.evaluate(
        """() => {
            model.set('rows', ['a']); model.set('absent', [[]]); model.set('norms', []);
            model.set('cells', [[0, 1]]); model.set('shown_number', 9);
        }"""
    )
    assert page.get_by_label("undo").is_disabled()
    assert page.locator(".cell").count() == 2
    assert page.locator(".cell").last.get_attribute("aria-label") == "a, layer 1: 1"


def test_by_keyboard_alone(draw: Draw) -> None:
    page = draw(matrix())
    key = page.keyboard.press
    for _ in range(3):  # slider and number of the brush, then the table: one stop
        key("Tab")
    focused = page.locator(":focus")
    assert focused.get_attribute("aria-label") == "q_proj, layer 0: 0"
    assert focused.get_attribute("role") == "gridcell"
    for name in ("ArrowDown", "ArrowRight", "Enter", "Shift+ArrowRight"):
        key(name)
    assert sent(page) == painted((1, 1), (1, 2))
    key("Control+z")
    assert sent(page) == painted((1, 1))
    for name in ("PageDown", "PageDown", "Home"):
        key(name)
    assert focused.get_attribute("role") == "rowheader"
    key(" ")
    assert sent(page) == painted(*((1, layer) for layer in range(LAYERS)), weight=0.9)
    key("Control+z")
    # A digit begins the brush's weight; Enter goes back to where it was.
    for name in ("0", ".", "3", "Enter", "ArrowRight", "ArrowUp", "ArrowUp", "ArrowRight"):
        key(name)
    assert focused.get_attribute("aria-label") == "layer 1"
    assert focused.get_attribute("role") == "columnheader"
    key("Enter")
    assert sent(page) == painted((0, 1), (1, 1), (2, 1), weight=0.3)
    key("ArrowDown")
    key("Delete")  # means nothing here
    key("p")
    assert page.evaluate("model.get('brush')") == 0.3
    key("Tab")
    assert focused.inner_text() == "How to paint"


def test_a_finger_paints(draw: Draw) -> None:
    page = draw(matrix(), has_touch=True)
    session = page.context.new_cdp_session(page)
    for kind, *place in (
        ("touchStart", 0, 0), ("touchMove", 0, 3), ("touchMove", 2, 3), ("touchEnd",)
    ):  # fmt: skip
        at = middle(page, *place) if place else ()
        points = [{"x": at[0], "y": at[1]}] if at else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert sent(page) == painted((0, 0), (0, 1), (0, 2), (0, 3), (1, 3), (2, 3))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_accessibility_finding(draw: Draw, scheme: str, tmp_path: Path) -> None:
    page = draw(matrix(absent={"k_proj": [2]}), color_scheme=scheme)
    page.locator(".cell").first.focus()
    assert serious_findings(page, axe_script(tmp_path), ".labkit-matrix") == []


def test_another_gradient_is_chosen_by_its_line_or_its_name(draw: Draw) -> None:
    others = {"second": [0.5] * 4, "third": [1, 1, 1, 0]}
    page = draw(GradientEditor([0, 0.25, 0.75, 1], others=others, others_can_be_chosen=True))
    page.get_by_role("button", name="third: mean weight 0.75").click()
    assert page.evaluate("model.get('chosen')") == "third"
    box = page.locator(".plot .base").bounding_box()
    on_line = box["x"] + box["width"] / 8, box["y"] + box["height"] / 2
    page.mouse.click(*on_line)
    assert page.evaluate("model.get('chosen')") == "second"
    page.evaluate("model.set('chosen', '')")
    weights = "model.get('weights')"
    assert page.evaluate(weights) == [0, 0.25, 0.75, 1]
    # A hand that moves on paints, from where it pressed.
    page.mouse.move(*on_line)
    page.mouse.down()
    page.mouse.move(on_line[0] + 20, on_line[1] - box["height"] / 4)
    page.mouse.up()
    assert page.evaluate("model.get('chosen')") == ""
    assert page.evaluate(weights)[0] == pytest.approx(0.75, abs=0.02)
    page.evaluate(
        "model.set('others_can_be_chosen', false); model.set('others', {a: [1, 1, 0, 0]})"
    )
    assert page.locator(".choose").count() == 0


def test_a_picture_follows_the_page(browser: Any) -> None:
    def seen(attributes: str, scheme: str = "light", styles: bool = True) -> list[str]:
        page = browser.new_page(color_scheme=scheme)
        html = html_of(PIXEL, PIXEL, "a picture", "", 300)
        if not styles:
            html = html[: html.index("<style>")] + "</figure>"
            html = html.replace("hidden ", "") if "no hidden" in attributes else html
        page.set_content(f"<body {attributes}>{html}</body>")
        names = page.locator("img").evaluate_all(
            """all => all.filter(one => one.getBoundingClientRect().width > 0)
                .map(one => one.className)"""
        )
        page.close()
        return names

    light, dark = ["labkit-on-light"], ["labkit-on-dark"]
    assert seen('data-jp-theme-light="true"') == light
    assert seen('data-jp-theme-light="false"') == dark
    # What JupyterLab's theme says counts more than what the browser prefers.
    assert seen('data-jp-theme-light="true"', "dark") == light
    assert seen("", "dark") == dark
    assert seen("", "light") == light
    assert seen('class="vscode-dark"') == dark
    assert seen('class="vscode-light"', "dark") == light
    assert seen('data-md-color-scheme="slate"') == dark
    # Where styles are taken out the light one is left, on its own paper.
    assert seen('data-jp-theme-light="false"', styles=False) == light
    assert seen('data-no="no hidden"', "dark", styles=False) == light
