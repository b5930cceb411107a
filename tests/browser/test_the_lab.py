"""notebooks/04_the_lab.ipynb in a real JupyterLab: draw, hear, write, close, come back."""

from __future__ import annotations

import filecmp
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from axe import axe_script, serious_findings
from harness import Jupyter, Pages, run_all, save, theme, until

import labkit as lk
from labkit.gradients.gradient import Gradient
from labkit.merging.recipe import Recipe

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "04_the_lab.ipynb"
SEED = "0x19,0.5,1x20"
SLOW = 120_000  # ms; a laptop that does something else as well


class Bench:
    """The lab on a page."""

    def __init__(self, page: Any, folder: Path) -> None:
        self.page, self.folder = page, folder
        self.lab = page.locator(".labkit-lab")
        self.list = self.lab.get_by_label("layer weights as a list")

    def column(self, name: str) -> str:
        return str(self.lab.locator(f".lab-column.{name} .lab-text").inner_text(timeout=SLOW))

    def idle(self) -> None:
        """Waits until the lab has answered for what is drawn, and says nothing any more.

        The picture below the lab comes from Python, with the list that it was made for: once that
        is the list on the screen, what is drawn has been asked of the model.
        """
        self.page.wait_for_function(
            """() => {
                const lab = document.querySelector('.labkit-lab');
                const list = lab && lab.querySelector('[aria-label="layer weights as a list"]');
                const pictures = [...document.querySelectorAll('[class^=labkit-picture] code')];
                return list && pictures.some(one => one.textContent === list.value)
                    && lab.querySelector('.lab-column.full .lab-text').innerText.length > 20
                    && lab.querySelector('.labkit-plane svg')
                    && !lab.querySelector('.lab-status[role=status]');
            }""",
            timeout=SLOW,
        )
        assert self.lab.locator(".lab-problem").count() == 0

    def draw(self, text: str) -> None:
        self.list.fill(text)
        self.list.press("Enter")
        until(lambda: self.list.input_value() == str(Gradient.parse(text)), self.list.input_value)
        self.idle()

    def tab_to(self, name: str) -> None:
        """Presses Tab until the button of that name has the focus."""
        for _ in range(80):
            self.page.keyboard.press("Tab")
            if name in (self.page.locator(":focus").text_content() or ""):  # or a point's
                return
        raise AssertionError(f"Tab never comes to {name!r}")

    def weights(self) -> list[float]:
        return [float(word) for word in self.list.input_value().split(",")]


@pytest.fixture(scope="module")
def bench(pages: Pages, jupyter: Jupyter) -> Bench:
    shutil.copyfile(NOTEBOOK, jupyter.folder / "lab.ipynb")
    page = pages.notebook("lab.ipynb", viewport={"width": 1280, "height": 2100})
    page.locator(".labkit-editor .base").wait_for(timeout=SLOW)
    opened = Bench(page, jupyter.folder)
    opened.lab.get_by_label("tokens").fill("12")
    opened.lab.get_by_label("tokens").press("Enter")
    opened.idle()
    return opened


def test_the_three_columns_answer_and_change_with_the_gradient(bench: Bench) -> None:
    bench.draw("0x30")
    assert bench.column("merged") == bench.column("base")
    assert bench.lab.locator(".lab-column.merged mark").count() == 0
    bench.draw("1x30")
    assert bench.column("merged") == bench.column("full")
    assert bench.column("full") != bench.column("base")
    assert bench.lab.locator(".lab-column.merged mark").count() > 0


def test_painting_with_the_mouse_asks_the_model_again(bench: Bench) -> None:
    bench.draw("0x30")
    before = bench.lab.locator("table", has_text="next token").inner_text()
    bench.lab.locator(".labkit-editor .stage").scroll_into_view_if_needed()
    paper = bench.lab.locator(".labkit-editor .base").bounding_box()
    mouse = bench.page.mouse
    mouse.move(paper["x"] + paper["width"] * 0.4, paper["y"] + 3)
    mouse.down()
    mouse.move(paper["x"] + paper["width"] * 0.98, paper["y"] + 3, steps=12)
    mouse.up()
    bench.idle()
    assert bench.weights()[-1] > 0.9
    assert bench.lab.locator("table", has_text="next token").inner_text() != before
    bench.lab.get_by_label("undo").click()
    bench.idle()
    assert bench.weights() == [0.0] * 30


def test_a_gradient_of_attention_is_seen_and_cleared_with_one_press(bench: Bench) -> None:
    before = bench.list.input_value()
    mean = sum(bench.weights()) / 30
    bench.lab.get_by_role("button", name="attention", exact=True).click()
    bench.draw("0.5x30")
    assert f"all modules: mean weight {mean:.2f}" in bench.lab.locator(".legend").inner_text()
    merged = bench.lab.locator(".lab-column.merged")
    until(lambda: "attention 0.50" in merged.inner_text(), merged.inner_text, SLOW / 1000)
    own = bench.lab.get_by_role("button", name="attention: mean weight 0.50")
    own.click()
    own.wait_for(state="hidden")
    until(lambda: bench.list.input_value() == before, bench.list.input_value)
    bench.lab.get_by_role("button", name="all modules", exact=True).click()
    bench.idle()


