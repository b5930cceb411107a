"""Models of zeros that take no room on disk: to plan and forecast a merge of what is not here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, shown
from labkit.files.atomic_folder import building, check_target, explain
from labkit.files.paths import user_path
from labkit.files.tensor_file import FLOAT_CODES, header_for
from labkit.models.adapter import Adapter
from labkit.models.adapter_config import CONFIG
from labkit.models.checkpoint import Checkpoint
from labkit.models.model_files import SINGLE

DTYPES = {"float16": 2, "bfloat16": 2, "float32": 4}
"""The dtypes that it can have, and the bytes of an element."""
Shapes = Iterable[tuple[str, tuple[int, ...]]]


def hollow_base(
    folder: str | Path, config: Mapping[str, Any], *, dtype: str = "float16"
) -> Checkpoint:
    """Make a base model of a given shape whose tensors are all zero.

    Its file says how large it is and holds nothing: 26 GB of model take some kilobytes on disk. The
    tensors' names are those that transformers computes with; for mixtures of experts, whose
    experts it stacks, files often have others.

    Args:
        folder: the folder to make.
        config: what transformers builds the model from: `{"model_type": "llama", …}`.
        dtype: "float16", "bfloat16" or "float32".

    Raises:
        LabkitError: a config that transformers does not take, an unknown dtype, or a folder that
            cannot be made.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    # Whatever transformers stumbles over, it is the config.
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise LabkitError(f"transformers makes no model of this config: {shown(first)}") from error
    # Of names that share a tensor, as a tied head and its embedding do, the first is in the file.
    shapes: dict[int, tuple[str, tuple[int, ...]]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        shapes.setdefault(id(tensor), (name, tuple(tensor.shape)))
    settings = {**model.config.to_dict(), "architectures": [type(model).__name__], "dtype": dtype}
    return Checkpoint(_make(folder, SINGLE, shapes.values(), dtype, "config.json", settings))


def hollow_adapter(
    folder: str | Path,
    base: Checkpoint | str | Path,
    *,
    rank: int,
    alpha: float,
    dtype: str = "float16",
) -> Adapter:
    """Make a LoRA on every linear module of a base's layers whose factors are all zero.

    Args:
        folder: the folder to make.
        base: the base model, which may be hollow too. Its matrices are out × in, as those of
            nearly all models are.
        rank: the LoRA's rank r.
        alpha: its alpha; the scaling is alpha/r.
        dtype: "float16", "bfloat16" or "float32".

    Raises:
        LabkitError: a base that cannot be opened, an unknown dtype, or a folder that cannot be
            made.
    """
    opened = Checkpoint.open(base)
    shapes: list[tuple[str, tuple[int, ...]]] = []
    modules = set()
    for name, tensor in opened.tensors.items():
        module = name.removesuffix(".weight")
        if opened.layer_of(name) is None or len(tensor.shape) != 2:
            continue
        rows, columns = tensor.shape
        modules.add(module.rpartition(".")[2])
        shapes.append((f"base_model.model.{module}.lora_A.weight", (rank, columns)))
        shapes.append((f"base_model.model.{module}.lora_B.weight", (rows, rank)))
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": opened.reference,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(modules),
    }
    return Adapter(_make(folder, "adapter_model.safetensors", shapes, dtype, CONFIG, settings))


def _make(
    folder: str | Path, file: str, shapes: Shapes, dtype: str, config: str, settings: Any
) -> Path:
    if dtype not in DTYPES:
        raise LabkitError(
            f"the dtype {shown(dtype)!r} is unknown; expected one of {', '.join(DTYPES)}"
        )
    target = user_path(folder).absolute()
    check_target(target, overwrite=False)
    described = [(name, FLOAT_CODES[dtype], shape) for name, shape in shapes]
    header = header_for(iter(described), {"format": "pt"})
    size = len(header) + DTYPES[dtype] * sum(math.prod(shape) for _, _, shape in described)
    try:
        with building(target) as made:
            text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
            (made.folder / config).write_text(text, encoding="utf-8")
            with (made.folder / file).open("wb") as out:
                out.write(header)
                out.truncate(size)  # what is not written reads as zeros, and takes no room
            made.put_in_place(overwrite=False)
    except OSError as error:
        raise LabkitError(explain(error, target)) from error
    return target
