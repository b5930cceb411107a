"""Survey of every delta of a 13B adapter: its time and its memory.

Makes an adapter of random bfloat16 factors, r = 16, with Llama-13B's shapes on all linear modules
(40 layers, 280 deltas), and surveys it in a process of its own, without a base.

    python benchmarks/survey.py
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HIDDEN, INTERMEDIATE, LAYERS, RANK = 5120, 13824, 40, 16
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}


def make_adapter(folder: Path) -> None:
    """Write the adapter: 62.6 million numbers, 125 MB."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    tensors = {}
    for layer in range(LAYERS):
        for module, (rows, columns) in SHAPES.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, columns).bfloat16()
            tensors[f"{name}.lora_B.weight"] = torch.randn(rows, RANK).bfloat16()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": [module.split(".")[1] for module in SHAPES],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def peak_memory() -> float:
    """Largest resident memory so far, in MB; unlike getrusage, without the parent process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(folder: str) -> None:
    """Survey once, and print seconds and megabytes as JSON."""
    import pandas  # noqa: F401 - importing is not what is measured

    import labkit as lk

    _ = lk.survey
    before = peak_memory()
    began = time.perf_counter()
    table = lk.survey(None, lk.Adapter(folder))
    seconds = time.perf_counter() - began
    found = {"rows": len(table), "seconds": seconds, "before": before, "peak": peak_memory()}
    print(json.dumps(found))


def main() -> None:
    """Make the adapter, measure it five times, print a table."""
    with tempfile.TemporaryDirectory() as folder:
        make_adapter(Path(folder))
        runs = [
            json.loads(
                subprocess.run(
                    [sys.executable, __file__, folder], check=True, capture_output=True, text=True
                ).stdout
            )
            for _ in range(5)
        ]
    cores = len(os.sched_getaffinity(0))
    print(f"{platform.machine()}, {cores} cores; load average {os.getloadavg()[0]:.1f}")
    print("| deltas | seconds | peak memory, MB | of it before the survey, MB |")
    print("|---|---|---|---|")
    for run in sorted(runs, key=lambda run: run["seconds"]):
        print(f"| {run['rows']} | {run['seconds']:.2f} | {run['peak']:.0f} | {run['before']:.0f} |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        main()
