"""Fitted gradients on the demo: how much better than constants, in how much processor time.

    OMP_NUM_THREADS=1 uv run python -m benchmarks.probing [--only NAME] [--dtype bfloat16]
    OMP_NUM_THREADS=1 uv run python -m benchmarks.probing --only null_loras --done null.jsonl

Each figure is a function. Null LoRAs take long: with `--done` each goes into a file, a line each,
and what is there already is not done again. NLL and KL are in nats a token, on held-out text;
intervals are those of `lk.fit`. Texts are the demo's, of which `lk.fit` draws its few passages.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import labkit as lk

EVALUATIONS, MORE = 8, 4
SEEDS = 20
FEWER = {"evaluations": 3, "passages": 6, "tokens": 24, "rivals": (), "progress": False}
"""Null LoRAs are fitted in few evaluations on less text, so that twenty of each kind are
affordable."""


def demo_model(dtype: str, *names: str):
    base, loras = lk.demo()
    return lk.live(base, *[loras[name] for name in names], dtype=dtype)


def show(found) -> None:
    """The sentence, and the NLL of every merge less that of the constant of the same KL."""
    print(f"    {found.sentence}")
    for row in found.table[found.table["metric"] == "nll"].itertuples():
        print(
            f"    {row.gradient:18} {row.text:15} NLL {row.estimate:.4f}, from the constant of its "
            f"KL {row.from_constant:+.4f} [{row.from_constant_low:+.4f}, "
            f"{row.from_constant_high:+.4f}]"
        )
    print(f"    {len(found.history)} evaluations; with all else {found.seconds:.0f} s")


def one_lora(dtype: str) -> None:
    """`kjv` at strength 0.3: 8 evaluations and what they take, and what four more bring."""
    model, texts = demo_model(dtype, "kjv"), lk.demo_texts()
    layers = model.base.layers
    halves = {
        "late half": lk.Gradient.step(layers, layers // 2),
        "early half": lk.Gradient.step(layers, layers // 2, 1.0, 0.0),
    }
    sets = texts["scripture"], texts["modern prose"]
    found = lk.fit(model, *sets, evaluations=EVALUATIONS, beside=halves, progress=False)
    show(found)
    mine = found.history[found.history["family"] == "free"]
    print(f"    {len(mine)} evaluations of free weights: {mine['seconds'].sum():.1f} s")
    more = lk.fit(
        model, *sets, evaluations=MORE, rivals=(), history=found.history, progress=False
    )  # fmt: skip
    both = [one.table.query("gradient == 'fit'")["estimate"].tolist() for one in (found, more)]
    gap = sum(weight * (a - b) for weight, a, b in zip((1, 0.3), *both, strict=True))
    print(f"    NLL + 0.3 KL after {EVALUATIONS} less that after {MORE} more: {gap:+.4f}")


def strengths(dtype: str) -> None:
    """`kjv` at the strengths 0.3, 1 and 3."""
    model, texts = demo_model(dtype, "kjv"), lk.demo_texts()
    found = lk.pareto(
        model, texts["scripture"], texts["modern prose"], (0.3, 1.0, 3.0), progress=False
    )  # fmt: skip
    for strength, sentence in found.sentences.items():
        print(f"    strength {strength:g}: {sentence}")
    print(f"    the first 8 evaluations: {found.history['seconds'][:EVALUATIONS].sum():.1f} s")
    print(f"    {len(found.history)} evaluations; with all else {found.seconds:.0f} s")


def two_loras(dtype: str) -> None:
    """`kjv` and `stepwise` at once, against the best two constants."""
    model, texts = demo_model(dtype, "kjv", "stepwise"), lk.demo_texts()
    targets = [texts["scripture"], texts["numbered steps"]]
    few = {"passages": 8, "tokens": 48, "rivals": (), "progress": False}
    show(lk.fit(model, targets, texts["modern prose"], 0.5, **few))


def null_loras(dtype: str, done: Path | None = None) -> None:
    """`kjv` with shuffled rows, and random numbers of its norms: no better than the constant."""
    base, loras = lk.demo()
    texts = lk.demo_texts()
    lines = done.read_text().splitlines() if done and done.exists() else []
    known = {(one["kind"], one["seed"]): one for one in map(json.loads, lines)}
    for kind, change in (("shuffled rows", shuffled), ("random numbers", drawn)):
        better = []
        for seed in range(SEEDS):
            one = known.get((kind, seed))
            if one is None:
                with tempfile.TemporaryDirectory() as folder:
                    adapter = null_adapter(loras["kjv"].folder, Path(folder), change, seed)
                    model = lk.live(base, adapter, dtype=dtype)
                    sets = texts["scripture"], texts["modern prose"]
                    found = lk.fit(model, *sets, seed=seed, **FEWER)
                    model.free()
                one = {"kind": kind, "seed": seed, "better": found.better, "said": found.sentence}
                if done:
                    with done.open("a") as file:
                        file.write(json.dumps(one) + "\n")
            better.append(one["better"])
            print(f"    {kind}, seed {seed}: {one['said']}", flush=True)
        print(f"    {kind}: no better than the constant in {better.count(False)} of {SEEDS} seeds")


def null_adapter(folder: Path, out: Path, change: Callable, seed: int) -> Path:
    """A copy of an adapter whose factors are changed until they know nothing."""
    import torch
    from safetensors.torch import load_file, save_file

    dice = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "adapter_model.safetensors")
    made = {name: change(values.float(), dice).contiguous() for name, values in tensors.items()}
    save_file(made, out / "adapter_model.safetensors")
    shutil.copy(folder / "adapter_config.json", out)
    return out


def shuffled(values, dice):
    import torch

    return values[torch.randperm(len(values), generator=dice)]


def drawn(values, dice):
    import torch

    noise = torch.randn(values.shape, generator=dice)
    return noise * values.norm() / noise.norm()


FIGURES: dict[str, Callable[..., None]] = {
    "one_lora": one_lora,
    "strengths": strengths,
    "two_loras": two_loras,
    "null_loras": null_loras,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=FIGURES, help="this figure alone")
    parser.add_argument("--dtype", default="bfloat16", help="of the live model")
    parser.add_argument("--done", type=Path, help="file of the null LoRAs that were fitted")
    chosen = parser.parse_args()
    for name, figure in FIGURES.items():
        if chosen.only in (None, name):
            began = time.process_time()
            print(f"{name}:", flush=True)
            figure(chosen.dtype, **({"done": chosen.done} if figure is null_loras else {}))
            print(f"    ({time.process_time() - began:.0f} s of processor time)\n", flush=True)


if __name__ == "__main__":
    main()
