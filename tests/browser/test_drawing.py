"""The editor under a real mouse, keyboard and finger, in JupyterLab and in Notebook 7."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from harness import Jupyter, Pages, theme, until

SEED = [0.0] * 19 + [0.5] + [1.0] * 20
CELL = """
import json, math, pathlib
from labkit.widgets.editor import GradientEditor
from labkit.gradients.gradient import Gradient

norms = [0.01 + 0.02 * math.sin(3 * layer / {layers}) ** 2 for layer in range({layers})]
editor = GradientEditor(
    Gradient.constant({layers}, 0), norms=norms, names=("SmolLM2-135M-Instruct", "kjv")
)
count = 0
def keep(change):
    global count
    count += 1
    target = pathlib.Path("{name}.json")
    beside = target.with_suffix(".new")
    beside.write_text(json.dumps({{"weights": change["new"], "messages": count}}))
    beside.rename(target)
editor.observe(keep, "weights")
keep({{"new": editor.weights}})
editor
"""


class Editor:
    """The editor on a page, and what Python knows of it."""

    def __init__(self, pages: Pages, jupyter: Jupyter, app: str, layers: int, **options: Any):
        self.layers, self.app = layers, app
        self.file = jupyter.folder / f"{app}{layers}{len(options)}.json"
        cell = CELL.format(layers=layers, name=self.file.stem)
        self.page = pages.notebook([cell, "# the next cell"], app, **options)
        self.page.wait_for_selector(".labkit-editor .base")
        self.root = self.page.locator(".labkit-editor")

    def fresh(self) -> Editor:
        """The same editor with every weight 0, nothing selected and nothing typed."""
        self.root.locator(".layer").first.press("Escape")
        self.preset("constant 0")
        self.shows([0.0] * self.layers)
        self.page.mouse.move(0, 0)
        return self

    def preset(self, name: str) -> None:
        self.root.locator("select").select_option(name)

    def values(self) -> list[float]:
        return self.root.evaluate(
            "root => [...root.querySelectorAll('.layer')].map(one => +one.ariaValueNow)"
        )

    def at(self, layer: int, weight: float) -> tuple[float, float]:
        box = self.root.locator(".base").bounding_box()
        across = (layer + 0.5) / self.layers
        return box["x"] + box["width"] * across, box["y"] + box["height"] * (1 - weight)

    def drag(self, *way: tuple[int, float], steps: int = 8) -> None:
        mouse = self.page.mouse
        mouse.move(*self.at(*way[0]))
        mouse.down()
        for point in way[1:]:
            mouse.move(*self.at(*point), steps=steps)
        mouse.up()

    def shows(self, weights: list[float]) -> None:
        """Waits until the screen and Python both have these weights."""
        until(lambda: self.values() == weights, lambda: f"the screen shows {self.values()}")
        until(lambda: self.python() == weights, lambda: f"Python has {self.python()}")

    def python(self) -> list[float] | None:
        return json.loads(self.file.read_text())["weights"] if self.file.exists() else None


@pytest.fixture(scope="module", params=["lab", "notebook"])
def opened(request: pytest.FixtureRequest, pages: Pages, jupyter: Jupyter) -> Editor:
    return Editor(pages, jupyter, request.param, 40)


@pytest.fixture
def editor(opened: Editor) -> Editor:
    return opened.fresh()


def test_a_drag_paints_the_layers_it_passes(editor: Editor) -> None:
    editor.drag((3, 0.25), (3, 0.5), (9, 0.8))
    painted = editor.values()
    assert painted[:3] == [0, 0, 0]
    assert painted[10:] == [0] * 30
    assert painted[3] == pytest.approx(0.5, abs=0.05)
    assert painted[9] == pytest.approx(0.8, abs=0.02)
    assert painted[3:10] == sorted(painted[3:10])
    editor.shows(painted)


def test_a_fast_hand_leaves_no_layer_out(editor: Editor) -> None:
    editor.drag((0, 1.0), (39, 1.0), steps=2)
    editor.shows([1.0] * 40)


def test_beyond_the_edge_is_the_edge(editor: Editor) -> None:
    editor.drag((5, 0.5), (5, 1.4))
    assert editor.values()[5] == 1


def test_shift_drag_draws_a_straight_line(editor: Editor) -> None:
    editor.page.keyboard.down("Shift")
    # The detour does not count: a line has two ends.
    editor.drag((10, 0.0), (15, 0.9), (20, 1.0))
    editor.page.keyboard.up("Shift")
    line = editor.values()
    assert line[9] == 0
    assert line[21] == 0
    assert line[10:21] == pytest.approx([step / 10 for step in range(11)], abs=0.03)


def test_alt_click_resets_a_layer(editor: Editor) -> None:
    editor.preset("constant 1")
    editor.shows([1.0] * 40)
    editor.page.keyboard.down("Alt")
    editor.page.mouse.click(*editor.at(7, 0.3))
    editor.page.keyboard.up("Alt")
    editor.shows([1.0] * 7 + [0.0] + [1.0] * 32)


def test_undo_and_redo(editor: Editor) -> None:
    editor.drag((0, 1.0), (39, 1.0))
    editor.drag((20, 0.0), (39, 0.0))
    half = [1.0] * 20 + [0.0] * 20
    editor.shows(half)
    editor.root.get_by_label("undo").click()
    editor.shows([1.0] * 40)
    editor.root.get_by_label("redo").click()
    editor.shows(half)
    layer = editor.root.locator('.layer[tabindex="0"]')
    layer.press("Control+z")
    layer.press("Control+z")
    editor.shows([0.0] * 40)
    layer.press("Control+Shift+z")
    editor.shows([1.0] * 40)


def test_a_range_chosen_on_the_axis_moves_as_one(editor: Editor) -> None:
    editor.preset("ramp up")
    until(lambda: editor.values()[39] == 1, lambda: str(editor.values()))
    before = editor.values()
    editor.drag((10, -0.05), (19, -0.05))
    editor.drag((12, 0.5), (17, 0.75))
    after = editor.values()
    moved = [new - old for new, old in zip(after[10:20], before[10:20], strict=True)]
    assert moved == pytest.approx([0.25] * 10, abs=0.02)
    assert after[:10] == before[:10]
    assert after[20:] == before[20:]
    editor.preset("constant 1")
    editor.shows(after[:10] + [1.0] * 10 + after[20:])
    editor.page.mouse.click(*editor.at(30, -0.05))
    editor.preset("constant 1")
    editor.shows([1.0] * 40)


def test_a_double_click_types_a_value(editor: Editor) -> None:
    editor.page.mouse.dblclick(*editor.at(11, 0.7))
    entry = editor.root.get_by_label("weight of layer 11")
    assert entry.input_value() == "0"
    entry.fill("0.37")
    entry.press("Enter")
    editor.shows([0.0] * 11 + [0.37] + [0.0] * 28)
    editor.root.locator('.layer[tabindex="0"]').press("Control+z")
    editor.shows([0.0] * 40)


def test_numbers_are_shown_while_dragging(editor: Editor) -> None:
    editor.page.mouse.move(*editor.at(4, 0.2))
    editor.page.mouse.down()
    editor.page.mouse.move(*editor.at(6, 0.6), steps=4)
    said = editor.root.locator(".bubble-text").text_content()
    editor.page.mouse.up()
    assert said == f"layer 6: {editor.values()[6]}"


def test_by_keyboard_alone(editor: Editor) -> None:
    page = editor.page
    cells = page.locator(".jp-Cell").count()
    editor.root.get_by_label("copy the list").focus()
    page.keyboard.press("Tab")
    focused = page.locator(":focus")
    assert focused.get_attribute("role") == "slider"
    page.keyboard.press("Control+Home")
    assert focused.get_attribute("aria-label") == "layer 0"
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowUp", "ArrowDown", "PageUp"):
        page.keyboard.press(key)
    assert focused.get_attribute("aria-label") == "layer 2"
    assert focused.get_attribute("aria-valuenow") == "0.2"
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    page.keyboard.type("0.75")
    page.keyboard.press("Enter")
    editor.shows([0, 0, 0.2] + [0.0] * 9 + [1, 0.75] + [0.0] * 26)
    page.keyboard.press("Control+Shift+ArrowRight")
    page.keyboard.press("Home")
    page.keyboard.press("Shift+ArrowUp")
    editor.shows([0, 0, 0.2] + [0.0] * 9 + [1, 0.1, 0.1] + [0.0] * 25)
    # These add, cut and delete cells where JupyterLab hears them.
    for key in "abxddmyz":
        page.keyboard.press(key)
    assert focused.get_attribute("role") == "slider"
    assert page.locator(".jp-Cell").count() == cells
    # All layers are one stop on the way through the page.
    page.keyboard.press("Tab")
    assert focused.get_attribute("aria-label") == "layer weights as a list"
    page.keyboard.press("Shift+Tab")
    assert focused.get_attribute("aria-label") == "layer 14"


def test_ctrl_s_still_saves_the_notebook(editor: Editor) -> None:
    page = editor.page
    # Waits for the answer of the server to the request that saves.
    with page.expect_response(lambda answer: answer.request.method == "PUT"):
        editor.root.locator('.layer[tabindex="0"]').press("Control+s")


def paste(editor: Editor, text: str) -> Any:
    field = editor.root.get_by_label("layer weights as a list")
    field.fill(text)
    field.press("Enter")
    return field


def test_a_forum_posts_list(editor: Editor) -> None:
    paste(editor, ",".join("0.5" if weight == 0.5 else str(int(weight)) for weight in SEED))
    editor.shows(SEED)
    assert editor.root.get_by_label("mean weight").text_content() == "mean weight 0.51"


def test_a_bad_list_says_what_is_wrong(editor: Editor) -> None:
    field = paste(editor, "0x39,one")
    problem = editor.root.get_by_role("alert")
    until(lambda: "entry 2 of the layer weights, 'one'" in problem.inner_text(), problem.inner_text)
    assert field.get_attribute("aria-invalid") == "true"
    assert field.input_value() == "0x39,one"
    editor.shows([0.0] * 40)
    field.press("Escape")
    assert problem.inner_text() == ""
    assert field.get_attribute("aria-invalid") is None
    # No answer that comes late shows it again: the answer to a later request comes after it.
    problem.evaluate(
        """problem => {
            problem.seen = [];
            new MutationObserver(() => problem.seen.push(problem.innerText)).observe(
                problem, {childList: true, characterData: true, subtree: true});
        }"""
    )
    editor.preset("constant 1")
    editor.shows([1.0] * 40)
    assert not any(problem.evaluate("problem => problem.seen"))


def test_a_list_for_another_model_can_be_stretched(editor: Editor) -> None:
    paste(editor, "0,1")
    problem = editor.root.get_by_role("alert")
    problem.get_by_text("stretch 2 to 40 layers").click()
    editor.shows([round(layer / 39, 2) for layer in range(40)])
    until(lambda: problem.inner_text() == "", problem.inner_text)


def test_presets_rounding_and_saved_ones(editor: Editor) -> None:
    paste(editor, "0.123,0.456x39")
    until(lambda: editor.values()[0] == 0.123, lambda: str(editor.values()))
    editor.root.get_by_label("round to 2 decimals").click()
    rounded = [0.12] + [0.46] * 39
    editor.shows(rounded)
    editor.root.get_by_label("save to presets").click()
    editor.preset("reversed")
    editor.shows(rounded[::-1])
    editor.preset("saved 0")
    editor.shows(rounded)


def test_copy(editor: Editor) -> None:
    editor.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    editor.preset("half and half (SuperCOT)")
    editor.shows(SEED)
    editor.root.get_by_label("copy the list").click()
    until(lambda: "copied" in editor.root.inner_text(), editor.root.inner_text)
    copied = editor.page.evaluate("navigator.clipboard.readText()")
    assert [float(word) for word in copied.split(",")] == SEED


def test_messages_do_not_flood(editor: Editor) -> None:
    before = json.loads(editor.file.read_text())["messages"]
    start = time.monotonic()
    way = [(layer % 40, (layer * 7 % 10) / 10) for layer in range(0, 60, 3)]
    editor.drag(*way, steps=10)
    seconds = time.monotonic() - start
    editor.shows(editor.values())
    sent = json.loads(editor.file.read_text())["messages"] - before
    assert 2 <= sent <= seconds * 20 + 3  # 190 moves


def test_it_follows_the_theme(editor: Editor) -> None:
    def colors() -> list[int]:
        return editor.root.evaluate(
            """root => ['backgroundColor', 'color'].map(name =>
                 getComputedStyle(root)[name].match(/\\d+/g).slice(0, 3)
                   .reduce((sum, part) => sum + Number(part), 0))"""
        )

    paper, ink = colors()
    assert paper > 700
    assert ink < 250
    theme(editor.page, "JupyterLab Dark")
    until(lambda: colors()[0] < 150 and colors()[1] > 600, lambda: str(colors()))
    theme(editor.page, "JupyterLab Light")
    until(lambda: colors() == [paper, ink], lambda: str(colors()))


@pytest.mark.parametrize("width", [320, 700, 2000])
def test_it_fits_every_width(editor: Editor, width: int) -> None:
    editor.root.evaluate("(root, width) => root.style.width = width + 'px'", width)
    try:
        plot = editor.root.locator(".plot")
        until(
            lambda: abs(plot.bounding_box()["width"] - (width - 16)) <= 2,
            lambda: str(plot.bounding_box()),
        )
        assert editor.root.evaluate("root => root.scrollWidth") <= width
        paper = editor.root.locator(".base").bounding_box()
        first = editor.root.locator(".layer").first.bounding_box()
        last = editor.root.locator(".layer").last.bounding_box()
        assert first["x"] == pytest.approx(paper["x"], abs=2)
        assert last["x"] + last["width"] == pytest.approx(paper["x"] + paper["width"], abs=2)
    finally:
        editor.root.evaluate("root => root.style.width = ''")


def test_help_has_its_words_beside_each_other(editor: Editor) -> None:
    editor.root.locator("summary").click()
    terms = editor.root.locator(".help dt").all()
    texts = editor.root.locator(".help dd").all()
    for term, text in zip(terms, texts, strict=True):
        assert term.bounding_box()["height"] < 30  # one line
        assert text.bounding_box()["y"] == pytest.approx(term.bounding_box()["y"], abs=2)
    editor.root.locator("summary").click()


def test_after_its_kernel_restarts_it_says_that_it_is_not_connected(editor: Editor) -> None:
    lost = editor.root.locator(".lost")
    assert lost.inner_text() == ""
    editor.page.evaluate(
        "() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()"
    )
    lost.get_by_text("Not connected: the kernel ended.").wait_for()


@pytest.fixture(scope="module")
def touched(pages: Pages, jupyter: Jupyter) -> Editor:
    options = {"has_touch": True, "viewport": {"width": 820, "height": 1000}}
    return Editor(pages, jupyter, "notebook", 126, **options)


def test_a_finger_paints_126_layers(touched: Editor) -> None:
    session = touched.page.context.new_cdp_session(touched.page)

    def finger(kind: str, *point: float) -> None:
        points = [{"x": point[0], "y": point[1]}] if point else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    finger("touchStart", *touched.at(0, 1.0))
    for layer in range(5, 126, 5):
        finger("touchMove", *touched.at(layer, 1.0))
    finger("touchEnd")
    touched.shows([1.0] * 126)
