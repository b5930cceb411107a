"""What each notebook takes: processor time and memory of its kernel, and the largest disk use.

Each notebook runs in an empty folder. Wall time is printed too; it is this machine's at this hour.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
LAST_CELL = """
import resource as _resource
_used = _resource.getrusage(_resource.RUSAGE_SELF)
print(_used.ru_utime + _used.ru_stime, _used.ru_maxrss)
"""


def largest(folder: Path, stop: threading.Event, sizes: list[int]) -> None:
    """Note the largest size of what lies in a folder, in bytes of the disk, until stopped."""
    while not stop.wait(0.2):
        total = 0
        for path in folder.rglob("*"):
            try:
                total += path.stat().st_blocks * 512
            except OSError:  # gone again
                continue
        sizes.append(total)


def measured(path: Path) -> tuple[float, float, float, float]:
    """Wall and processor seconds, GB of memory, and MB of disk of a notebook."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(LAST_CELL))
    stop, sizes = threading.Event(), [0]
    with tempfile.TemporaryDirectory() as name:
        watcher = threading.Thread(target=largest, args=(Path(name), stop, sizes))
        watcher.start()
        started = time.perf_counter()
        try:
            NotebookClient(
                notebook, timeout=3600, kernel_name="python3",
                resources={"metadata": {"path": name}},
            ).execute(env={**os.environ, "HF_HUB_OFFLINE": "1"})  # fmt: skip
        finally:
            stop.set()
            watcher.join()
        wall = time.perf_counter() - started
    processor, kilobytes = map(float, notebook.cells[-1].outputs[0].text.split())
    return wall, processor, kilobytes / 1e6, max(sizes) / 1e6


def main() -> None:
    """Print a row for each notebook."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="how their names begin, as 01 or 02b")
    given = parser.parse_args()
    print("| notebook | processor | wall | memory | disk |\n|---|---|---|---|---|")
    for path in sorted(FOLDER.glob("*.ipynb")):
        if given.only and path.stem.partition("_")[0] not in given.only:
            continue
        wall, processor, memory, disk = measured(path)
        print(
            f"| {path.stem} | {processor:.0f} s | {wall:.0f} s | {memory:.1f} GB | {disk:.0f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
