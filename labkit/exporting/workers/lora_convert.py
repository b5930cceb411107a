"""Writes a LoRA as a GGUF file for llama.cpp, with the names and the order of rows it knows.

llama.cpp's converter turns a model's tensors (it reorders the rows of q and k, say). What it does
with a factor B must be what it does with the product B·A: that is compared for every module.
"""

import importlib.util
import json
import logging
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

TOLERANCE = 1e-5
"""How far the two may lie apart, as a part of the largest number."""


def main(folder: Path) -> None:
    """Convert as `job.json` says."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    logging.basicConfig(level=logging.WARNING)
    found = importlib.util.find_spec("auto_round")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("auto-round is not installed")
    sys.path.append(str(Path(found.submodule_search_locations[0]) / "export" / "export_to_gguf"))
    import conversion
    import gguf
    import torch

    source = Path(job["source"])
    hparams = conversion.ModelBase.load_hparams(source, False)
    architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
    model = conversion.get_model_class(architecture)(
        source, gguf.LlamaFileType.ALL_F32, Path(job["out"])
    )
    writer = gguf.GGUFWriter(job["out"], gguf.MODEL_ARCH_NAMES[model.model_arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(job["name"])
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, job["alpha"])
    factors = np.load(job["factors"])
    for number, name in enumerate(job["tensors"]):
        a, b = factors[f"a{number}"], factors[f"b{number}"]
        layer = next((int(part) for part in name.split(".") if part.isdecimal()), None)
        whole = list(model.modify_tensors(torch.from_numpy(b @ a), name, layer))
        parts = list(model.modify_tensors(torch.from_numpy(b), name, layer))
        if not parts or [one for one, _ in parts] != [one for one, _ in whole]:
            raise SystemExit(f"llama.cpp keeps {name} in another form, which a LoRA cannot follow")
        for (new_name, left), (_, product) in zip(parts, whole, strict=True):
            wanted, made = product.numpy(), None
            if left.ndim == 2 and left.shape[1] == a.shape[0]:
                made = left.numpy() @ a
            if made is None or made.shape != wanted.shape or not close(made, wanted):
                raise SystemExit(
                    f"llama.cpp keeps {name} in another form, which a LoRA cannot follow"
                )
            writer.add_tensor(f"{new_name}.lora_a", a)
            writer.add_tensor(f"{new_name}.lora_b", np.ascontiguousarray(left.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tools = {name: version(name) for name in ("auto-round", "gguf")}
    (folder / "result.json").write_text(json.dumps({"tools": tools}), encoding="utf-8")


def close(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two matrices are the same but for rounding."""
    return float(np.abs(one - other).max()) <= TOLERANCE * float(np.abs(other).max())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
