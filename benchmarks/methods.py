"""What each method of merging costs: processor time for each number that is merged.

    OMP_NUM_THREADS=1 uv run python -m benchmarks.methods

A layer of TinyLlama's shapes (44 million numbers in float16) gets two LoRAs of rank 16, or what two
models have beyond it. The time of a merge in which every weight is 0, which copies the same file
and draws the same picture, is taken off. Each figure is the least of some rounds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import benchmarks.merge
import labkit as lk
from benchmarks.merge import make_adapter, make_checkpoint

SHAPE = (2048, 5632, 1, 32)
METHODS: dict[str, tuple[int, Any]] = {
    "sum": (2, "sum"),
    "slerp": (1, "slerp"),
    "ties": (2, "ties"),
    "dare": (2, "dare"),
    "dare, rescale density": (2, {"dare": {"rescale": "density"}}),
}
"""Each method, and how many terms it gets."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="methods with this in their name")
    parser.add_argument("--folder", type=Path, help="where the models go; a temporary folder")
    chosen = parser.parse_args()
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
