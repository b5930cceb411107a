"""Merging on a GPU against the processor and against copying; and hearing a large model there.

    uv run python -m benchmarks.on_a_gpu 7b --folder A_DISK

Makes a Llama-shaped checkpoint of random float16 weights, two LoRAs of rank 16 on all linear
modules and two models (the base with one of the LoRAs each, every weight 1), and merges them at
weight 0.5 by each method, on the processor and on the GPU. Each merge begins with its inputs out of
the page cache and ends with `sync`. The files of both devices are compared by their SHA-256. `cp`
copies the base, before and after. The disk needs four times the checkpoint.

Then the base is heard with a LoRA, and with a model whose tensors are merged in memory: what a pass
over 32 tokens takes after a change of weights, and without one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import labkit as lk
from benchmarks.merge import SHAPES, forget, make_adapter, make_checkpoint
from tests.tiny import make_letters

METHODS: dict[str, tuple[int, Any]] = {
    "sum": (2, "sum"),
    "slerp": (1, "slerp"),
    "ties": (2, "ties"),
    "dare": (2, "dare"),
    "della": (2, "della"),
}
"""Each method, and how many terms it gets."""

LIVE = r"""
import json, sys, time
import torch
import labkit as lk
base, source = sys.argv[1:]
wall = time.perf_counter()
model = lk.live(base, source, rest=0.0, device="cuda")
tokens = torch.arange(100, 132)[None]
model.logits(tokens)
print(f"loaded in {time.perf_counter() - wall:.1f} s", flush=True)
layers = lk.Checkpoint(base).layers
half, one = lk.Gradient.constant(layers, 0.5), [0.5] * layers
one[layers // 2] = 0.75
changes = {"none": half, "one layer": lk.Gradient(one), "every layer": half * 1.5}
for name, gradient in changes.items():
    times = []
    for _ in range(4):
        model.weights = half
        model.logits(tokens)
        model.weights = gradient
        torch.cuda.synchronize()
        wall = time.perf_counter()
        float(model.logits(tokens).sum())
        times.append(time.perf_counter() - wall)
    print(f"change of {name}: {min(times):.3f} s", flush=True)
print(f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB of the GPU's memory")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=SHAPES)
    parser.add_argument("--folder", type=Path, help="where the models go; a temporary folder")
    parser.add_argument("--only", default="", help="methods with this in their name, or `live`")
    chosen = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, {os.cpu_count()} processors", flush=True)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        with torch.device("cuda"):  # random numbers come quicker from there
            make_checkpoint(folder / "base", chosen.size)
        make_letters(folder / "base")
        layers = SHAPES[chosen.size][2]
        loras = [folder / f"lora{number}" for number in (1, 2)]
        for number, lora in enumerate(loras, 1):
            make_adapter(lora, chosen.size, seed=number)
        copy(folder)
        compare(folder, "LoRAs", loras, layers, chosen.only)
        models = [folder / f"model{number}" for number in (1, 2)]
        for lora, model in zip(loras, models, strict=True):
            merge(folder, model, "cuda", "sum", [lora], [1.0] * layers)
            (model / "receipt.json").unlink()  # a model like others
        compare(folder, "models", models, layers, chosen.only)
        copy(folder)
        if chosen.only in "live":
            for source in (loras[0], models[0]):
                print(f"live with {source.name}", flush=True)
                subprocess.run([sys.executable, "-c", LIVE, folder / "base", source], check=True)


def copy(folder: Path) -> None:
    """Copy the base."""
    forget(folder / "base")
    began = time.perf_counter()
    subprocess.run(["cp", "-r", folder / "base", folder / "copy"], check=True)
    os.sync()
    size = sum(path.stat().st_size for path in (folder / "copy").iterdir())
    print(f"cp {size / 1e9:.1f} GB: {time.perf_counter() - began:.1f} s", flush=True)
    shutil.rmtree(folder / "copy")


def compare(folder: Path, kind: str, sources: list[Path], layers: int, only: str) -> None:
    """Merge by each method on both devices."""
    for name, (count, method) in METHODS.items():
        if only not in name:
            continue
        files = []
        for device in ("cpu", "cuda"):
            forget(folder / "base", *sources)
            out, weights = folder / "out", [0.5] * layers
            wall, own, peak, written = merge(folder, out, device, method, sources[:count], weights)
            print(
                f"{kind:6} {name:6} {device:4} wall {wall:6.1f} s  processor {own:6.1f} s  "
                f"memory of the GPU {peak / 1e9:.2f} GB",
                flush=True,
            )
            shutil.rmtree(out)
            files.append(written)
        assert files[0] == files[1], "the bytes differ"


def merge(
    folder: Path, out: Path, device: str, method: Any, sources: list[Path], weights: list[float]
) -> tuple[float, float, int, dict[str, str]]:
    """Merge; give wall time, processor time, the GPU's peak memory, and the files' SHA-256."""
    terms = [lk.Term(source, weights) for source in sources]
    plan = lk.plan(lk.Recipe(folder / "base", terms, 0.0, method=method))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    wall, own = time.perf_counter(), time.process_time()
    receipt = plan.write(out, device=device, progress=False)
    os.sync()
    wall, own = time.perf_counter() - wall, time.process_time() - own
    return wall, own, torch.cuda.max_memory_allocated(), receipt.files_written


if __name__ == "__main__":
    main()
