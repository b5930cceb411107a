"""How long notebooks take in a real JupyterLab: from the page's address to the last cell's answer.

Each notebook is opened in a browser of its own, with a kernel that was not there before, on the
machine as it is and beside one process that never rests. The cache holds the demo's model: what a
first run takes in addition is the download, which is the network's.

    python -m benchmarks.in_browser
    python -m benchmarks.in_browser 00 01 --busy 0 1
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copy2

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from harness import CHROMIUM, QUIET, Pages, running_jupyter  # noqa: E402

LONGEST = 1_800_000
"""Milliseconds that a notebook may take."""
DONE = """() => {
    const cells = window.jupyterapp.shell.currentWidget.content.widgets
        .filter(one => one.model.type === 'code');
    const last = cells.findLast(one => one.model.sharedModel.getSource().trim());
    return last && last.model.executionState === 'idle' && last.model.executionCount !== null;
}"""
FAILED = "() => document.querySelectorAll('.jp-OutputArea-output[data-mime-type*=error]').length"


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """That many processes beside, each of which takes all that a core has."""
    beside = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for one in beside:
            one.kill()
            one.wait()


def taken(pages: Pages, name: str) -> float:
    """Seconds from the page's address to the last cell's answer.

    Raises:
        SystemExit: a cell failed.
    """
    began = time.perf_counter()
    page = pages.notebook(name)
    page.wait_for_function(DONE, timeout=LONGEST)
    seconds = time.perf_counter() - began
    if page.evaluate(FAILED):
        sys.exit(f"a cell of {name} failed")
    pages.close()
    return seconds


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("notebooks", nargs="*", help="beginnings of names; else all")
    arguments.add_argument("--busy", nargs="+", type=int, default=[0, 1], help="processes beside")
    asked = arguments.parse_args()
    beginnings = tuple(asked.notebooks) or ("",)
    with (
        tempfile.TemporaryDirectory() as home,
        running_jupyter(Path(home)) as jupyter,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        print("| notebook | " + " | ".join(f"{n} busy processes beside" for n in asked.busy) + " |")
        print("|---" * (1 + len(asked.busy)) + "|")
        for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
            if not path.name.startswith(beginnings):
                continue
            row = []
            for count in asked.busy:
                copy2(path, jupyter.folder)
                with busy(count):
                    row.append(f"{taken(Pages(browser, jupyter), path.name):.0f} s")
            print(f"| {path.stem} | {' | '.join(row)} |", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
