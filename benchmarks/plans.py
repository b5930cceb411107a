"""Plans of large adapters: processor time, for each kind of config that names every module.

Makes a mixture of 24 layers × 128 experts (9,312 modules) and a dense model of 80 layers (560), of
small matrices of zeros, each with a LoRA on all of them; plain, baked (labkit's own patterns, with
escaped dots) and with a rank and an alpha by name for every module, as EVA writes them.

    uv run python -m benchmarks.plans
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import tempfile
import time
from pathlib import Path

import labkit as lk

LAYERS, EXPERTS, HIDDEN, INNER = 24, 128, 64, 32
DENSE = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 80,
    "num_attention_heads": 4, "vocab_size": 128,
}  # fmt: skip


def make_mixture(folder: Path) -> Path:
    """A mixture with each expert in tensors of its own, as files on the hub have them."""
    shapes = {"model.embed_tokens.weight": (128, HIDDEN), "lm_head.weight": (128, HIDDEN)}
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}"
        shapes |= {f"{stem}.self_attn.{m}_proj.weight": (HIDDEN, HIDDEN) for m in "qkvo"}
        for expert in range(EXPERTS):
            one = f"{stem}.mlp.experts.{expert}"
            shapes |= {f"{one}.{m}_proj.weight": (INNER, HIDDEN) for m in ("gate", "up")}
            shapes[f"{one}.down_proj.weight"] = (HIDDEN, INNER)
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    config = {"model_type": "qwen3_moe", "num_hidden_layers": LAYERS, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def by_name(adapter: Path, folder: Path) -> Path:
    """The same adapter, whose config names a rank and an alpha for every module."""
    shutil.copytree(adapter, folder)
    path = folder / "adapter_config.json"
    modules = list(lk.Adapter(folder).modules)
    config = json.loads(path.read_text()) | {"r": 4}
    config |= {"rank_pattern": dict.fromkeys(modules, 8)}
    config |= {"alpha_pattern": dict.fromkeys(modules, 4)}
    path.write_text(json.dumps(config))
    return folder


def main() -> None:
    """Measure, and print a table."""
    print(f"Python {platform.python_version()}, {platform.machine()}\n")
    print("| model | modules | config | plan, s |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        mixture = make_mixture(top / "mixture")
        dense = lk.hollow_base(top / "dense", DENSE).folder
        for base in (mixture, dense):
            layers = lk.Checkpoint(base).layers
            plain = top / f"{base.name}-lora"
            lk.hollow_adapter(plain, base, rank=8, alpha=16)
            baked = top / f"{base.name}-baked"
            gradient = lk.Gradient([layer / layers for layer in range(layers)])
            lk.bake(plain, gradient, baked)
            named = by_name(plain, top / f"{base.name}-named")
            for what, adapter in (("plain", plain), ("baked", baked), ("by name", named)):
                began = time.process_time()
                plan = lk.plan(base, adapter, lk.Gradient.constant(layers, 0.5))
                seconds = time.process_time() - began
                print(f"| {base.name} | {len(plan.changes)} | {what} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
