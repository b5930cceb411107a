"""What the editor draws of its traits: its own code on a page, without Jupyter and Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import labkit
from labkit.widgets.editor import GradientEditor
from labkit.widgets.front_picker import FrontPicker

WIDGETS = Path(labkit.__file__).parent / "widgets"
PAGE = """<!doctype html><style>{style}</style><div id="here" style="width:{width}px"></div>
<script type="module">
{code}
const traits = {traits};
const told = {{}};
window.model = {{
  get: (name) => traits[name],
  set(name, value) {{
    traits[name] = value;
    (told[`change:${{name}}`] ?? []).forEach((one) => one());
  }},
  save_changes() {{}},
  sent: [],
  send(content) {{ this.sent.push(content.name); }},
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
        page = browser.new_page()
        opened.append(page)
        name = "editor" if isinstance(editor, GradientEditor) else "front_picker"
        code = (WIDGETS / f"{name}.js").read_text().replace("export default", "const widget =")
        page.set_content(
            PAGE.format(
                style=(WIDGETS / f"{name}.css").read_text(),
                code=code,
                width=width,
                traits=json.dumps(state, default=str),
            )
        )
        page.locator(".layer, .dot").first.wait_for()
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
