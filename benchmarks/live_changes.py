"""What a change of weights costs on a live model whose tensors are merged in memory.

Three sources on the demo's base, in float32 on a CPU: the plain LoRA `kjv`, which is turned; a DoRA
made of it (its factors, and the base's own norms as magnitudes), and a full model (the base with
`stepwise` merged into it), which are merged in memory. Each time is processor time of a pass over
one token after a change, less that of a pass without one, the least of some rounds.

    OMP_NUM_THREADS=1 uv run python -m benchmarks.live_changes
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import labkit as lk

ROUNDS = 5
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


def main() -> None:
    """Print a row for each source."""
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
            costs: dict[str, list[float]] = {change: [] for change in (*changes, "none")}
            for _ in range(ROUNDS):
                for change, gradient in changes.items():
                    model.weights = half
                    model.next_tokens("I")
                    costs["none"].append(spent(lambda model=model: model.next_tokens("I")))
                    model.weights = gradient
                    costs[change].append(spent(lambda model=model: model.next_tokens("I")))
            still = min(costs.pop("none"))
            cells = [f"{min(times) - still:.2f} s" for times in costs.values()]
            print(f"| {name} | {' | '.join(cells)} | {still:.2f} s |", flush=True)
            lk.free()


if __name__ == "__main__":
    main()
