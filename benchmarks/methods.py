"""What each method of merging costs: processor time for each number that is merged.

    OMP_NUM_THREADS=1 uv run python -m benchmarks.methods

A layer of TinyLlama's shapes (44 million numbers in float16) gets two LoRAs of rank 16, or what two
models have beyond it. The time of a merge in which every weight is 0, which copies the same file
and draws the same picture, is taken off. Each figure is the least of some rounds.

    OMP_NUM_THREADS=1 uv run python -m benchmarks.methods --large --folder A_DISK

A layer of 13B's shapes with its embedding and head, and two models that differ from it everywhere:
processor time of a whole merge, for each number, and peak memory of its process. 5 GB of disk.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import benchmarks.merge
import labkit as lk
from benchmarks.merge import make_adapter, make_checkpoint

# It says where a tensor lies in its file, so that its numbers can be changed there.
from labkit.files.tensor_file import open_tensor_file

SHAPE = (2048, 5632, 1, 32)
METHODS: dict[str, tuple[int, Any]] = {
    "sum": (2, "sum"),
    "slerp": (1, "slerp"),
    "ties": (2, "ties"),
    "dare": (2, "dare"),
    "dare, rescale density": (2, {"dare": {"rescale": "density"}}),
    "della": (2, "della"),
}
"""Each method, and how many terms it gets."""


LARGE = (5120, 13824, 1, 40)
ONE_MERGE = r"""
import re, sys, time, labkit as lk
base, out, method, *sources = sys.argv[1:]
terms = [lk.Term(source, [0.5]) for source in sources]
plan = lk.plan(lk.Recipe(base, terms, 0.5, method=method))
began = time.process_time()
plan.write(out, device="cpu", overwrite=True, progress=False)
seconds = time.process_time() - began
# The peak that getrusage gives counts the process that started this one.
print(seconds, 1024 * int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="methods with this in their name")
    parser.add_argument("--large", action="store_true", help="models of 13B's shapes")
    parser.add_argument("--folder", type=Path, help="where the models go; a temporary folder")
    chosen = parser.parse_args()
    if chosen.large:
        merge_large(chosen.only, chosen.folder)
        return
    benchmarks.merge.SHAPES["layer"] = SHAPE
    benchmarks.merge.VOCABULARY = 64
    hidden, intermediate, _, _ = SHAPE
    numbers = 4 * hidden * hidden + 3 * hidden * intermediate
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        make_checkpoint(folder / "base", "layer")
        sources: dict[str, list[Path]] = {"LoRAs": [], "models": []}
        for number in (1, 2):
            make_adapter(folder / f"lora{number}", "layer", seed=number)
            sources["LoRAs"].append(folder / f"lora{number}")
            plan = lk.plan(folder / "base", folder / f"lora{number}", [1.0])
            plan.write(folder / f"model{number}", progress=False)
            (folder / f"model{number}" / "receipt.json").unlink()
            sources["models"].append(folder / f"model{number}")
        for kind, both in sources.items():
            nothing = least(chosen.rounds, folder, both, 0.0, "sum")
            for title, (count, method) in METHODS.items():
                if chosen.only in title:
                    seconds = least(chosen.rounds, folder, both[:count], 0.5, method) - nothing
                    print(f"{kind:7} {title:22} {1e9 * seconds / numbers:6.1f} ns", flush=True)


def merge_large(only: str, place: Path | None) -> None:
    """Merge models of 13B's shapes, each time in a process of its own."""
    benchmarks.merge.SHAPES["layer"] = LARGE
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        make_checkpoint(folder / "base", "layer")
        models = [folder / "model1", folder / "model2"]
        for seed, model in enumerate(models):
            make_adapter(folder / f"lora{seed}", "layer", seed=seed)
            lk.plan(folder / "base", folder / f"lora{seed}", [1.0]).write(model, progress=False)
            change_outside(model, seed)
        numbers = sum(tensor.elements for tensor in lk.Checkpoint(models[0]).tensors.values())
        for method in ("sum", "slerp", "ties", "dare", "della"):
            if only in method:
                sources = models[:1] if method == "slerp" else models
                command = [sys.executable, "-c", ONE_MERGE, folder / "base", folder / "out", method]
                said = subprocess.check_output([*map(str, [*command, *sources])], text=True)
                seconds, peak = map(float, said.split())
                print(
                    f"{method:6} {1e9 * seconds / numbers:6.1f} ns, {peak / 1e9:.2f} GB", flush=True
                )


def change_outside(model: Path, seed: int) -> None:
    """Change the last bits of embedding and head."""
    dice = np.random.default_rng(seed)
    (model / "receipt.json").unlink()
    for path in model.glob("*.safetensors"):
        for tensor in open_tensor_file(path).tensors:
            if "layers" not in tensor.name and len(tensor.shape) == 2:
                bits = np.memmap(path, np.uint16, "r+", tensor.start, (tensor.elements,))
                for some in np.array_split(bits, 64):
                    some ^= dice.integers(0, 8, len(some), dtype=np.uint16)
                bits.flush()


def least(rounds: int, folder: Path, sources: list[Path], weight: float, method: Any) -> float:
    """The least processor time of a merge, in seconds."""
    times = []
    for _ in range(rounds):
        terms = [lk.Term(str(source), [weight]) for source in sources]
        plan = lk.plan(lk.Recipe(str(folder / "base"), terms, 0.0, method=method))
        began = time.process_time()
        plan.write(folder / "out", device="cpu", overwrite=True, hashes=False, progress=False)
        times.append(time.process_time() - began)
    return min(times)


if __name__ == "__main__":
    main()
