"""The book's page to try, in a real browser, from a folder: no server and no kernel."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from axe import axe_script, serious_findings
from harness import Watched

import labkit as lk
from labkit.errors import LabkitError

pytest.importorskip("sphinx", reason="the book's packages are not installed: --group book")

WRONG_LISTS = [
    "", " , ", "0,,1", "0,x,1", "0x,1", "1x99999", "0x0,1x30", "1x30x2", "0,1", "nan,1x29",
    "0,-inf", "1e999", "0x19,0.5,1x20", "0x10001", "1_0", "0x20,1x20,'", "one two", "0x 3 1",
    "--1", "0x1f", "1," * 40,
]  # fmt: skip
GOOD_LISTS = [
    "0x15,1x15", "[0x10, 0.5x10, 1x10]", "1x29 -.5", "0.25 x 30,", "1e-1x30", "0×15,1×15", "+1x30",
    "5.x30",
]  # fmt: skip


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from docs.book.__main__ import build
    from docs.book.live_page import write_live_parts

    folder = tmp_path_factory.mktemp("book")
    write_live_parts(folder / "sources")
    front = "# Front\n\n```{toctree}\n:caption: Try it\n\ntry_it\n```\n"
    (folder / "sources" / "index.md").write_text(front)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert build(folder / "sources", folder / "pages") == 0
    return folder / "pages"


class BookPages:
    """The page in several browser contexts, and what went wrong in them."""

    def __init__(self, browser: Any, folder: Any) -> None:
        self.browser, self.folder = browser, folder
        self.watched: list[Watched] = []

    def open(self, **options: Any) -> Any:
        context = self.browser.new_context(
            **{"viewport": {"width": 1280, "height": 1000}, **options}
        )
        context.set_default_timeout(60_000)
        self.watched.append(Watched(context.new_page()))
        page = self.watched[-1].page
        # Watched lets pass what comes from this machine; here that is the folder.
        page.unroute_all()
        page.goto((self.folder / "try_it.html").as_uri())
        page.locator("#try-it .numbers tr").first.wait_for()
        return page

    def check(self) -> None:
        errors = [error for one in self.watched for error in one.errors]
        for one in self.watched:
            one.errors.clear()
        assert errors == [], "\n".join(errors)


@pytest.fixture(scope="module")
def pages(browser: Any, book: Any) -> Iterator[BookPages]:
    made = BookPages(browser, book)
    yield made
    for one in made.watched:
        one.page.context.close()


@pytest.fixture(scope="module")
def page(pages: BookPages) -> Any:
    return pages.open()


def write(page: Any, text: str) -> None:
    field = page.get_by_label("layer weights as a list")
    field.fill(text)
    field.press("Enter")


def verdict(page: Any) -> str:
    return str(page.locator(".verdict").inner_text())


def numbers(page: Any) -> list[str]:
    return list(page.locator(".numbers tr").all_inner_texts())


def test_it_opens_with_a_gradient_that_was_measured(page):
    assert verdict(page) == "Measured: this gradient itself, \u201clate half\u201d."
    rows = numbers(page)
    assert [row.split("\t")[0].split(",")[0] for row in rows] == [
        "base", "best constant", "full LoRA", "yours: late half",
    ]  # fmt: skip


def test_what_is_drawn_is_compared_with_the_nearest(page):
    write(page, "0x15,1x15")
    paper = page.locator(".labkit-editor .base").bounding_box()
    x = paper["x"] + paper["width"] * 0.5 / 30
    page.mouse.move(x, paper["y"] + paper["height"] * 0.7)
    page.mouse.down()
    page.mouse.up()
    said = verdict(page)
    assert said.startswith("Not measured: what you drew.")
    assert "\u201clate half\u201d" in said
    assert "its weights are 0.01 away" in said  # 0.3 in one layer of thirty
    assert "What follows was measured of it, not of yours." in said
    assert page.locator(".labkit-editor .other").count() == 1
    assert numbers(page)[3].startswith("nearest: late half")
    assert "mean weight 0.51" in page.locator(".labkit-editor .mean").inner_text()
    page.get_by_role("button", name="undo").click()
    assert verdict(page).startswith("Measured:")
    assert page.locator(".labkit-editor .other").count() == 0


def test_the_nearest_is_nearest_by_the_mean_over_layers(page):
    from docs.book.live_page import measured

    points = {one["name"]: lk.Gradient.parse(one["weights"]) for one in measured()["points"]}
    for text in ("0.37x30", "0x4,0.6x20,1x6", "1x12,0.2x18", "0.1x7,0.9x23"):
        drawn = lk.Gradient.parse(text)
        far = {
            name: sum(abs(a - b) for a, b in zip(drawn, weights, strict=True)) / len(drawn)
            for name, weights in points.items()
        }
        name = min(far, key=far.__getitem__)
        write(page, text)
        assert f"\u201c{name}\u201d" in verdict(page), text
        assert f"are {far[name]:.2f} away" in verdict(page), text


def test_lists_are_read_as_python_reads_them(page):
    for text in [*WRONG_LISTS, *GOOD_LISTS]:
        try:
            expected: Any = list(lk.Gradient.parse(text, 30))
        except LabkitError as error:
            expected = str(error)
        found = page.evaluate(
            """text => {
                try { return labkitPage.parse(text, 30) } catch (error) { return error.message }
            }""",
            text,
        )
        assert found == expected, text


def test_wrong_lists_are_refused_and_stretched(page):
    write(page, "0x10,1x10")
    problem = page.locator(".labkit-editor .problem")
    assert "20 weights for 30 layers" in problem.inner_text()
    problem.get_by_role("button").click()
    expected = lk.Gradient.parse("0x10,1x10").resample(30).rounded(2)
    assert page.get_by_label("layer weights as a list").input_value() == str(expected)


def test_presets_and_rounding_are_pythons(page):
    presets = page.get_by_label("preset", exact=True)
    field = page.get_by_label("layer weights as a list")
    for name in ("bell", "half and half (SuperCOT)", "ramp up"):
        presets.select_option(name)
        assert field.input_value() == str(lk.preset(name, 30))
    presets.select_option("reversed")
    assert field.input_value() == str(lk.preset("ramp up", 30).reversed())
    odd = [0.125, 0.375, -0.125, 0.145, 2.675, 1.005, 0.615, 0.335, 1 / 3, -0.001]
    write(page, ",".join(map(str, odd)) + ",0x20")
    page.get_by_role("button", name="round to 2 decimals").click()
    assert field.input_value() == str(lk.Gradient([*odd, *[0.0] * 20]).rounded(2))
    # A preset of a range alone, by keys.
    write(page, "0x30")
    page.locator(".labkit-editor .layer").first.focus()
    for _ in range(3):
        page.keyboard.press("Control+Shift+ArrowRight")
    presets.select_option("ramp up")
    assert field.input_value() == str(lk.Gradient([*lk.preset("ramp up", 4), *[0.0] * 26]))


def test_the_axis_is_wider_only_while_a_weight_is(page):
    write(page, "2x1,0x29")
    slider = page.locator(".labkit-editor .layer").first
    assert slider.get_attribute("aria-valuemax") == "2"
    write(page, "0x30")
    assert slider.get_attribute("aria-valuemax") == "1"


def test_dots_are_loaded_by_mouse_and_by_keys(page):
    write(page, "0x15,1x15")
    dot = page.locator('.dot[aria-label^="early half:"] .mark')
    dot.click(force=True)
    assert "\u201cearly half\u201d" in verdict(page)
    assert (
        page.locator('.dot[aria-pressed="true"]')
        .get_attribute("aria-label")
        .startswith("early half")
    )
    stops = page.locator('.dot[tabindex="0"]')
    assert stops.count() == 1
    stops.focus()
    page.keyboard.press("End")
    name = page.evaluate("document.activeElement.getAttribute('aria-label')").split(":")[0]
    page.keyboard.press("Enter")
    assert f"\u201c{name}\u201d" in verdict(page)
    page.get_by_role("button", name="undo").click()
    assert "\u201cearly half\u201d" in verdict(page)


def test_buttons_of_the_class_load_gradients(page):
    page.locator('button[data-load="late half"]').click()
    assert "\u201clate half\u201d" in verdict(page)


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 900)])
def test_it_is_accessible_in_both_themes(pages, theme, width, tmp_path):
    page = pages.open(color_scheme=theme, viewport={"width": width, "height": 1000})
    dark = page.evaluate(
        "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]) < 128"
    )
    assert dark == (theme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    pages.check()
    assert serious_findings(page, axe_script(tmp_path), "body") == []
    # axe asks for the style sheets once more, which a page from a folder may not; the browser says
    # so whenever it comes to it.
    pages.watched.pop().page.context.close()
