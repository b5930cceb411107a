"""Merging again with one layer changed: whole, and with what an earlier merge has taken over.

    OMP_NUM_THREADS=1 uv run python -m benchmarks.again 1b --folder /a/disk

Makes a checkpoint and a LoRA as `benchmarks/merge.py` does, merges them with every layer at 0.5,
and then with the middle layer at 0.75: whole, with `--from`, and with `--from` and `--link`. Every
merge is a process of its own that begins with its inputs out of the page cache; the bytes of the
three are compared. Bytes written are those that the process gave to the disk (`/proc/self/io`),
room is what the file system had less of afterwards (`df`): where it shares blocks, the smaller.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.merge import SHAPES, forget, make_adapter, make_checkpoint

MERGE = """
import json, sys, time, labkit as lk
base, adapter, out, weights, method, reuse, link = json.loads(sys.argv[1])
plan = lk.plan(lk.Recipe(base, [lk.Term(adapter, weights)], method=method))
began, own = time.perf_counter(), time.process_time()
receipt = plan.write(out, device="cpu", link=link, reuse=reuse, progress=False)
taken = len(receipt.taken_over.tensors) if receipt.taken_over else 0
io = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
print(json.dumps([time.perf_counter() - began, time.process_time() - own,
                  int(io["read_bytes"]), int(io["write_bytes"]), taken, len(receipt.tensors)]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=SHAPES)
    parser.add_argument("--folder", type=Path, help="where the models go; a temporary folder")
    parser.add_argument("--method", default="sum", help="the method's name")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        make_checkpoint(folder / "base", chosen.size)
        make_adapter(folder / "adapter", chosen.size)
        layers = SHAPES[chosen.size][2]
        before, after = [0.5] * layers, [0.5] * layers
        after[layers // 2] = 0.75
        merge(folder, "earlier", before, chosen.method)
        for title, reuse, link in (
            ("whole", None, False),
            ("--from", "earlier", False),
            ("--from --link", "earlier", True),
        ):
            out = title.replace(" ", "")
            seconds, own, read, written, taken, changed, room = merge(
                folder, out, after, chosen.method, reuse, link
            )
            print(
                f"{title:14} wall {seconds:6.1f} s  processor {own:6.1f} s  read {read / 1e9:5.2f} "
                f"GB  written {written / 1e9:5.2f} GB  room {room / 1e9:5.2f} GB  "
                f"{taken} of {changed} tensors taken over",
                flush=True,
            )
            if title != "whole":
                names = [path.name for path in (folder / "whole").glob("*.safetensors")]
                same, *_ = filecmp.cmpfiles(folder / "whole", folder / out, names, shallow=False)
                assert len(same) == len(names), "the bytes differ"
                shutil.rmtree(folder / out)


def merge(
    folder: Path,
    out: str,
    weights: list[float],
    method: str,
    reuse: str | None = None,
    link: bool = False,
) -> list[float]:
    """Merge in a process of its own; give its figures, and the room that it took."""
    forget(*(path for path in folder.iterdir() if path.is_dir()))
    free = shutil.disk_usage(folder).free
    given = [
        str(folder / "base"),
        str(folder / "adapter"),
        str(folder / out),
        weights,
        method,
        reuse and str(folder / reuse),
        link,
    ]
    command = [sys.executable, "-c", MERGE, json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    os.sync()
    return [*json.loads(done.stdout), free - shutil.disk_usage(folder).free]


if __name__ == "__main__":
    main()
