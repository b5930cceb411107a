"""The lab's runs in a real JupyterLab, with a tiny model: tried, brought back, heard blind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from axe import axe_script, serious_findings
from harness import Jupyter, Pages, theme, until

from tests.tiny import make_adapter, make_base, make_letters

SLOW = 120_000  # ms


@pytest.fixture(scope="module")
def lab(pages: Pages, jupyter: Jupyter) -> Any:
    base = make_base(jupyter.folder / "loud", initializer_range=0.3, vocab_size=97)
    make_adapter(jupyter.folder / "lora", make_letters(base), scale=0.3)
    cell = "import labkit as lk\nlab = lk.Lab('loud', 'lora', prompt='In the', tokens=8)\nlab"
    page = pages.notebook([cell], viewport={"width": 1280, "height": 1700})
    shown = page.locator(".labkit-lab")
    shown.locator(".labkit-plane .point.best").wait_for(timeout=SLOW)
    draw(shown, "0,0,1,1", 2)
    draw(shown, "1,0.5,0,0", 3)
    return shown


def draw(lab: Any, text: str, runs: int) -> None:
    listed = lab.get_by_label("layer weights as a list")
    listed.fill(text)
    listed.press("Enter")
    rows = lab.locator(".labkit-runs tbody.own tr[data-key]")
    until(lambda: rows.count() == runs, lambda: f"{rows.count()} runs", SLOW / 1000)
    points = lab.locator(".labkit-plane .point.run")
    until(lambda: points.count() == runs, lambda: f"{points.count()} points", SLOW / 1000)


def test_a_press_on_a_row_or_a_point_brings_the_run_back(lab: Any) -> None:
    listed = lab.get_by_label("layer weights as a list")
    lab.get_by_role("button", name="run 2", exact=True).click()
    until(lambda: listed.input_value() == "0,0,1,1", listed.input_value, SLOW / 1000)
    now = lab.locator(".labkit-runs tr.now .name")
    until(lambda: now.all_text_contents() == ["run 2"], now.all_text_contents, SLOW / 1000)
    lab.locator(".labkit-plane .point.run[aria-label^='run 3:'] .reach").click()
    until(lambda: listed.input_value() == "1,0.5,0,0", listed.input_value, SLOW / 1000)
    # The answers of the three, as the table has them, are those on the screen.
    merged = lab.locator(".lab-column.merged .lab-text")
    said = lab.locator("tr[data-key]", has_text="run 3").locator(".said")
    until(
        lambda: said.inner_text().endswith(" ".join(merged.inner_text().split())),
        lambda: f"{said.inner_text()} and {merged.inner_text()}",
        SLOW / 1000,
    )


def test_two_runs_are_compared_and_a_run_is_named(lab: Any) -> None:
    for name in ("run 2", "run 3"):
        lab.get_by_role("checkbox", name=f"compare {name}").check()
        lab.locator("input:checked[data-role=pick]").first.wait_for()
    lab.get_by_role("columnheader", name="run 3 less run 2, 95 %").wait_for(timeout=SLOW)
    lab.locator("tr[data-key]", has_text="run 2").hover()
    lab.get_by_role("button", name="rename run 2").click()
    lab.get_by_label("new name of run 2").fill("late half")
    lab.get_by_label("new name of run 2").press("Enter")
    lab.get_by_role("button", name="late half", exact=True).wait_for(timeout=SLOW)


def test_listening_blind(lab: Any, tmp_path: Path) -> None:
    lab.locator(".jupyter-widget-Collapse-header", has_text="Listen blind").click()
    prompts = lab.get_by_label("prompts, one a line")
    prompts.fill("In the\nOut of")
    prompts.press("Tab")
    lab.get_by_role("button", name="Draw a pair").click()

    def pair() -> list[str]:
        """The answer A on the screen, below a prompt that each pair has for itself.

        Answers that are no part of a pair stand in columns too; no run is called "A".
        """
        name = lab.page.locator(".lab-name", has_text=re.compile("^A$"))
        return lab.locator(".lab-column.plain").filter(has=name).all_inner_texts()

    for _ in range(2):
        lab.get_by_text("Which is better?").wait_for(timeout=SLOW)
        voted = pair()
        assert len(voted) == 1
        lab.get_by_role("button", name="A is better").click()
        # The next pair can be there before anybody sees that the question was away.
        until(lambda voted=voted: pair() != voted, lambda: str(pair()), SLOW / 1000)
        lab.locator(".lab-problem").or_(lab.get_by_text("Which is better?")).wait_for(timeout=SLOW)
    assert "you have heard this pair on every prompt" in lab.locator(".lab-problem").inner_text()
    lab.get_by_role("button", name="Reveal").click()
    lab.get_by_text("exact, Clopper and Pearson").wait_for(timeout=SLOW)
    script = axe_script(tmp_path)
    for name in ("Listen blind", "Texts", "A file of prompts", "Runs"):
        head = lab.locator(".jupyter-widget-Collapse-header", has_text=name)
        if name != "Listen blind":
            head.click()
        theme(lab.page, "JupyterLab Dark" if name in ("Texts", "Runs") else "JupyterLab Light")
        assert serious_findings(lab.page, script, ".labkit-lab") == [], name
    wider = lab.evaluate(
        """lab => [lab, ...lab.querySelectorAll('.widget-box, .labkit-runs *')].filter(
            one => one.scrollWidth > one.clientWidth
                && !['hidden', 'visible'].includes(getComputedStyle(one).overflowX))
            .map(one => one.className)"""
    )
    assert wider == []
