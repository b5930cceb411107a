"""Which layers matter, on the demo: what the measurements cost, and how far they are right.

Costs are processor time on one thread, as ratios to one forward pass over the same passages.
Errors are against exact passes: central differences for a sensitivity, the whole change for an
attribution, and the mean of both scans of single layers (one left out, only one) for its layers.

    OMP_NUM_THREADS=1 uv run python -m benchmarks.probing_layers
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import labkit as lk

LONGEST = 60
"""Words that are kept of a passage, so that a run takes minutes."""
STEP = 0.02
PAIRS = (("kjv", "scripture"), ("stepwise", "numbered steps"), ("kjv", "modern prose"))


def short(texts: lk.Texts, count: int) -> lk.Texts:
    """So many passages of a set, cut to `LONGEST` words; answers stay whole."""
    chosen = texts.take(count)
    if chosen.passages[0].prompt:
        return chosen
    cut = [" ".join(one.text.split()[:LONGEST]) for one in chosen]
    return lk.Texts(chosen.name, cut, [one.document for one in chosen])


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of processor time that a call takes, and what it gives."""
    began = time.process_time()
    found = call()
    return time.process_time() - began, found


def forward_time(model: Any, texts: lk.Texts) -> float:
    """Seconds of processor time of one forward pass: `evaluate` makes six for the NLL."""
    lk.evaluate(model, {}, texts, ["nll"])
    return timed(lambda: lk.evaluate(model, {}, texts, ["nll"]))[0] / 6


def nlls(model: Any, texts: lk.Texts, gradients: dict[str, Any]) -> dict[str, float]:
    """The NLL at each gradient, at base and at the full LoRA."""
    table = lk.evaluate(model, gradients, texts, ["nll"])
    return dict(zip(table["gradient"], table["estimate"], strict=True))


def cost_of_a_sensitivity(base: Any, lora: Any, texts: lk.Texts, dtype: str) -> None:
    """Print what a sensitivity costs, and in float32 how far it is from central differences."""
    model = lk.live(base, lora, device="cpu", dtype=dtype)
    forward = forward_time(model, texts)
    at = lk.Gradient(np.random.default_rng(0).uniform(0, 1, base.layers).round(3))
    spent, table = min(
        (timed(lambda: lk.sensitivity(model, texts, at)) for _ in range(2)), key=lambda one: one[0]
    )
    print(
        f"sensitivity, {dtype}: {forward:.2f} s a forward pass, {spent / forward:.2f} times that",
        flush=True,
    )
    if dtype == "float32":
        steps = {}
        layers = (0, 9, 18, base.layers - 1)
        for layer in layers:
            for name, step in (("up", STEP), ("down", -STEP)):
                moved = [one + step * (number == layer) for number, one in enumerate(at)]
                steps[f"{name} {layer}"] = lk.Gradient(moved)
        found = nlls(model, texts, steps)
        slopes = table["estimate"].to_numpy()
        largest = np.abs(slopes).max()
        error = max(
            abs(slopes[layer] - (found[f"up {layer}"] - found[f"down {layer}"]) / (2 * STEP))
            for layer in layers
        )
        print(
            f"  central differences: off by {error / largest:.2%} of the largest slope at most",
            flush=True,
        )
    model.free()


def layers_of(base: Any, lora: Any, texts: lk.Texts) -> None:
    """Print how attributions and norms go with the exact effects of single layers."""
    model = lk.live(base, lora, device="cpu", dtype="float32")
    forward = forward_time(model, texts)
    tables = {}
    print(f"{lora.name} on {texts.name}: {len(texts)} passages", flush=True)
    for nodes in (4, 8):
        spent, table = timed(lambda nodes=nodes: lk.attribution(model, texts, nodes=nodes))
        tables[nodes] = table["estimate"].to_numpy()
        outside = int(((table["low"] > 0) | (table["high"] < 0)).sum())
        print(
            f"  attribution, {nodes} nodes: {spent / forward:.1f} forward passes; completeness "
            f"error {table.attrs['completeness'][texts.name]:.2%}; {outside} of {len(table)} "
            "intervals leave out 0",
            flush=True,
        )
    scans = {}
    for mode in ("leave_one_out", "only_one"):
        spent, table = timed(lambda mode=mode: lk.ablation(model, texts, mode))
        scans[mode] = table["estimate"].to_numpy()
        outside = int(((table["low"] > 0) | (table["high"] < 0)).sum())
        print(
            f"  {mode}: {spent / forward / (1 + base.layers):.2f} of {1 + base.layers} whole "
            f"passes; {outside} of {len(table)} intervals leave out 0",
            flush=True,
        )
    mean = (scans["leave_one_out"] + scans["only_one"]) / 2
    norms = lk.totals(lk.survey(base, lora), "layer")["norm"].to_numpy()[: base.layers]
    print(
        f"  correlation with the mean of both scans: 4 nodes {correlation(tables[4], mean):.3f}, "
        f"8 nodes {correlation(tables[8], mean):.3f}; rank correlation of the norms with the size "
        f"of the effect {correlation(ranks(norms), ranks(np.abs(mean))):.2f}",
        flush=True,
    )
    model.free()


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation."""
    return float(np.corrcoef(first, second)[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value, of values that are all different."""
    return values.argsort().argsort()


def main() -> None:
    """Measure, and print a line for each figure as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=4, help="to take costs on")
    parser.add_argument("--scanned", type=int, default=3, help="to scan layer by layer")
    given = parser.parse_args()
    base, loras = lk.demo()
    sets = lk.demo_texts()
    scripture = short(sets["scripture"], given.passages)
    for dtype in ("float32", "bfloat16"):
        cost_of_a_sensitivity(base, loras["kjv"], scripture, dtype)
    for adapter, name in PAIRS:
        layers_of(base, loras[adapter], short(sets[name], given.scanned))


if __name__ == "__main__":
    main()
