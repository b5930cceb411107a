"""notebooks/04_the_lab.ipynb in a real JupyterLab: draw, hear, write, close, come back."""

from __future__ import annotations

import filecmp
import json
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from axe import axe_script, serious_findings
from harness import Jupyter, Pages, command, run_all, theme

import labkit as lk
from labkit.recipe import Recipe

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
        """Waits until the lab has answered, and says nothing any more."""
        self.page.wait_for_function(
            """() => {
                const lab = document.querySelector('.labkit-lab');
                return lab && lab.querySelector('.lab-column.full .lab-text').innerText.length > 20
                    && lab.querySelector('svg[role=img]')
                    && !lab.querySelector('.lab-status[role=status]');
            }""",
            timeout=SLOW,
        )
        assert self.lab.locator(".lab-problem").count() == 0

    def draw(self, text: str) -> None:
        self.list.fill(text)
        self.list.press("Enter")
        # The answer begins to change before it is whole: first the weights, then the answer.
        self.page.wait_for_function(
            "() => !document.querySelector('.labkit-editor .problem').innerText", timeout=SLOW
        )
        self.page.wait_for_timeout(400)
        self.idle()

    def weights(self) -> list[float]:
        return [float(word) for word in self.list.input_value().split(",")]


@pytest.fixture(scope="module")
def bench(pages: Pages, jupyter: Jupyter) -> Bench:
    shutil.copyfile(NOTEBOOK, jupyter.folder / "lab.ipynb")
    page = pages.notebook("lab.ipynb", viewport={"width": 1280, "height": 1500})
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
    paper = bench.lab.locator(".labkit-editor .base").bounding_box()
    mouse = bench.page.mouse
    mouse.move(paper["x"] + paper["width"] * 0.4, paper["y"] + 3)
    mouse.down()
    mouse.move(paper["x"] + paper["width"] * 0.98, paper["y"] + 3, steps=12)
    mouse.up()
    bench.page.wait_for_timeout(400)
    bench.idle()
    assert bench.weights()[-1] > 0.9
    assert bench.lab.locator("table", has_text="next token").inner_text() != before
    bench.lab.get_by_label("undo").click()
    bench.page.wait_for_timeout(400)
    bench.idle()
    assert bench.weights() == [0.0] * 30


def test_no_serious_accessibility_finding(bench: Bench, tmp_path: Path) -> None:
    script = axe_script(tmp_path)
    for name in ("JupyterLab Dark", "JupyterLab Light"):
        theme(bench.page, name)
        bench.page.wait_for_timeout(500)
        assert serious_findings(bench.page, script, ".labkit-lab") == [], name


def test_the_seeds_list_is_written_as_labkit_merge_writes_it(bench: Bench, tmp_path: Path) -> None:
    lab = bench.lab
    bench.list.fill(SEED)
    bench.list.press("Enter")
    lab.get_by_text("stretch 40 to 30 layers").click()
    bench.page.wait_for_timeout(600)
    bench.idle()
    listed = bench.list.input_value()
    lab.get_by_role("button", name="Write the merge").click()
    lab.locator("th", has_text="written").wait_for(timeout=SLOW)
    base, loras = lk.demo()
    lk.plan(base, loras["kjv"], listed).write(tmp_path / "merged", progress=False)
    written = bench.folder / "merged"
    for path in (tmp_path / "merged").glob("*.safetensors"):
        assert filecmp.cmp(path, written / path.name, shallow=False), path.name
    lab.get_by_role("button", name="Save recipe").click()
    lab.get_by_text("saved merged.yaml").wait_for(timeout=SLOW)
    recipe = Recipe.load(bench.folder / "merged.yaml")
    assert str(recipe.terms[0].weights) == listed


def test_it_comes_back_and_leaves_a_picture(bench: Bench, pages: Pages, jupyter: Jupyter) -> None:
    bench.draw("0x10,1x20")
    listed = bench.list.input_value()
    command(bench.page, "docmanager:save")
    bench.page.wait_for_timeout(1500)
    bench.page.close()
    for session in _sessions(jupyter):
        if session["path"] == "lab.ipynb":
            _ask(jupyter, f"/api/sessions/{session['id']}", "DELETE")

    # Without its kernel the cell shows the last picture.
    page = pages.notebook("lab.ipynb", run=False)
    picture = page.locator("[class^=labkit-picture] img")
    picture.wait_for()
    assert listed in page.locator("[class^=labkit-picture]").inner_text()

    # The same cell, run again in a new kernel: what was drawn last is there.
    run_all(page)
    page.locator(".labkit-editor .base").wait_for(timeout=SLOW)
    assert Bench(page, jupyter.folder).list.input_value() == listed
    picture.wait_for(state="hidden")


def _ask(jupyter: Jupyter, path: str, method: str = "GET") -> bytes:
    request = urllib.request.Request(
        f"{jupyter.address}{path}",
        method=method,
        headers={"Authorization": f"token {jupyter.token}"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


def _sessions(jupyter: Jupyter) -> list[dict[str, Any]]:
    return list(json.loads(_ask(jupyter, "/api/sessions")))
