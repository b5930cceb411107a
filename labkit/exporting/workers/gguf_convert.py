"""Writes a model or a LoRA as a GGUF file: llama.cpp's own converter, its own quantisers.

The converter is the one that auto-round carries. It writes bfloat16 and Q8_0 by itself; for the
mixed formats (Q4_K_M and others) this gives each tensor the type that llama.cpp would give it, and
lets llama.cpp's library quantise it.

Calibrated, each column of a weight matrix counts by the mean square of what enters it, as
llama.cpp's `imatrix` has it.
"""

import ctypes
import gc
import importlib.util
import json
import logging
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What llama.cpp takes where rows are no multiple of 256 wide (`tensor_type_fallback`)."""
TOLERANCE = 1e-5
"""How far two products of factors may lie apart, as a part of the largest number."""
ROWS_AT_ONCE = 1024
"""Rows that a thread quantises at once."""


def main(folder: Path) -> None:
    """Convert as `job.json` says: a model, or the factors of a LoRA for it."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    logging.basicConfig(level=logging.WARNING)
    tools = folder_of("auto_round") / "export" / "export_to_gguf"
    sys.path.append(str(tools))
    import gguf

    know_newer_names(gguf, tools / "conversion")
    import conversion

    source = Path(job["source"])
    hparams = conversion.ModelBase.load_hparams(source, False)
    architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
    writes = conversion.get_model_class(architecture)(
        source,
        # What is to be quantised is marked as Q8_0 at first.
        gguf.LlamaFileType.MOSTLY_BF16 if job["kind"] == "BF16" else gguf.LlamaFileType.MOSTLY_Q8_0,
        Path(job["out"]),
        model_name=job["name"],
    )
    result = lora_file(writes, job, gguf) if "factors" in job else model_file(writes, job, gguf)
    result["tools"] = {name: version(name) for name in ("auto-round", "gguf")}
    if result.get("types"):
        result["tools"]["xllamacpp"] = version("xllamacpp")
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def know_newer_names(gguf: Any, converter: Path) -> None:
    """Let the converter be imported beside a gguf that lacks its newest architectures.

    Its files name them when they are read, each beside older ones: Qwen's beside DFLASH. A model of
    such an architecture is refused all the same, since gguf has no tensors for it.
    """
    names = re.compile(r"gguf\.(MODEL_ARCH|MODEL_TENSOR|VisionProjectorType)\.(\w+)")
    for path in converter.glob("*.py"):
        for kind, name in names.findall(path.read_text(encoding="utf-8")):
            if not hasattr(getattr(gguf, kind), name):
                setattr(getattr(gguf, kind), name, f"{name}, which this gguf does not know")


def model_file(writes: Any, job: dict[str, Any], gguf: Any) -> dict[str, Any]:
    """Write a model."""
    mixed = job["kind"] not in ("BF16", "Q8_0")
    kind = gguf.LlamaFileType[f"MOSTLY_{job['kind']}"]
    importance: dict[str, np.ndarray] = {}
    if job["calibration"]:
        source = Path(job["source"])
        importance = mean_squares(source, job["calibration"], job["dtype"], writes)
    types = mix(writes, kind, importance, job, gguf) if mixed else {}
    if not mixed:
        writes.prepare_tensors()
    writes.ftype = kind
    writes.prepare_metadata(vocab_only=False)
    if importance:
        writes.gguf_writer.add_string("quantize.imatrix.dataset", job["calibration_name"])
        writes.gguf_writer.add_uint32("quantize.imatrix.entries_count", len(importance))
        writes.gguf_writer.add_uint32("quantize.imatrix.chunks_count", len(job["calibration"]))
    finish(writes.gguf_writer, writes.fname_out)
    return {"types": types}


def finish(writer: Any, path: Path) -> None:
    """Write all that a writer was told."""
    writer.write_header_to_file(path=path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=False)
    writer.close()


