"""Exports: what they cost, and what they change.

OMP_NUM_THREADS=1 uv run --extra gguf python -m benchmarks.exports formats
OMP_NUM_THREADS=1 uv run --extra gptq python -m benchmarks.exports others
OMP_NUM_THREADS=1 uv run --extra gguf python -m benchmarks.exports loras
OMP_NUM_THREADS=1 uv run --extra gguf python -m benchmarks.exports types --library libllama.so
OMP_NUM_THREADS=1 uv run --extra gguf python -m benchmarks.exports 1b --folder /big/disk

The first three are of the demo, against the merge in transformers in float32: the merge as every
GGUF type, in the formats of other programs (GPTQ also calibrated on documents of another domain),
and the LoRA baked in two ways, from configs that scale it in three, and with the base in float32,
where llama.cpp does not round what enters a matrix. `types` compares files with those that
llama.cpp's own llama_model_quantize makes, which is not in xllamacpp's library: a shared library of
llama.cpp has it, such as that in the package @node-llama-cpp/linux-x64 of npm. The last converts a
Llama of random weights in TinyLlama's shape, for processor time and memory alone; `--kinds
others` to what is not GGUF, `--kinds calibrated` with the whole model in memory.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import labkit as lk
from benchmarks.merge import SHAPES

# What they convert is compared, and looked at, before an export is whole.
from labkit.exporting import gguf_files, lora_files

# A conversion takes a job, and
from labkit.exporting.job import Job

# is done in a process of its own.
from labkit.exporting.processes import Done

KINDS = [
    ("gguf-bf16", None),
    ("gguf-q8_0", None),
    ("gguf-q6_k", "none"),
    ("gguf-q6_k", None),
    ("gguf-q5_k_m", "none"),
    ("gguf-q5_k_m", None),
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
OF_A_SHAPE = {
    "gguf": [("gguf-bf16", None), ("gguf-q8_0", None), ("gguf-q4_k_m", None)],
    "others": [("mlx", None), ("fp8", None), ("w4a16", None)],
    "calibrated": [("gguf-q4_k_m", "kjv"), ("gptq", "kjv"), ("w4a16", "kjv"), ("awq", "kjv")],
}
"""What random weights are converted to, by file; or with the whole model in memory, calibrated."""
LLAMA_TYPES = {"gguf-q8_0": 7, "gguf-q4_k_m": 15, "gguf-q5_k_m": 17, "gguf-q6_k": 18}
"""Formats -> llama.cpp's numbers for them (`llama_ftype`)."""
QUANTISE = """
import ctypes, sys
class Settings(ctypes.Structure):
    _fields_ = [("words", ctypes.c_uint32 * 256)]  # larger than llama_model_quantize_params
library, source, out, kind = sys.argv[1:]
lib = ctypes.CDLL(library)
lib.llama_model_quantize_default_params.restype = Settings
settings = lib.llama_model_quantize_default_params()
settings.words[0:2] = [1, int(kind)]  # threads, and the type
sys.exit(lib.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(settings)))
"""
"""A program that lets llama.cpp quantise a GGUF file, as its llama-quantize does."""
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
    texts = [sets["scripture"], sets["modern prose"]]
    kjv = loras["kjv"]
    alpha, rank = kjv.config["lora_alpha"], kjv.config["r"]
    all_alphas = dict.fromkeys(kjv.config["target_modules"], alpha)
    cases: list[tuple[str, lk.Adapter, bool]] = [
        ("into factors", kjv, False),
        ("into alpha_pattern", kjv, True),
        (
            "into factors, of rsLoRA",
            scaled(kjv, folder / "rslora", use_rslora=True, lora_alpha=alpha / math.sqrt(rank)),
            False,
        ),
        (
            "into factors, of alpha 0 with alpha_pattern",
            scaled(kjv, folder / "alpha0", lora_alpha=0, alpha_pattern=all_alphas),
            False,
        ),
    ]
    print(HEAD, flush=True)
    told: Any = {"texts": texts, "overwrite": True, "progress": False}
    for name, adapter, alpha_pattern in cases:
        baked = lk.bake(adapter, weights, folder / f"baked {name}", alpha_pattern=alpha_pattern)
        for within, said in ((nullcontext, ""), (models_in_float32, ", base in float32")):
            with within():
                made = lk.export(baked, folder / "out", "gguf", base=base, **told)
            print(row(f"LoRA, baked {name}{said}", made), flush=True)
    merged = lk.plan(base, kjv, weights).write(folder / "merged", progress=False)
    with models_in_float32():
        made = lk.export(merged, folder / "out", "gguf-bf16", **told)
    print(row("the merge in float32", made))


