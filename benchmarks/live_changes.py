"""What a change of weights costs on a live model whose tensors are merged in memory.

Three sources on the demo's base, in float32 on a CPU: the plain LoRA `kjv`, which is turned; a DoRA
made of it (its factors, and the base's own norms as magnitudes), and a full model (the base with
`stepwise` merged into it), which are merged in memory. Then recipes with methods: `kjv` and
`stepwise` with the same weights, and the full model by slerp. Each time is processor time of a pass
over one token after a change, less that of a pass without one, the least of some rounds.

    OMP_NUM_THREADS=1 uv run python -m benchmarks.live_changes
    OMP_NUM_THREADS=1 uv run python -m benchmarks.live_changes --memory ties

The second says what a method is forecast to take of memory beside the model, and what it took at
most (on Linux).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import labkit as lk

# The forecast of memory is held against what is taken.
from labkit.inference.mixtures import memory_to_merge

ROUNDS = 5
ROUNDS_OF_METHODS = 2
METHODS = ("linear", "ties", "dare", "della")
FACTOR = ".lora_A.weight"
PREFIX = "base_model.model."


def dora_of(base: lk.Checkpoint, lora: lk.Adapter, folder: Path) -> Path:
    """A DoRA adapter of a LoRA's factors, with the norms of the base's rows as magnitudes."""
    folder.mkdir()
    tensors = load_file(lora.folder / "adapter_model.safetensors")
    for key in [key for key in tensors if key.endswith(FACTOR)]:
        module = key.removesuffix(FACTOR)
        weight = base.read(f"{module.removeprefix(PREFIX)}.weight").double()
        norms = weight.norm(dim=1).to(torch.float32)
        tensors[f"{module}.lora_magnitude_vector"] = norms
    save_file(tensors, folder / "adapter_model.safetensors")
    config = json.loads((lora.folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    return folder


def spent(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def resident() -> int:
    """Bytes of memory that the process has now; from here on its largest is counted anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


def largest() -> int:
    """Bytes of memory that it had at most since."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def row_of(model: Any, changes: dict[str, lk.Gradient], half: lk.Gradient, rounds: int) -> str:
    """Time changes of a live model, every one from `half`."""

    def turn(gradient: lk.Gradient) -> None:
        model.weights = dict.fromkeys(range(len(model.adapters)), gradient)

    costs: dict[str, list[float]] = {change: [] for change in (*changes, "none")}
    for _ in range(rounds):
        for change, gradient in changes.items():
            turn(half)
            model.next_tokens("I")
            costs["none"].append(spent(lambda: model.next_tokens("I")))
            turn(gradient)
            costs[change].append(spent(lambda: model.next_tokens("I")))
    still = min(costs.pop("none"))
    cells = [f"{min(times) - still:.2f} s" for times in costs.values()]
    return f"{' | '.join(cells)} | {still:.2f} s"


def memory(method: str) -> None:
    """Print what a method is forecast to take beside the model, and what it took."""
    base, loras = lk.demo()
    half = lk.Gradient.constant(base.layers, 0.5)
    names = ("kjv", "stepwise")
    # Loaded as a sum before, so that what the method adds is seen.
    model = lk.live(base, *map(loras.get, names), device="cpu")
    model.next_tokens("I")
    recipe = lk.Recipe(base, [lk.Term(loras[name], half) for name in names], method=method)
    said, before = memory_to_merge(lk.plan(recipe)), resident()
    model.use(recipe)
    model.next_tokens("I")
    taken = largest() - before
    print(f"{method}: {said / 1e6:.0f} MB forecast, {taken / 1e6:.0f} MB taken at most")


def main() -> None:
    """Print a row for each source."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", choices=METHODS, help="of one method, and nothing else")
    if method := parser.parse_args().memory:
        memory(method)
        return
    base, loras = lk.demo()
    half = lk.Gradient.constant(base.layers, 0.5)
    one = [0.5] * base.layers
    one[base.layers // 2] = 0.75
    changes = {"one layer": lk.Gradient(one), "every layer": half * 1.5, "to the base": half * 0.0}
    with tempfile.TemporaryDirectory() as place:
        full = Path(place) / "full"
        lk.plan(base, loras["stepwise"], f"1x{base.layers}").write(full, progress=False)
        sources = {
            "plain LoRA": loras["kjv"],
            "DoRA": dora_of(base, loras["kjv"], Path(place) / "dora"),
            "full model": lk.Checkpoint(full),
        }
        print(f"| source | {' | '.join(changes)} | a pass without a change |")
        print("|---|" + "---|" * (len(changes) + 1))
        for name, source in sources.items():
            model = lk.live(base, source, rest=0.0, device="cpu")
            print(f"| {name} | {row_of(model, changes, half, ROUNDS)} |", flush=True)
            lk.free()
        both = [lk.Term(loras[name], half) for name in ("kjv", "stepwise")]
        recipes = {method: lk.Recipe(base, both, method=method) for method in METHODS}
        recipes["slerp"] = lk.Recipe(base, [lk.Term(full, half)], 0.0, method="slerp")
        for method, recipe in recipes.items():
            model = lk.live(recipe, device="cpu")
            print(f"| {method} | {row_of(model, changes, half, ROUNDS_OF_METHODS)} |", flush=True)
            lk.free()


if __name__ == "__main__":
    main()
