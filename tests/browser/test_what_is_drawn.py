"""What the widgets draw of their traits: its own code on a page, without Jupyter and Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labkit.widgets.editor import GradientEditor
from labkit.widgets.front_picker import FrontPicker
from labkit.widgets.runs_plane import RunsPlane
from labkit.widgets.runs_table import RunsTable

PAGE = """<!doctype html><style>{style}</style><div id="here" style="width:{width}px"></div>
<script type="module">
{code}
const traits = {traits};
const told = {{}};
window.model = {{
  get: (name) => traits[name],
  set(name, value) {{
    const given = typeof name === "string" ? {{ [name]: value }} : name;
    Object.assign(traits, given);
    for (const one of Object.keys(given)) (told[`change:${{one}}`] ?? []).forEach((on) => on());
  }},
  save_changes() {{}},
  sent: [],
  send(content) {{ this.sent.push(content.kind === "pick" ? content.name : content); }},
  on: (name, one) => (told[name] ??= []).push(one),
  off() {{}},
}};
widget.render({{ model, el: document.getElementById("here") }});
</script>"""

Draw = Callable[..., Any]


@pytest.fixture
def draw(browser: Any) -> Iterator[Draw]:
    """Draws an editor, or another widget, alone; `page.evaluate` can set a trait of `model`."""
    opened = []

    def drawn(width: int = 900, **traits: Any) -> Any:
        editor = traits.pop("widget", None)
        if editor is None:
            editor = GradientEditor(traits.pop("gradient", [0, 0.25, 0.5, 1]), **traits)
        state = {name: getattr(editor, name) for name in editor.trait_names(sync=True)}
        state = {name: value for name, value in state.items() if not name.startswith("_")}
        state.pop("layout", None)
        page = browser.new_page()
        opened.append(page)
        code = editor._esm if isinstance(editor._esm, str) else Path(str(editor._esm)).read_text()
        code = code.replace("export default", "const widget =")
        page.set_content(
            PAGE.format(
                style=str(editor._css),
                code=code,
                width=width,
                traits=json.dumps(state, default=str),
            )
        )
        page.locator(".layer, .dot, .labkit-runs table").first.wait_for()
        return page

    yield drawn
    for page in opened:
        page.close()


EVIDENCE = {
    "scripture": [(-0.04, -0.05, -0.03), (0.02, 0.01, 0.03), (0.01, -0.01, 0.03), (0.04, 0, 0.05)],
    "prose": [(-0.01, -0.02, -0.005), (0.01, None, None), (0, 0, 0), (0.03, 0.02, 0.04)],
}


def boxes(page: Any, selector: str) -> list[dict[str, float]]:
    return [one.bounding_box() for one in page.locator(selector).all()]


def test_each_gradient_that_is_drawn_has_its_own_undo(draw: Draw) -> None:
    page = draw(gradient=[0, 0, 0, 0])
    undo, redo = page.get_by_label("undo"), page.get_by_label("redo")

    def other(subject: str, weights: list[float]) -> None:
        page.evaluate("given => model.set(given)", {"subject": subject, "weights": weights})

    def weights() -> list[float]:
        page.wait_for_timeout(80)
        return page.evaluate("model.get('weights')")

    page.locator(".layer").first.press("PageUp")
    first = weights()
    assert first[0] > 0
    other("1 ", [1, 1, 1, 1])
    assert undo.is_disabled()
    page.locator(".layer").last.press("PageDown")
    assert weights()[3] < 1
    undo.click()
    assert weights() == [1, 1, 1, 1]
    assert undo.is_disabled()
    other("", first)
    assert redo.is_disabled()
    undo.click()
    assert weights() == [0, 0, 0, 0]
    other("1 ", [1, 1, 1, 1])
    redo.click()
    assert weights()[3] < 1


def test_evidence_stands_in_place_of_the_norms(draw: Draw) -> None:
    page = draw(norms=[1, 2, 3, 4], evidence=EVIDENCE, evidence_note="Measured at 0,0.25,0.5,1.")
    kinds = [one.get_attribute("class") for one in page.locator(".effect").all()]
    first = ["better", "worse", "unsure", "unsure"]
    second = ["better second", "unsure second", "unsure second", "worse second"]
    assert kinds == [f"effect {kind}" for kind in (*first, *second)]
    assert page.locator(".whisker").count() == 7  # one interval is not known
    zero = boxes(page, ".no-effect")[0]["y"]
    effects = boxes(page, ".effect")
    # Better is up; as long as the estimate is large; the second text stands beside the first.
    assert effects[0]["y"] + effects[0]["height"] == pytest.approx(zero, abs=2)
    assert effects[1]["y"] == pytest.approx(zero, abs=2)
    assert effects[0]["height"] == pytest.approx(2 * effects[1]["height"], abs=3)
    assert effects[4]["x"] > effects[0]["x"] + effects[0]["width"]
    assert page.locator(".norm").get_attribute("d") == ""
    assert "Measured at 0,0.25,0.5,1." in page.locator(".note").inner_text()
    legend = page.locator(".legend").inner_text()
    assert all(word in legend for word in ("scripture", "prose", "better", "worse", "includes 0"))
    ticks = page.locator(".effect-tick").all_text_contents()
    assert ticks == ["\u22120.04", "\u22120.02", "0", "+0.02", "+0.04"]
    said = [one.get_attribute("aria-valuetext") for one in page.locator(".layer").all()]
    assert said[0].startswith(
        "0; scripture: better, \u22120.04 nats per token (\u22120.05 to \u2212"
    )
    assert said[1].endswith("; prose: +0.01 nats per token, no interval")
    assert "; scripture: not told from 0, +0.01 nats per token (\u22120.01 to +0.03)" in said[2]
    page.evaluate("model.set('evidence', {}); model.set('evidence_note', '')")
    assert page.locator(".effect").count() == 0
    assert page.locator(".norm").get_attribute("d") != ""
    assert page.locator(".note").inner_text() == ""
    assert page.locator(".layer").first.get_attribute("aria-valuetext") == "0"


def heights(page: Any, selector: str) -> list[float]:
    """The lowest and the highest y of a shape, without its stroke."""
    return page.locator(selector).first.evaluate(
        "shape => { const box = shape.getBBox(); return [box.y, box.y + box.height]; }"
    )


def test_other_gradients_in_force_are_outlines_with_names(draw: Draw) -> None:
    page = draw(others={"attention": [0, 0, 2, 2], "MLP": [1, 1, 1, 1]})
    assert page.locator(".other").count() == 2
    legend = page.locator(".legend").inner_text()
    assert "attention: mean weight 1.00" in legend
    assert "MLP: mean weight 1.00" in legend
    # The axis reaches to the highest of them.
    assert heights(page, ".other") == pytest.approx(heights(page, ".base"), abs=1)
    page.evaluate("model.set('others', {})")
    assert page.locator(".other").count() == 0
    assert "attention" not in page.locator(".legend").inner_text()


def test_what_survives_stands_on_the_line_of_zero(draw: Draw) -> None:
    page = draw(gradient=[-0.5, 0, 0.5, 1], norms=[1, 1, 1, 1])
    high, low = heights(page, ".base")
    zero = heights(page, ".zero")[0]
    assert zero == pytest.approx(high + (low - high) * 2 / 3, abs=1)
    top, floor = heights(page, ".survives")
    assert floor == pytest.approx(zero, abs=1)
    assert top == pytest.approx(zero - 0.94 * (zero - high), abs=1)


def test_the_axis_stays_while_a_hand_moves_and_comes_back_after(draw: Draw) -> None:
    page = draw(gradient=[2, 0.5, 0.5, 0.5])
    box = page.locator(".base").bounding_box()

    def ticks() -> list[str]:
        return page.locator(".ticks text").all_text_contents()

    assert "2" in ticks()[:6]
    page.mouse.move(box["x"] + 20, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.evaluate("model.set('bounds', [0, 1])")  # as Python answers
    assert "1.5" in ticks()
    page.mouse.up()
    assert "1.5" not in ticks()
    assert float(page.locator(".layer").first.get_attribute("aria-valuenow")) == 1


def test_a_dot_of_the_front_is_picked_by_mouse_and_by_keyboard(draw: Draw) -> None:
    dots = [
        {"name": name, "x": x, "y": y, "low": low, "high": high, "label": name,
         "said": f"{name}: NLL {y}", "color": "#e69f00"}
        for name, x, y, low, high in (
            ("0.3", 0.3, 2.3, 2.2, 2.35), ("base", 0.0, 3.0, None, None), ("1", 0.2, 2.5, 2.4, 2.6),
        )
    ]  # fmt: skip
    curve = [[0, 3], [0.3, 2.4], [1, 2]]
    page = draw(widget=FrontPicker(dots, curve, ("KL", "NLL"), lambda _: None))
    assert page.locator(".dot").count() == 3
    page.get_by_role("button", name="0.3: NLL 2.3").locator(".reach").click()
    assert page.evaluate("model.sent") == ["0.3"]
    # By keyboard the fits come after the others, and each kind from left to right.
    page.keyboard.press("Shift+Tab")
    assert page.locator(":focus").get_attribute("aria-label") == "1: NLL 2.5"
    assert page.locator(".said").inner_text() == "1: NLL 2.5"
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press(" ")
    assert page.evaluate("model.sent") == ["0.3", "1", "base"]
    page.evaluate("model.set('chosen', '1'); model.set('problem', 'that was wrong')")
    pressed = [one.get_attribute("aria-pressed") for one in page.locator(".dot").all()]
    assert pressed == ["false", "true", "false"]
    assert page.locator(".said").inner_text() == "Loaded: 1: NLL 2.5"
    assert page.locator(".problem").inner_text() == "that was wrong"
    # A whisker ends where its interval does, on the scale of the dots.
    at = {
        one["label"]: boxes(page, f".dot[aria-label^='{one['label']}:'] .mark")[0] for one in dots
    }
    middle = {name: box["y"] + box["height"] / 2 for name, box in at.items()}
    per_nat = (middle["0.3"] - middle["base"]) / (3.0 - 2.3)
    whisker = boxes(page, ".dot[aria-label^='0.3:'] .whisker")[0]
    assert whisker["y"] == pytest.approx(middle["base"] + (3 - 2.35) * per_nat, abs=1.5)
    assert whisker["y"] + whisker["height"] == pytest.approx(
        middle["base"] + (3 - 2.2) * per_nat, abs=1.5
    )


def test_what_one_origin_sets_is_one_step_of_undo(draw: Draw) -> None:
    page = draw(gradient=[0, 0.25, 0.5, 1])
    undo = page.get_by_label("undo")

    def listed() -> str:
        return page.get_by_label("layer weights as a list").input_value()

    page.evaluate("model.set('origin', 'fit')")
    for weights in ("[1, 0, 0, 0]", "[1, 1, 0, 0]", "[1, 1, 1, 0]"):
        page.evaluate(f"model.set('weights', {weights})")
    assert listed() == "1,1,1,0"
    undo.click()
    assert listed() == "0,0.25,0.5,1"
    # Without an origin each change is a step.
    page.evaluate("model.set('origin', '')")
    for weights in ("[0, 0, 0, 0.5]", "[0, 0, 0, 0.25]"):
        page.evaluate(f"model.set('weights', {weights})")
    undo.click()
    assert listed() == "0,0,0,0.5"


def row(key: str, **more: Any) -> dict[str, Any]:
    usual = {
        "key": key, "name": key, "fixed": False, "starred": False, "said": "In → so",
        "gradient": "0x2,1x2", "bars": [[0, 0, 1, 1]], "mean": 0.5, "first": [3.0, -0.1, -0.2, 0.1],
        "second": [2.0, 0.1, 0.0, 0.2], "kl": 0.25, "seconds": 1.5, "time": 100.0,
    }  # fmt: skip
    return {**usual, **more}


ROWS = [
    row("base", fixed=True, first=[3.5, None, None, None], time=None, seconds=None, mean=0),
    row("run 2", first=[3.25, -0.25, -0.5, 0], kl=0.5, time=300.0),
    row("run 10", first=[3.0, 0.25, None, None], kl=0.1, time=200.0, starred=True),
    row("<b>odd</b>", first=None, second=None, kl=None, time=400.0, said="<i>x</i>"),
]


def names(page: Any) -> list[str]:
    return [str(one) for one in page.locator(".labkit-runs .name").all_text_contents()]


def test_runs_are_sorted_and_those_always_there_stay_first(draw: Draw) -> None:
    page = draw(widget=RunsTable({}, rows=ROWS, texts=["verse", "prose"], current="run 2"))
    assert names(page) == ["base", "<b>odd</b>", "run 2", "run 10"]  # the latest first
    head = page.get_by_role("columnheader", name="NLL on verse")
    assert head.get_attribute("aria-sort") == "none"
    head.get_by_role("button").click()
    assert names(page) == ["base", "run 10", "run 2", "<b>odd</b>"]  # without a number: last
    assert head.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")  # the focus stayed
    assert names(page) == ["base", "run 2", "run 10", "<b>odd</b>"]
    for button, expected in (
        ("sort by run", ["base", "<b>odd</b>", "run 2", "run 10"]),
        ("sort by KL to the base on prose", ["base", "run 10", "run 2", "<b>odd</b>"]),
        ("sort by starred", ["base", "run 10", "<b>odd</b>", "run 2"]),
    ):
        page.locator(f"[title='{button}']").click()
        assert names(page)[1] == expected[1], button
    cells = page.locator("tr[data-key='run 2'] td.nll").all_text_contents()
    assert cells == ["3.250\u22120.25 [\u22120.50, +0.00]", "2.000+0.10 [+0.00, +0.20]"]
    assert page.locator("tr[data-key='run 10'] td.nll").first.inner_text() == "3.000\n+0.25"
    assert page.locator("tr[aria-current]").get_attribute("data-key") == "run 2"
    assert page.locator(".labkit-runs :is(b, i)").count() == 0
    assert boxes(page, ".labkit-runs .frame")[0]["width"] <= 900


def test_in_a_narrow_lab_names_of_runs_are_not_cut(draw: Draw) -> None:
    rows = [row("best constant", fixed=True), row("run 10"), row("full LoRA")]
    page = draw(widget=RunsTable({}, rows=rows, texts=["King James text", "everyday text"]))
    for width in (418, 380, 900):
        page.locator(".labkit-runs").evaluate(f"one => {{ one.style.width = '{width}px'; }}")
        cut = page.locator(".labkit-runs :is(.name, thead button, .shape)").evaluate_all(
            """all => all.filter(one => getComputedStyle(one.closest('th, td')).display !== 'none'
                && one.scrollWidth > one.clientWidth).map(one => one.textContent)"""
        )
        assert cut == [], width


def test_a_run_is_recalled_starred_renamed_and_compared(draw: Draw) -> None:
    page = draw(widget=RunsTable({}, rows=ROWS, texts=["verse", "prose"]))

    def sent() -> Any:
        return page.evaluate("model.sent.splice(0)")

    page.locator("tr[data-key='run 2'] td.shape").click()
    assert sent() == [{"kind": "recall", "key": "run 2"}]
    page.get_by_role("button", name="star run 10").click()
    page.get_by_role("checkbox", name="compare base").check()
    page.get_by_role("checkbox", name="compare run 2").check()
    assert sent() == [
        {"kind": "star", "key": "run 10", "starred": False},
        {"kind": "compare", "keys": ["base"]},
        {"kind": "compare", "keys": ["base", "run 2"]},
    ]
    page.locator("tr[data-key='run 2']").hover()
    page.get_by_role("button", name="rename run 2").click()
    field = page.get_by_role("textbox", name="new name of run 2")
    field.press_sequentially("late half")
    # A run that comes meanwhile takes neither the words nor the focus away.
    page.evaluate("model.set('rows', [...model.get('rows'), {...model.get('rows')[1], key: 'n'}])")
    field.press_sequentially("!")
    field.press("Enter")
    assert sent() == [{"kind": "rename", "key": "run 2", "name": "late half!"}]
    assert page.locator(":focus").get_attribute("aria-label") == "rename run 2"
    page.keyboard.press("Enter")
    field.fill("other")
    field.press("Escape")
    assert sent() == []
    page.evaluate("model.set('problem', 'that was wrong')")
    assert page.locator(".labkit-runs .problem").inner_text() == "that was wrong"


def test_the_runs_by_keyboard(draw: Draw) -> None:
    page = draw(widget=RunsTable({}, rows=ROWS, texts=["verse", "prose"]))
    page.get_by_role("checkbox", name="compare base").focus()
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    assert page.locator(":focus").get_attribute("aria-label") == "compare run 2"
    page.keyboard.press("Tab")
    assert page.locator(":focus").get_attribute("aria-label") == "star run 2"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("model.sent") == [{"kind": "recall", "key": "run 2"}]
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")  # one row is in the way of Tab, and no more
    assert page.locator(":focus").count() == 0 or not page.evaluate(
        "document.querySelector('.labkit-runs').contains(document.activeElement)"
    )


def point(key: str, x: float, y: float, kind: str = "run", **more: Any) -> dict[str, Any]:
    usual = {"across": None, "up": None, "label": "", "said": f"{key}: here"}
    return {"key": key, "kind": kind, "x": x, "y": y, **usual, **more}


def plane(**traits: Any) -> RunsPlane:
    points = [
        point("base", 1, 5, "base", label="base"),
        point("full", 3, 3, "full", label="full LoRA", across=[2.5, 3.5], up=[2.75, 3]),
        point("a", 2, 4),
        point("b", 1.5, 3.5, label="merged"),
    ]
    usual = {"points": points, "texts": ["one", "<two>"], "current": "b"}
    return RunsPlane(lambda key: None, **{**usual, **traits})


def middles(page: Any) -> dict[str, tuple[float, float]]:
    return {
        str(one.get_attribute("data-key")): one.locator(".dot").evaluate(
            "dot => [+dot.getAttribute('cx'), +dot.getAttribute('cy')]"
        )
        for one in page.locator(".point").all()
    }


def test_the_plane_is_true_to_scale(draw: Draw) -> None:
    page = draw(widget=plane(line=[[1, 5], [2.5, 4], [3, 3]]))
    at = middles(page)
    # A larger NLL lies further right and further up; y grows downwards.
    assert at["base"][0] < at["b"][0] < at["a"][0] < at["full"][0]
    assert at["base"][1] < at["a"][1] < at["b"][1] < at["full"][1]
    for axis, share in ((0, 0.25), (1, 0.75)):
        base, full = at["base"][axis], at["full"][axis]
        assert at["a"][axis] == pytest.approx((base + full) / 2, abs=0.01)
        assert at["b"][axis] == pytest.approx(base + share * (full - base), abs=0.01)

    def corners(kind: str) -> list[list[float]]:
        drawn = page.locator(f".labkit-plane .{kind}").get_attribute("points")
        return [[float(one) for one in pair.split(",")] for pair in drawn.split()]

    assert corners("trail") == [pytest.approx(at["a"]), pytest.approx(at["b"])]
    assert corners("constants")[0] == pytest.approx(at["base"])
    assert page.locator(".step").count() == 1
    # The ends of the whiskers lie where their numbers are.
    across, up = page.locator(".point.full .whisker").evaluate_all(
        "all => all.map(one => { const box = one.getBBox(); "
        "return [box.x, box.x + box.width, box.y, box.y + box.height]; })"
    )
    per_nat = (at["full"][0] - at["base"][0]) / 2, (at["full"][1] - at["base"][1]) / 2
    ends = [at["full"][0] - 0.5 * per_nat[0], at["full"][0] + 0.5 * per_nat[0]]
    assert across[:2] == pytest.approx(ends, abs=0.1)
    assert up[2:] == pytest.approx([at["full"][1], at["full"][1] + 0.25 * per_nat[1]], abs=0.1)
    # Numbers of the axes stand at their values.
    ticks = {
        text: float(x)
        for text, x, anchor in page.locator(".labkit-plane text").evaluate_all(
            "all => all.map(one => [one.textContent, one.getAttribute('x'), "
            "one.getAttribute('text-anchor')])"
        )
        if anchor == "middle" and x and text in ("1.0", "2.0", "3.0")
    }
    assert ticks["2.0"] == pytest.approx(at["a"][0], abs=0.01)
    words = page.locator(".labkit-plane text").all_text_contents()
    assert {"NLL on one (nats per token)", "NLL on <two>", "base", "full LoRA", "merged"} < set(
        words
    )


def test_a_point_says_what_it_is_and_brings_its_run_back(draw: Draw) -> None:
    page = draw(widget=plane())
    said = page.locator(".labkit-plane .said")
    assert said.inner_text() == "Now: b: here"
    page.locator(".point[data-key=a] .reach").hover()
    assert said.inner_text() == "a: here"
    page.locator(".point[data-key=a] .reach").click()
    assert page.evaluate("model.sent.splice(0)") == [{"kind": "recall", "key": "a"}]
    # By keyboard from left to right: base, b, a, full LoRA.
    page.locator(".point[data-key=b]").focus()
    assert said.inner_text() == "b: here"
    for key, expected in (("ArrowRight", "a"), ("ArrowRight", "full"), ("ArrowRight", "base")):
        page.keyboard.press(key)
        assert said.inner_text() == f"{expected}: here"
        assert page.locator(":focus").get_attribute("aria-label") == f"{expected}: here"
    page.keyboard.press("Enter")
    assert page.evaluate("model.sent.splice(0)") == [{"kind": "recall", "key": "base"}]
    assert page.locator(".point.now").get_attribute("data-key") == "b"
    assert page.locator(".point[tabindex='0']").count() == 1
    page.evaluate("model.set('points', [])")
    assert page.locator(".labkit-plane svg").count() == 0


def test_labels_cover_no_point_and_no_label(draw: Draw) -> None:
    crowd = [point(str(n), 1 + n % 5 * 0.1, 2 + n // 5 * 0.4, label=f"run {n}") for n in range(8)]
    page = draw(widget=plane(points=crowd, current=""))
    found = boxes(page, ".labkit-plane .label")
    paper = boxes(page, ".labkit-plane .paper")[0]
    assert len(found) == 8
    for number, one in enumerate(found):
        assert paper["x"] <= one["x"] <= paper["x"] + paper["width"] - one["width"] + 2
        for other in found[number + 1 :]:
            across = min(one["x"] + one["width"], other["x"] + other["width"]) - max(
                one["x"], other["x"]
            )
            down = min(one["y"] + one["height"], other["y"] + other["height"]) - max(
                one["y"], other["y"]
            )
            assert across <= 1 or down <= 3