def scaled(adapter: lk.Adapter, folder: Path, **config: object) -> lk.Adapter:
    """The same factors with other words for their scaling."""
    shutil.copytree(adapter.folder, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return lk.Adapter(folder)


@contextmanager
def models_in_float32() -> Iterator[None]:
    """Let labkit give llama.cpp files of models whose bfloat16 numbers are kept in float32."""
    write_model = gguf_files.write_model

    def write(kind: str, job: Job, path: Path, *others: Any) -> Done:
        done = write_model(kind, job, path.with_suffix(".bf16"), *others)
        to_float32(path.with_suffix(".bf16"), path)
        return done

    with (
        mock.patch.object(gguf_files, "write_model", write),
        mock.patch.object(lora_files, "write_model", write),
    ):
        yield


def to_float32(source: Path, out: Path) -> None:
    """Write a GGUF file's tensors in float32, and all else as it is."""
    import gguf

    reader = gguf.GGUFReader(source)
    fields = {name: one for name, one in reader.fields.items() if not name.startswith("GGUF.")}
    writer = gguf.GGUFWriter(out, fields.pop("general.architecture").contents())
    for name, field in fields.items():
        array = field.types[0] == gguf.GGUFValueType.ARRAY
        sub_type = field.types[-1] if array else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source.unlink()


def of_types(folder: Path, library: str) -> None:
    base, loras = lk.demo()
    weights = lk.Gradient.ramp(base.layers, start=14, stop=16)
    merged = lk.plan(base, loras["kjv"], weights).write(folder / "merged", progress=False)
    print("| model | format | tensors | of another type | of other bytes |\n|---|---|---|---|---|")
    for name, model in (("the demo", merged.folder), ("8 layers", make("1b", folder / "1b", 8))):
        whole = exported(model, "gguf-bf16", folder / "whole")
        for kind, number in LLAMA_TYPES.items():
            ours, theirs = exported(model, kind, folder / "ours"), folder / "theirs.gguf"
            command = [sys.executable, "-c", QUANTISE, library, whole, theirs, str(number)]
            subprocess.run(command, check=True, capture_output=True)
            print(f"| {name} | {kind} | {differences(ours, theirs)} |", flush=True)


def exported(model: Path, kind: str, out: Path) -> Path:
    """A model's GGUF file, not calibrated."""
    told: Any = {"check": False, "overwrite": True, "progress": False}
    if kind not in ("gguf-bf16", "gguf-q8_0"):  # which take no calibration
        told["calibration"] = "none"
    made = lk.export(model, out, kind, **told)
    return made.folder / made.runs


def differences(one: Path, other: Path) -> str:
    """How many tensors two GGUF files have, and how many differ in type, and in bytes."""
    import gguf

    mine, theirs = (
        {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors} for path in (one, other)
    )
    if mine.keys() != theirs.keys():
        raise ValueError(f"other tensors: {sorted(mine.keys() ^ theirs.keys())}")
    types = [name for name in mine if mine[name].tensor_type != theirs[name].tensor_type]
    values = [n for n in mine if not np.array_equal(mine[n].data, theirs[n].data)]
    return f"{len(mine)} | {len(types)} | {len(values)}"


def of_a_shape(shape: str, folder: Path, kinds: Sequence[tuple[str, str | None]]) -> None:
    model = make(shape, folder / "model")
    weights = sum(tensor.elements for tensor in lk.Checkpoint(model).tensors.values()) / 1e9
    print(f"{weights:.2f} billion weights, {model_bytes(model) / 1e9:.2f} GB")
    print("| format | processor time | memory |")
    print("|---|---|---|")
    told: Any = {"check": False, "overwrite": True, "progress": False}
    for name, calibration in kinds:
        made = lk.export(model, folder / "out", name, calibration=calibration, **told)
        cost = f"{made.processor_seconds:.0f} s | {made.peak_memory / 1e9:.2f} GB"
        print(f"| {name} | {cost} |", flush=True)


def model_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def make(shape: str, folder: Path, few: int | None = None) -> Path:
    """A Llama of random weights with the demo's tokenizer, in files of a layer each.

    Args:
        shape: one of `SHAPES`.
        folder: the folder to make.
        few: how many layers, if fewer than the shape has.
    """
    import torch
    from safetensors.torch import save_file

    hidden, inner, layers, heads = SHAPES[shape]
    layers = few or layers
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
    options.add_argument("what", choices=["formats", "others", "loras", "types", *SHAPES])
    options.add_argument(
        "--kinds", choices=OF_A_SHAPE, default="gguf", help="of a shape: which formats"
    )
    options.add_argument("--only", metavar="NAME", help="one format")
    options.add_argument("--library", help="of types: llama.cpp's shared library")
    options.add_argument("--folder", type=Path, help="where to write; a temporary folder else")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        all_kinds = {"formats": KINDS, "others": OTHERS}.get(asked.what, OF_A_SHAPE[asked.kinds])
        kinds = [one for one in all_kinds if asked.only in (None, one[0])]
        if asked.what in ("formats", "others"):
            of_formats(Path(folder), kinds)
        elif asked.what == "loras":
            of_loras(Path(folder))
        elif asked.what == "types":
            of_types(Path(folder), asked.library)
        else:
            of_a_shape(asked.what, Path(folder), kinds)


if __name__ == "__main__":
    main()
