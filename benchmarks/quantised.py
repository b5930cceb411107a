"""What quantising a live model in memory costs and changes, on the demo with `kjv` on a CPU.

OMP_NUM_THREADS=1 uv run --extra quantize python -m benchmarks.quantised
"""

from __future__ import annotations

import time

import labkit as lk

TEXT = "In the beginning God created the heaven and the earth. And the earth was without form."


def main() -> None:
    """Print a row for each way."""
    base, loras = lk.demo()
    print("| in memory | to load | a pass over a sentence | KL of the base | KL of the full LoRA |")
    print("|---|---|---|---|---|")
    for kind in (None, "nf4", "int8"):
        began = time.process_time()
        # A model that is not quantised is in bfloat16 here, as the parts are that stay as they are.
        model = lk.live(base, loras["kjv"], device="cpu", dtype="bfloat16", quantize=kind)
        loaded = time.process_time() - began
        passes = []
        for _ in range(4):
            began = time.process_time()
            model.nll(TEXT)
            passes.append(time.process_time() - began)
        moved = []
        if kind:
            for weight in (0.0, 1.0):
                model.weights = lk.Gradient.constant(base.layers, weight)
                moved.append(f"{model.quantised_kl():.3f}")
        cells = [f"{loaded:.1f} s", f"{min(passes):.2f} s", *(moved or ["", ""])]
        print(f"| {kind or 'bfloat16'} | {' | '.join(cells)} |", flush=True)
        lk.free()


if __name__ == "__main__":
    main()
