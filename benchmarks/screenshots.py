"""Makes the pictures of the README from the real lab: docs/images/lab.png, lab-dark.png, lab.gif.

    uv run python benchmarks/screenshots.py

It starts a JupyterLab on the loopback address with the demo's model, draws in the lab with a real
mouse in Chromium, and keeps what it sees. Nothing is retouched.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from harness import CHROMIUM, QUIET, Pages, running_jupyter, theme  # noqa: E402

OUT = ROOT / "docs" / "images"
SLOW = 240_000
CELL = """
import labkit as lk
base, loras = lk.demo()
lab = lk.Lab(base, loras["kjv"], gradient=lk.Gradient.ramp(30, 14, 16), prompt="{prompt}")
lab.panel.length.value = 32
lab
"""
PROMPT = "In the beginning"
MOST_BYTES = {"lab.png": 400_000, "lab-dark.png": 400_000, "lab.gif": 2_000_000}


def answered(page: Any) -> None:
    """Waits until the lab has nothing more to say."""
    page.wait_for_timeout(400)
    page.wait_for_function(
        """() => {
            const lab = document.querySelector('.labkit-lab');
            return lab && lab.querySelector('.lab-column.full .lab-text').innerText.length > 20
                && lab.querySelector('.labkit-plane svg')
                && !lab.querySelector('.lab-status[role=status]');
        }""",
        timeout=SLOW,
    )


def paint(page: Any, way: list[tuple[float, float]], frames: list[Image.Image]) -> None:
    """Draws through points (layer's share of the width, weight), keeping a frame at each."""
    paper = page.locator(".labkit-editor .base").bounding_box()
    for index, (across, weight) in enumerate(way):
        x = paper["x"] + paper["width"] * across
        y = paper["y"] + paper["height"] * (1 - weight)
        page.mouse.move(x, y, steps=4)
        if index == 0:
            page.mouse.down()
        frames.append(frame(page))
    page.mouse.up()


def box_of(page: Any, what: str) -> Any:
    """Where an element is; answers that are just being replaced are nowhere for a moment."""
    while (box := page.locator(what).bounding_box()) is None:
        page.wait_for_timeout(20)
    return box


def frame(page: Any) -> Image.Image:
    """The part of the lab that moves: from the editor down to the answers."""
    top, answers = box_of(page, ".labkit-editor .bar"), box_of(page, ".lab-columns")
    clip = {
        "x": top["x"] - 8,
        "y": top["y"] - 6,
        "width": answers["width"] + 16,
        "height": answers["y"] + answers["height"] - top["y"] + 14,
    }
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def save_gif(frames: list[Image.Image], path: Path) -> None:
    """One palette for all frames, so that the colours do not flicker, and only what changes."""
    width, height = frames[0].width, max(one.height for one in frames)
    even = []
    for one in frames:
        sheet = Image.new("RGB", (width, height), "white")
        sheet.paste(one, (0, 0))
        even.append(sheet.resize((720, round(height * 720 / width)), Image.Resampling.LANCZOS))
    palette = even[-1].quantize(64, dither=Image.Dither.NONE)
    flat = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in even]
    durations = [130] * (len(flat) - 1) + [2500]
    flat[0].save(
        path, save_all=True, append_images=flat[1:], duration=durations, loop=0, optimize=True
    )


def save_png(page: Any, path: Path) -> None:
    """The lab down to its plane, with the colours that it needs and no more."""
    lab = page.locator(".labkit-lab").first
    picture = Image.open(io.BytesIO(lab.screenshot()))
    end = page.locator(".labkit-plane").bounding_box()
    high = end["y"] + end["height"] - lab.bounding_box()["y"]
    _save(picture.crop((0, 0, picture.width, round(high))), path)


def _save(picture: Image.Image, path: Path) -> None:
    picture.convert("RGB").quantize(200, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Make the pictures, and check that they are small enough for a README."""
    OUT.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as home,
        running_jupyter(Path(home)) as jupyter,
        sync_playwright() as runner,
    ):
        browser = runner.chromium.launch(executable_path=CHROMIUM, headless=True, args=QUIET)
        pages = Pages(browser, jupyter)
        size = {"width": 1400, "height": 2200}
        page = pages.notebook([CELL.format(prompt=PROMPT)], viewport=size)
        page.locator(".labkit-editor .base").wait_for(timeout=SLOW)
        answered(page)
        for shape in ("bell", "ramp up", "valley"):
            page.locator(".labkit-editor select").select_option(shape)
            answered(page)
        page.locator(".labkit-editor select").select_option("half and half (SuperCOT)")
        answered(page)
        page.mouse.move(0, 0)
        page.locator(".labkit-editor .layer").nth(0).evaluate("one => one.blur()")
        save_png(page, OUT / "lab.png")
        runs = page.locator(".labkit-runs").screenshot()
        _save(Image.open(io.BytesIO(runs)), OUT / "runs.png")
        theme(page, "JupyterLab Dark")
        page.wait_for_timeout(800)
        save_png(page, OUT / "lab-dark.png")
        theme(page, "JupyterLab Light")
        page.wait_for_timeout(800)
        page.locator(".labkit-editor select").select_option("constant 0")
        answered(page)
        frames = [frame(page)] * 4
        paint(page, [(0.98 - i * 0.035, min(1.0, 0.5 + i * 0.08)) for i in range(16)], frames)
        for taken in range(80):
            page.wait_for_timeout(250)
            frames.append(frame(page))
            # The first second passes before the lab has begun to answer.
            if taken > 6 and not page.locator(".lab-status[role=status]").count():
                break
        save_gif(frames, OUT / "lab.gif")
        pages.check()
        pages.close()
    for name, most in MOST_BYTES.items():
        size_now = (OUT / name).stat().st_size
        print(f"{name}: {size_now / 1000:.0f} kB")
        if size_now > most:
            raise SystemExit(f"{name} is larger than {most / 1000:.0f} kB")


if __name__ == "__main__":
    main()
