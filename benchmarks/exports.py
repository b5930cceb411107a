"""Exports: what they cost, and what they change.

OMP_NUM_THREADS=1 uv run --extra gguf python -m benchmarks.exports formats
OMP_NUM_THREADS=1 uv run --extra gptq python -m benchmarks.exports others
OMP_NUM_THREADS=1 uv run --extra gguf python -m benchmarks.exports loras
OMP_NUM_THREADS=1 uv run --extra gguf python -m benchmarks.exports 1b --folder /big/disk

The first three are of the demo, against the merge in transformers in float32: the merge as every
GGUF type, in the formats of other programs (GPTQ also calibrated on documents of another domain),
and the LoRA baked in two ways. The last converts a Llama of random weights in TinyLlama's shape,
for processor time and memory alone; `--others` to what is not GGUF.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import labkit as lk
from benchmarks.merge import SHAPES

KINDS = [
    ("gguf-bf16", None),
    ("gguf-q8_0", None),
    ("gguf-q6_k", "none"),
    ("gguf-q5_k_m", "none"),
    ("gguf-q4_k_m", "none"),
    ("gguf-q4_k_m", None),
]
"""Formats, and what they are calibrated on: None is the merge's own domain, where there is one."""
OTHERS = [
    ("mlx", None),
    ("fp8", None),
    ("w4a16", "none"),
    ("w4a16", None),
    ("gptq", None),
    ("gptq", "documents"),
    ("awq", None),
]
"""Formats of other programs. "documents" are labkit's own, which nothing is merged for."""
WITHOUT_TEXTS = ("mlx", "fp8", "w4a16")
"""Those that random weights can be converted to: to calibrate them says nothing."""
GGUF = ("gguf-bf16", "gguf-q8_0", "gguf-q4_k_m")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
VOCABULARY = 49152


def row(name: str, made: lk.Export) -> str:
    """A row of the table of the demo."""
    checked = made.checked
    texts = [
        f"{one.kl.value:.4f} ({one.kl.low:.4f} to {one.kl.high:.4f}) | {one.top.value:.1%} | "
        f"{one.nll_change.value:+.4f}"
        for one in checked.texts
    ]
    tokens = f"{checked.greedy} of {checked.steps}"
    cost = f"{made.processor_seconds:.0f} s | {made.peak_memory / 1e9:.2f} GB"
    return f"| {name} | {made.nbytes / 1e6:.0f} MB | {' | '.join(texts)} | {tokens} | {cost} |"


HEAD = (
    "| format | size | scripture: KL | same on top | NLL | modern prose: KL | same on top | NLL "
    "| own text | processor time | memory |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def documents() -> lk.Texts:
    """Technical prose, a paragraph each."""
    root = Path(__file__).parents[1]
    files = sorted([*root.glob("*.md"), *root.glob("docs/*.md")])
    texts = [path.read_text(encoding="utf-8") for path in files]
    return lk.Texts(
        "documents", [one for text in texts for one in text.split("\n\n") if one.strip()]
    )


def of_formats(folder: Path, kinds: Sequence[tuple[str, str | None]]) -> None:
    base, loras = lk.demo()
    weights = lk.Gradient.ramp(base.layers, start=14, stop=16)
    merged = lk.plan(base, loras["kjv"], weights).write(folder / "merged", progress=False)
    print(HEAD, flush=True)
    for name, asked in kinds:
        calibration = documents() if asked == "documents" else asked
        made = lk.export(
            merged, folder / "out", name, calibration=calibration, overwrite=True, progress=False
        )
        on = f", calibrated on {made.calibration}" if made.calibration else ""
        print(row(f"{name}{on}", made), flush=True)


def of_loras(folder: Path) -> None:
    base, loras = lk.demo()
    weights = lk.Gradient.ramp(base.layers, start=14, stop=16)
    sets = lk.demo_texts()
    print(HEAD, flush=True)
    for name, options in (("factors", {}), ("alpha_pattern", {"alpha_pattern": True})):
        baked = lk.bake(loras["kjv"], weights, folder / f"baked-{name}", **options)
        made = lk.export(
            baked,
            folder / f"out-{name}",
            "gguf",
            base=base,
            texts=[sets["scripture"], sets["modern prose"]],
            progress=False,
        )
        print(row(f"LoRA, baked into {name}", made), flush=True)


def of_a_shape(shape: str, folder: Path, names: tuple[str, ...]) -> None:
    model = make(shape, folder / "model")
    weights = sum(tensor.elements for tensor in lk.Checkpoint(model).tensors.values()) / 1e9
    print(f"{weights:.2f} billion weights, {model_bytes(model) / 1e9:.2f} GB")
    print("| format | processor time | memory |")
    print("|---|---|---|")
    for name in names:
        made = lk.export(model, folder / "out", name, check=False, overwrite=True, progress=False)
        cost = f"{made.processor_seconds:.0f} s | {made.peak_memory / 1e9:.2f} GB"
        print(f"| {name} | {cost} |", flush=True)


def model_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def make(shape: str, folder: Path) -> Path:
    """A Llama of random weights with the demo's tokenizer, in files of a layer each."""
    import json

    import torch
    from safetensors.torch import save_file

    hidden, inner, layers, heads = SHAPES[shape]
    folder.mkdir()
    base, _ = lk.demo()
    for name in TOKENIZER:
        shutil.copy(base.folder / name, folder)
    config = base.config | {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 4 if shape == "1b" else heads,
        "head_dim": hidden // heads,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    narrow = config["num_key_value_heads"] * (hidden // heads)
    modules = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    files = [
        {f"model.layers.{layer}.{name}.weight": size for name, size in modules.items()}
        for layer in range(layers)
    ]
    outside = {"model.embed_tokens": (VOCABULARY, hidden), "lm_head": (VOCABULARY, hidden)}
    files += [{f"{name}.weight": size} for name, size in outside.items()]
    files[-1]["model.norm.weight"] = (hidden,)
    places = {}
    for number, sizes in enumerate(files, 1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        tensors = {
            name: (0.02 * torch.randn(size)).to(torch.bfloat16) for name, size in sizes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(sizes, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", choices=["formats", "others", "loras", *SHAPES])
    options.add_argument("--others", action="store_true", help="of a shape: what is not GGUF")
    options.add_argument("--only", metavar="NAME", help="one format")
    options.add_argument("--folder", type=Path, help="where to write; a temporary folder else")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        if asked.what in ("formats", "others"):
            kinds = KINDS if asked.what == "formats" else OTHERS
            of_formats(Path(folder), [one for one in kinds if asked.only in (None, one[0])])
        elif asked.what == "loras":
            of_loras(Path(folder))
        else:
            of_a_shape(asked.what, Path(folder), WITHOUT_TEXTS if asked.others else GGUF)


if __name__ == "__main__":
    main()
