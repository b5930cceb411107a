"""Loads a base model with transformers and attaches adapters to it with PEFT."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from labkit.errors import LabkitError, shown
from labkit.inference.mixtures import memory_to_merge
from labkit.inference.quantising import quantised_by, require_sizes
from labkit.machine import free_memory
from labkit.merging.planning import Change, Plan
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.models.kinds.lora import LoraModule
from labkit.models.model_files import is_of_tokenizer
from labkit.models.names import canonical
from labkit.models.source import Source
from labkit.quiet import quiet


def load_model(base: Checkpoint, dtype: str, device: str, quantize: str | None = None) -> Any:
    """Load the base with transformers, without running code from its folder.

    Args:
        base: the base model.
        dtype: torch's name of a dtype, or "auto" for the base's own.
        device: where it is to run.
        quantize: as in `live`.

    Raises:
        LabkitError: transformers cannot load it, or bitsandbytes is missing or cannot calculate
            with modules of its sizes.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    more: dict[str, Any] = {}
    if quantize is not None:
        # Modules are quantised as they are read: the whole model is never in memory.
        more = {
            "quantization_config": quantised_by(quantize, getattr(torch, dtype)),
            "device_map": {"": device},
        }
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # for what takes a second, it is only noise in a notebook
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            **more,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise LabkitError(
            f"transformers cannot load {shown(base.folder)}: {shown(error)}; a model that needs "
            "code of its own is not run by labkit"
        ) from error
    finally:
        if bar:
            logging.enable_progress_bar()
    if quantize is None:
        return model.to(device).eval()
    require_sizes(model, device)
    return model.eval()


def memory_for(
    base: Checkpoint, sources: Sequence[Source], dtype: str, merged: Plan | None = None
) -> int:
    """Bytes of memory that a live model needs in a dtype.

    Args:
        base: the base model.
        sources: what is attached to it.
        dtype: torch's name of the dtype.
        merged: a plan that is to be merged in it.
    """
    elements = sum(tensor.elements for tensor in base.tensors.values())
    plain = all(isinstance(one, Adapter) and one.plain for one in sources)
    kept = 0 if plain else base.nbytes  # what is merged in memory needs the base's numbers
    if merged is not None:
        kept += memory_to_merge(merged, () if plain else base.tensors)
    return int(getattr(torch, dtype).itemsize) * elements + kept + WORKING_MEMORY


def dtype_that_fits(
    base: Checkpoint, sources: Sequence[Source], merged: Plan | None = None
) -> tuple[str, str]:
    """Choose a dtype on a CPU: float32, or bfloat16 where the free memory is too small for it.

    Returns:
        the dtype; and why it is not float32, else nothing.
    """
    free, needed = free_memory(), memory_for(base, sources, "float32", merged)
    if free is None or needed <= free:
        return "float32", ""
    return "bfloat16", (
        f"in bfloat16: float32 needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
    )


def load_tokenizer(base: Checkpoint) -> Any:
    """Load the base's tokenizer, without running code from its folder.

    Raises:
        LabkitError: there is none, or transformers cannot load it.
    """
    from transformers import AutoTokenizer

    if not any(is_of_tokenizer(path.name) for path in base.folder.iterdir()):
        raise LabkitError(
            f"{shown(base.folder)} holds no tokenizer, which a model needs to read a prompt; put "
            "the model's own there (tokenizer.json and tokenizer_config.json)"
        )
    try:
        return AutoTokenizer.from_pretrained(
            base.folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise LabkitError(
            f"transformers cannot load the tokenizer of {shown(base.folder)}: {shown(error)}"
        ) from error


WORKING_MEMORY = 500_000_000
"""Bytes of memory for a forward pass, and for a tensor that is being loaded."""


@dataclass(frozen=True)
class Turned:
    """A linear module of a model, and the plain LoRA that is turned on it.

    Attributes:
        module: the module's name in transformers' model.
        source: the number of the source that the LoRA is of.
        lora: its factors.
    """

    module: str
    source: int
    lora: LoraModule


def turned_and_merged(model: Any, changes: Sequence[Change]) -> tuple[list[Turned], list[Change]]:
    """Divide changes into those that PEFT's scaling turns exactly, and all others.

    The first are plain LoRA on linear modules that the model has as the base's files do. The others
    are merged in the model's memory.
    """
    from transformers.pytorch_utils import Conv1D

    linear: dict[str, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            linear[canonical(name)].append(name)
    turned: list[Turned] = []
    merged: list[Change] = []
    for change in changes:
        name = change.tensor.name
        modules = linear[canonical(name.removesuffix(".weight"))]
        plain = [
            Turned(modules[0], one.term, one.part)
            for one in change.contributions
            if (one.match.block, one.match.rows, one.match.expert) == (None, None, None)
            and len(modules) == 1
            and isinstance(one.part, LoraModule)
            and one.part.plain
            and change.shape == change.tensor.shape
        ]
        if len(plain) == len(change.contributions):
            turned += plain
        else:
            merged.append(change)
    return turned, merged


def attach(
    model: Any, turned: Sequence[Turned], sources: int
) -> list[dict[str, tuple[Any, str, float]]]:
    """Attach LoRAs with PEFT: for each source, module name -> (PEFT's layer, its key, its scaling).

    Args:
        model: transformers' model.
        turned: what to attach where.
        sources: how many sources there are.

    Raises:
        LabkitError: PEFT does not attach all of them.
    """
    with quiet("bitsandbytes"):
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

    loras: list[dict[str, tuple[Any, str, float]]] = []
    keys = []
    for number in range(sources):
        mine = {one.module: one.lora for one in turned if one.source == number}
        key = f"adapter_{number}"
        loras.append({})
        if not mine:
            continue
        keys.append(key)
        names = "|".join(map(re.escape, mine))
        config = LoraConfig(
            target_modules=f"({names})",
            rank_pattern={re.escape(name): lora.rank for name, lora in mine.items()},
            init_lora_weights=False,
        )
        with warnings.catch_warnings():
            # PEFT warns of a base it does not know by name; what is attached is known here.
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, model, key)
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer) and key in module.lora_A:
                lora = mine[name]
                _fill(module, key, lora)
                loras[-1][lora.name] = (module, key, lora.scaling)
        if len(loras[-1]) != len(mine):
            raise LabkitError(
                f"PEFT attached {len(loras[-1])} of {len(mine)} modules (such as "
                f"{shown(min(mine))!r}); this version of PEFT does not know the model: merge "
                "instead (lk.plan)"
            )
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_adapter([key for key in keys if key in module.lora_A])
    model.requires_grad_(False)
    return loras


def _fill(layer: Any, key: str, lora: LoraModule) -> None:
    """Give PEFT's layer the factors of the file, as a merge reads them."""
    a, b = (torch.from_numpy(factor.read()) for factor in (lora.a, lora.b))
    if lora.turned:
        a, b = a.T, b.T
    with torch.no_grad():
        for linear, values in ((layer.lora_A[key], a), (layer.lora_B[key], b)):
            linear.float()  # also beside a weight of 16 bits
            linear.weight.copy_(values)
