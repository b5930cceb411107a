"""Loads a base model with transformers and attaches adapters to it with PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from labkit.errors import LabkitError, shown
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.models.kinds.lora import LoraModule
from labkit.models.model_files import ADAPTER_WEIGHTS, is_of_tokenizer
from labkit.models.names import canonical

PREFIX = "base_model.model."
"""What PEFT puts before the names of the base model's modules."""


def require_exact(adapter: Adapter) -> None:
    """Check that turning PEFT's scaling is exactly what a merge at that layer weight does.

    Raises:
        LabkitError: DoRA, saved modules, trained biases or embeddings, for which it is not; or a
            file that PEFT does not read as safetensors.
    """
    adapter.require_plain("a live model")
    if adapter.file.path.name != ADAPTER_WEIGHTS:
        raise LabkitError(
            f"a live model reads {ADAPTER_WEIGHTS} only, and {shown(adapter.name)} holds "
            f"{shown(adapter.file.path.name)}; convert it, or merge it instead (labkit merge)"
        )


def load_model(base: Checkpoint, dtype: str, device: str) -> Any:
    """Load the base with transformers, without running code from its folder.

    Raises:
        LabkitError: transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # for what takes a second, it is only noise in a notebook
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise LabkitError(
            f"transformers cannot load {shown(base.folder)}: {shown(error)}; a model that needs "
            "code of its own is not run by labkit"
        ) from error
    finally:
        if bar:
            logging.enable_progress_bar()
    return model.to(device).eval()


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


def attach(
    model: Any, adapters: Sequence[Adapter], layers: Mapping[tuple[str, str], int | None]
) -> list[dict[str, tuple[Any, str, float]]]:
    """Attach adapters with PEFT: for each, module name -> (PEFT's layer, its key, its scaling).

    Args:
        model: transformers' model.
        adapters: what to attach.
        layers: the layer of every tensor that a plan matched, by adapter and tensor name.

    Raises:
        LabkitError: PEFT attached other modules than the plan matched.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    wrapped: Any = None
    keys = [f"adapter_{index}" for index in range(len(adapters))]
    with warnings.catch_warnings():
        # PEFT warns of a base it does not know by name; what is attached is checked below.
        warnings.simplefilter("ignore")
        for key, adapter in zip(keys, adapters, strict=True):
            if wrapped is None:
                wrapped = PeftModel.from_pretrained(model, adapter.folder, adapter_name=key)
            else:
                wrapped.load_adapter(adapter.folder, adapter_name=key)
    wrapped.base_model.set_adapter(keys)
    wrapped.eval()
    loras = []
    for key, adapter in zip(keys, adapters, strict=True):
        # The adapter's own spelling of each module's name, of which the plan speaks too.
        spelled = {canonical(name): name for name in adapter.modules}
        attached = {
            name.removeprefix(PREFIX): (lora, key, float(lora.scaling[key]))
            for name, lora in wrapped.named_modules()
            if isinstance(lora, LoraLayer) and key in lora.scaling
        }
        loras.append({spelled.get(canonical(name), name): one for name, one in attached.items()})
    for adapter, modules in zip(adapters, loras, strict=True):
        expected = {
            name
            for name, module in adapter.modules.items()
            if (adapter.name, module.a.name) in layers
        }
        if set(modules) != expected:
            odd = shown(min(set(modules) ^ expected))
            raise LabkitError(
                f"PEFT attached {len(modules)} modules of {shown(adapter.name)}, expected "
                f"{len(expected)} (such as {odd!r}); the adapter was made for another model"
            )
        for name, (lora, key, _) in modules.items():
            _fill(lora, key, adapter.modules[name])
    return loras


def _fill(lora: Any, key: str, module: LoraModule) -> None:
    """Give PEFT's layer the factors of the file, as a merge reads them.

    PEFT loads them by its own names, and leaves factors of other spellings as it made them: A
    random and B 0. What is heard would then be the base, in silence.
    """
    with torch.no_grad():
        for layer, stored in ((lora.lora_A[key], module.a), (lora.lora_B[key], module.b)):
            values = torch.from_numpy(stored.read())
            layer.weight.copy_(values.to(layer.weight.dtype))
