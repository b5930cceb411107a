"""Fitted gradients on the demo: how much better than constants, in how much processor time.

    OMP_NUM_THREADS=1 uv run python -m benchmarks.probing [--only NAME] [--dtype bfloat16]

Each figure is a function; all print NLL and KL in nats a token on held-out text, or processor time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import labkit as lk

STRENGTHS = (0.3, 1.0, 3.0)
SEEDS = 20
HELD_OUT_PASSAGES = 24


def halves(layers: int) -> dict[str, lk.Gradient]:
    """The two half-and-half shapes that people publish."""
    return {
        "late half": lk.Gradient.step(layers, layers // 2),
        "early half": lk.Gradient.step(layers, layers // 2, 1.0, 0.0),
    }


def against_constants(found) -> str:
    """NLL of every merge of a fit less that of the constant of the same KL."""
    rows = found.table[found.table["metric"] == "nll"]
    return "\n".join(
        f"    {row.gradient:16} {row.text:16} NLL {row.estimate:.4f}, from the constant of its KL "
        f"{row.from_constant:+.4f} [{row.from_constant_low:+.4f}, {row.from_constant_high:+.4f}]"
        for row in rows.itertuples()
    )


def one_lora(dtype: str) -> None:
    """A fit of `kjv` at three strengths, 8 evaluations each; and what 12 reach at the first."""
    base, loras = lk.demo()
    model = lk.live(base, loras["kjv"], dtype=dtype)
    texts = lk.demo_texts()
    for strength in STRENGTHS:
        count = 12 if strength == STRENGTHS[0] else 8
        found = lk.fit(
            model, texts["scripture"], texts["modern prose"], strength,
            evaluations=count, beside=halves(base.layers), progress=False,
        )  # fmt: skip
        mine = found.history[found.history["family"] == "free"]
        seconds = mine["seconds"][:8].sum()
        print(f"strength {strength:g}: {found.sentence}\n    {found.gradient}")
        print(against_constants(found))
        print(f"    8 evaluations: {seconds:.1f} s; with all else {found.seconds:.1f} s")
        if count == 12:
            gap = mine["objective"][:8].min() - mine["objective"].min()
            print(f"    objective after 8 evaluations less that after {len(mine)}: {gap:.4f}")


FIGURES: dict[str, Callable[[str], None]] = {"one_lora": one_lora}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=FIGURES, help="this figure alone")
    parser.add_argument("--dtype", default="bfloat16", help="of the live model")
    chosen = parser.parse_args()
    for name, figure in FIGURES.items():
        if chosen.only in (None, name):
            began = time.process_time()
            print(f"{name}:")
            figure(chosen.dtype)
            print(f"    ({time.process_time() - began:.0f} s of processor time)\n")


if __name__ == "__main__":
    main()