def lora_file(model: Any, job: dict[str, Any], gguf: Any) -> dict[str, Any]:
    """Write a LoRA, with the names and the order of rows that llama.cpp knows.

    The converter turns a model's tensors (it reorders the rows of q and k, say). What it does with
    a factor B must be what it does with the product B·A: that is compared for every module.
    """
    import torch

    writer = gguf.GGUFWriter(job["out"], gguf.MODEL_ARCH_NAMES[model.model_arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(job["name"])
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, job["alpha"])
    factors = np.load(job["factors"])
    for number, name in enumerate(job["tensors"]):
        a, b = factors[f"a{number}"], factors[f"b{number}"]
        layer = next((int(part) for part in name.split(".") if part.isdecimal()), None)
        parts = dict(model.modify_tensors(torch.from_numpy(b), name, layer))
        whole = dict(model.modify_tensors(torch.from_numpy(b @ a), name, layer))
        if not parts or parts.keys() != whole.keys():
            raise SystemExit(f"llama.cpp keeps {name} in another form, which a LoRA cannot follow")
        for new_name, left in parts.items():
            if not is_product(left.numpy(), a, whole[new_name].numpy()):
                raise SystemExit(
                    f"llama.cpp keeps {name} in another form, which a LoRA cannot follow"
                )
            writer.add_tensor(f"{new_name}.lora_a", a)
            writer.add_tensor(f"{new_name}.lora_b", np.ascontiguousarray(left.numpy()))
    finish(writer, Path(job["out"]))
    return {}


def is_product(left: np.ndarray, right: np.ndarray, whole: np.ndarray) -> bool:
    """Whether a matrix is the product of two others, but for rounding."""
    if left.ndim != 2 or left.shape[1] != right.shape[0]:
        return False
    made = left @ right
    return made.shape == whole.shape and bool(
        np.abs(made - whole).max() <= TOLERANCE * np.abs(whole).max()
    )


def folder_of(package: str) -> Path:
    """Where an installed package lies."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{package} is not installed")
    return Path(found.submodule_search_locations[0])


def mix(
    writes: Any, kind: Any, importance: dict[str, np.ndarray], job: dict[str, Any], gguf: Any
) -> dict[str, int]:
    """Let every tensor that the converter would write as Q8_0 have its type of a mixed format.

    Returns:
        how many tensors there are of each type.
    """
    from auto_round.export.export_to_gguf.gguf_dtype import GGUFDTypeSelector

    Type = gguf.GGMLQuantizationType
    quantiser = Quantiser(job["threads"])
    quantize, add = gguf.quants.quantize, writes.gguf_writer.add_tensor
    waiting: list[tuple[str, Any, Any]] = []
    # What is to be quantised stays as it is until its type is known, which its place decides.
    gguf.quants.quantize = lambda data, to: data if to == Type.Q8_0 else quantize(data, to)
    writes.gguf_writer.add_tensor = lambda name, data, raw_dtype: waiting.append(
        (name, data, raw_dtype)
    )
    writes.prepare_tensors()
    gguf.quants.quantize, writes.gguf_writer.add_tensor = quantize, add
    names = [name for name, _, _ in waiting]
    selector = GGUFDTypeSelector(
        writes.hparams,
        kind,
        model_arch=writes.model_arch,
        n_layer=writes.block_count,
        n_attention_wv=sum("attn_v.weight" in name or "attn_qkv" in name for name in names),
        has_imatrix=bool(importance),
        has_tied_embeddings="output.weight" not in names,
    )
    counts: dict[str, int] = {}
    # In llama.cpp's order, by layer: it counts the tensors of a kind that it has seen.
    for name, data, given in sorted(waiting, key=lambda one: layer_of(one[0])):
        chosen = given
        if given == Type.Q8_0:
            width = data.shape[-1]
            chosen = selector.select_qtype(name, len(data.shape))
            if width % gguf.GGML_QUANT_SIZES[chosen][0]:
                chosen = Type[FALLBACKS[chosen.name]]
            if width % gguf.GGML_QUANT_SIZES[chosen][0]:
                chosen = Type.F16
            if chosen in (Type.F16, Type.F32):
                data = quantize(data, chosen)
            else:
                data = quantiser.later(data, chosen, importance.get(name), gguf)
        counts[chosen.name] = counts.get(chosen.name, 0) + 1
        add(name, data, raw_dtype=chosen)
    return counts


def layer_of(name: str) -> int:
    """The number of a tensor's layer; -1 outside the layers, which come first."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" else -1


class Quantiser:
    """llama.cpp's own quantising of rows, out of the library in xllamacpp's wheel."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        library = ctypes.CDLL(str(next(folder_of("xllamacpp").glob("xllamacpp*.so"))))
        self.call = library.ggml_quantize_chunk
        self.call.restype = ctypes.c_size_t
        floats = ctypes.POINTER(ctypes.c_float)
        self.call.argtypes = [
            ctypes.c_int,
            floats,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            floats,
        ]

    def later(self, data: Any, chosen: Any, weights: np.ndarray | None, gguf: Any) -> Any:
        """A tensor whose bytes are made when they are written, so that one is in memory at once."""
        shape = gguf.quant_shape_to_byte_shape(tuple(data.shape), chosen)
        return gguf.LazyNumpyTensor(
            meta=gguf.LazyNumpyTensor.meta_with_dtype_and_shape(np.uint8, shape),
            args=(data,),
            func=lambda values: self.now(values, chosen, weights, shape),
        )

    def now(
        self, values: np.ndarray, chosen: Any, weights: np.ndarray | None, shape: tuple[int, ...]
    ) -> np.ndarray:
        """Quantise.

        Args:
            values: float numbers, any × columns.
            chosen: the type.
            weights: what each column counts; None for all alike.
            shape: of the bytes.
        """
        columns = values.shape[-1]
        rows = np.ascontiguousarray(values, np.float32).reshape(-1, columns)
        out = np.empty((rows.shape[0], shape[-1]), np.uint8)
        floats = ctypes.POINTER(ctypes.c_float)
        counts = None
        if weights is not None:
            if weights.shape != (columns,):
                raise SystemExit(f"calibrated {weights.shape} columns, and a tensor has {columns}")
            counts = weights.ctypes.data_as(floats)

        def part(first: int) -> None:
            some = rows[first : first + ROWS_AT_ONCE]
            written = self.call(
                chosen.value,
                some.ctypes.data_as(floats),
                out[first:].ctypes.data,
                0,
                some.shape[0],
                columns,
                counts,
            )
            if written != some.shape[0] * shape[-1]:
                raise SystemExit(f"llama.cpp wrote {written} bytes for {some.shape[0]} rows")

        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(part, range(0, rows.shape[0], ROWS_AT_ONCE)))
        return out.reshape(shape)


def mean_squares(
    source: Path, sequences: list[list[int]], dtype: str, writes: Any
) -> dict[str, np.ndarray]:
    """The mean square of what enters each column of each linear module.

    Returns:
        GGUF's name of the weight -> float32 of shape columns.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False
    ).eval()
    sums: dict[str, Any] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: Any, inputs: Any) -> None:
            rows = inputs[0].detach().float().reshape(-1, inputs[0].shape[-1])
            sums[name] = sums.get(name, 0) + rows.square().sum(0, dtype=torch.float64)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(watch(name))
    with torch.inference_mode():
        for sequence in sequences:
            model(input_ids=torch.tensor([sequence]), use_cache=False)
    read = sum(map(len, sequences))
    del model
    gc.collect()
    found = {}
    for name, values in sums.items():
        try:
            named = writes.map_tensor_name(f"{name}.weight")
        except ValueError:  # a module that the converter splits, joins or leaves out
            continue
        if named != "output.weight":  # llama.cpp's own counts leave the head out
            found[named] = (values / read).float().numpy()
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
