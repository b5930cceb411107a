"""How long a pointer move takes to be drawn at 126 layers, and to be in Python.

uv run python benchmarks/editor_frames.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from statistics import median

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))

from harness import CHROMIUM, QUIET, Pages, running_jupyter

CELL = """
import json, pathlib, time
import labkit as lk

editor = lk.GradientEditor(lk.Gradient.constant(126, 0), norms=[0.01] * 126)
editor.observe(
    lambda change: pathlib.Path("seen.json").write_text(
        json.dumps({"at": time.time() * 1000, "weight": change["new"][100]})
    ),
    "weights",
)
editor
"""
# A move's handler, then the style and layout that the next frame would need.
FRAME = """() => {
    const svg = document.querySelector('.labkit-editor .plot');
    const paper = svg.querySelector('.base').getBoundingClientRect();
    const send = (kind, x, y) => svg.dispatchEvent(new PointerEvent(kind, {
        bubbles: true, pointerId: 1, button: 0, isPrimary: true, clientX: x, clientY: y}));
    svg.setPointerCapture = () => {};
    const times = [];
    send('pointerdown', paper.left + 1, paper.top + 50);
    for (let i = 0; i < 200; i++) {
        const x = paper.left + ((i * 37) % 126 + 0.5) / 126 * paper.width;
        const y = paper.top + ((i * 61) % 100) / 100 * paper.height;
        const start = performance.now();
        send('pointermove', x, y);
        svg.getBBox();
        document.body.offsetHeight;
        times.push(performance.now() - start);
    }
    send('pointerup', paper.left + 1, paper.top + 50);
    return times;
}"""


def main() -> None:
    """Measure and print."""
    with (
        tempfile.TemporaryDirectory() as home,
        running_jupyter(Path(home)) as jupyter,
        sync_playwright() as runner,
    ):
        browser = runner.chromium.launch(executable_path=CHROMIUM, headless=True, args=QUIET)
        pages = Pages(browser, jupyter)
        page = pages.notebook([CELL])
        page.locator(".labkit-editor .base").wait_for()
        times = sorted(page.evaluate(FRAME))
        print(
            f"a pointer move at 126 layers: median {median(times):.1f} ms, "
            f"95 of 100 within {times[int(len(times) * 0.95)]:.1f} ms, longest {times[-1]:.1f} ms"
        )
        paper = page.locator(".labkit-editor .base").bounding_box()
        x = paper["x"] + paper["width"] * 100.5 / 126
        delays = []
        for turn in range(10):
            y = paper["y"] + paper["height"] * (0.1 + 0.08 * turn)
            page.mouse.move(x, y)
            page.mouse.down()
            released = page.evaluate("() => Date.now()")
            page.mouse.up()
            page.wait_for_timeout(600)
            seen = json.loads((jupyter.folder / "seen.json").read_text())
            delays.append(seen["at"] - released)
        delays.sort()
        print(
            f"the last value in Python: median {median(delays):.0f} ms, longest {delays[-1]:.0f} ms"
        )
        pages.close()


if __name__ == "__main__":
    main()