@pytest.mark.parametrize("width", [900, 1280])
def test_nothing_of_it_scrolls_sideways(bench: Bench, width: int) -> None:
    bench.page.set_viewport_size({"width": width, "height": 2100})
    # The three answers stand beside each other, once the page has its new width.
    bench.page.wait_for_function(
        """() => new Set([...document.querySelectorAll('.labkit-lab .lab-column')].map(
            one => one.getBoundingClientRect().top)).size === 1"""
    )
    wider = bench.lab.evaluate(
        """lab => [lab, ...lab.querySelectorAll('.widget-box')].filter(
            one => one.scrollWidth > one.clientWidth).map(one => one.className)"""
    )
    assert wider == []


def test_what_an_export_lacks_is_said_before_the_press(bench: Bench) -> None:
    lab, export = bench.lab, bench.lab.locator("button", has_text=re.compile("Export$"))
    calibrated = lab.get_by_label("calibrated on")
    lab.get_by_label("for other programs").select_option("gptq")
    # Its texts are offered now: gptq cannot do without one.
    until(lambda: "nothing" not in calibrated.inner_html(), calibrated.inner_html)
    assert export.is_enabled()
    assert calibrated.input_value() == "the training text of kjv"
    calibrated.select_option("a file …")
    lab.get_by_text("write the name of a file with texts").wait_for()
    assert export.is_disabled()
    assert "write the name of a file" in export.get_attribute("title")
    calibrated.select_option("the training text of kjv")
    until(lambda: export.is_enabled(), export.inner_html)
    lab.get_by_label("for other programs").select_option("gguf-bf16")
    calibrated.wait_for(state="hidden")


def test_no_serious_accessibility_finding(bench: Bench, tmp_path: Path) -> None:
    script = axe_script(tmp_path)
    for name in ("JupyterLab Dark", "JupyterLab Light"):
        theme(bench.page, name)
        assert serious_findings(bench.page, script, ".labkit-lab") == [], name


def test_by_keyboard_alone_the_seeds_list_is_written_as_the_command_writes_it(
    bench: Bench, tmp_path: Path
) -> None:
    lab, keyboard = bench.lab, bench.page.keyboard
    bench.list.focus()
    keyboard.press("Control+a")
    keyboard.type(SEED)
    keyboard.press("Enter")
    lab.get_by_text("stretch 40 to 30 layers").wait_for(timeout=SLOW)
    bench.tab_to("stretch 40 to 30 layers")
    keyboard.press("Enter")
    stretched = str(Gradient.parse(SEED).resample(30).rounded())
    until(lambda: bench.list.input_value() == stretched, bench.list.input_value)
    bench.idle()
    # One weight of it by the arrow keys: the first layer's.
    bench.list.focus()
    keyboard.press("Shift+Tab")
    keyboard.press("Control+Home")
    for key in ("ArrowUp", "ArrowUp", "ArrowUp"):
        keyboard.press(key)
    bench.idle()
    assert bench.weights()[0] == 0.03
    assert bench.weights()[-1] == 1
    listed = bench.list.input_value()
    bench.tab_to("Write the merge")
    keyboard.press("Enter")
    lab.locator("th", has_text="written").wait_for(timeout=SLOW)
    base, loras = lk.demo()
    arguments = [
        base.folder,
        loras["kjv"].folder,
        "--weights",
        listed,
        "--out",
        tmp_path / "merged",
        "--quiet",
    ]
    merged = subprocess.run([sys.executable, "-m", "labkit", "merge", *map(str, arguments)])
    assert merged.returncode == 0
    expected, written = tmp_path / "merged", bench.folder / "merged"
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in written.iterdir()) == names
    # The receipt says when and how fast, the recipe where this server's cache has the base.
    _, different, unreadable = filecmp.cmpfiles(expected, written, names, shallow=False)
    assert (different, unreadable) == (["receipt.json", "recipe.yaml"], [])
    bench.tab_to("Save recipe")
    keyboard.press("Enter")
    lab.get_by_text("saved merged.yaml").wait_for(timeout=SLOW)
    recipe = Recipe.load(bench.folder / "merged.yaml")
    assert str(recipe.terms[0].weights) == listed


def test_it_comes_back_and_leaves_a_picture(bench: Bench, pages: Pages, jupyter: Jupyter) -> None:
    bench.draw("0x10,1x20")
    listed = bench.list.input_value()
    save(bench.page)
    bench.page.close()
    jupyter.stop_kernels()

    # Without its kernel the cell shows the last picture.
    page = pages.notebook("lab.ipynb", run=False)
    picture = page.locator("[class^=labkit-picture] .labkit-on-light")
    picture.wait_for()
    assert listed in page.locator("[class^=labkit-picture]").inner_text()

    # The same cell, run again in a new kernel: what was drawn last is there.
    run_all(page)
    page.locator(".labkit-editor .base").wait_for(timeout=SLOW)
    assert Bench(page, jupyter.folder).list.input_value() == listed
    picture.wait_for(state="hidden")
